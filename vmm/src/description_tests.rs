//! What may be said of a machine, and what may not.

use super::*;

const WHOLE: &str = r#"
vcpus = 4
memory = "512G"
huge_pages = true

[boot]
kernel = "vmlinuz"
initrd = "/boot/initrd"
command_line = "console=ttyS0"

[console]
to = "file:console.log"

[confine]
paths = ["snapshots", "/backup"]

[[disk]]
path = "root.vhdx"

[[disk]]
path = "data.img"
name = "data"
format = "raw"
read_only = true
queues = 1
"#;

fn refused(text: &str) -> String {
    Description::parse(text, Path::new("/vm"))
        .unwrap_err()
        .to_string()
}

#[test]
fn paths_are_seen_from_the_file_and_queues_are_as_many_as_processors() {
    let machine = Description::parse(WHOLE, Path::new("/vm")).unwrap();
    assert_eq!((machine.vcpus, machine.memory), (4, 512 << 30));
    let kernel = Kernel::File("/vm/vmlinuz".into());
    assert_eq!(machine.boot.kernel, kernel);
    assert_eq!(
        machine.boot.initrd.as_deref(),
        Some(Path::new("/boot/initrd"))
    );
    assert_eq!(machine.console, Console::File("/vm/console.log".into()));
    let [root, data] = &machine.disks[..] else {
        panic!("{:?}", machine.disks)
    };
    assert_eq!((root.name.as_str(), root.queues), ("root", 4));
    assert_eq!((data.name.as_str(), data.queues), ("data", 1));
    assert!(data.read_only && !root.read_only);
    assert_eq!(
        machine.allowed,
        [Path::new("/vm/snapshots"), Path::new("/backup")]
    );
}

#[test]
fn the_least_that_describes_a_machine() {
    let machine = Description::parse("memory='16M'\nboot.kernel='k'", Path::new("")).unwrap();
    assert_eq!((machine.vcpus, machine.console), (1, Console::Stdio));
    assert!(machine.disks.is_empty());
}

#[test]
fn what_cannot_be_is_refused_with_its_name() {
    let with = |line: &str| format!("memory='64M'\n{line}\n[boot]\nkernel='k'");
    for (text, named) in [
        ("memory='64M'".to_owned(), "boot"),
        (with("vcpus = 0"), "vcpus"),
        (with("vcpus = 256"), "vcpus"),
        (with("cpus = 2"), "cpus"),
        ("memory='1M'\nboot.kernel='k'".to_owned(), "memory"),
        ("memory='2T'\nboot.kernel='k'".to_owned(), "memory"),
        ("memory='much'\nboot.kernel='k'".to_owned(), "much"),
        (with("console.to = 'tty'"), "console.to"),
        (with("confine.path = ['a']"), "path"),
        (with("disk = [{path='a.vhdx'}, {path='b/a.vhdx'}]"), "`a`"),
        (with("disk = [{path='a.vhdx', queues=0}]"), "queues"),
        (with("disk = [{path='a.vhdx', format='vmdk'}]"), "vmdk"),
        (with("disk = [{path='..'}]"), ".."),
    ] {
        let what = refused(&text);
        assert!(what.contains(named), "{named} in: {what}");
    }
}
