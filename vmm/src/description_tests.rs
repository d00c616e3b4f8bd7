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
        (with("console.to = 'socket:'"), "console.to"),
        (with("confine.path = ['a']"), "path"),
        (with("disk = [{path='a.vhdx'}, {path='b/a.vhdx'}]"), "`a`"),
        (with("disk = [{path='a.vhdx', queues=0}]"), "queues"),
        (with("disk = [{path='a.vhdx', format='vmdk'}]"), "vmdk"),
        (with("disk = [{path='..'}]"), ".."),
        (with("network = [{mac='02:00:00:00:00:01'}]"), "tap"),
        (with("network = [{tap='tap%d'}]"), "tap%d"),
        (with("network = [{tap='a'}, {tap='a'}]"), "`a`"),
        (with("network = [{tap='a', mtu=67}]"), "mtu"),
        (with("network = [{tap='a', mtu=65536}]"), "65536"),
        (
            with("network = [{tap='a', mac='03:00:00:00:00:01'}]"),
            "03:",
        ),
        (
            with("network = [{tap='a', mac='00:00:00:00:00:00'}]"),
            "00:",
        ),
        (with("network = [{tap='a', mac='02:00:00:00:00'}]"), "02:"),
        (with("network = [{tap='a', mac='02:00:00:00:00:+1'}]"), "+1"),
        (with("network = [{tap='a', queues=2}]"), "queues"),
    ] {
        let what = refused(&text);
        assert!(what.contains(named), "{named} in: {what}");
    }
}

#[test]
fn a_machine_starts_from_its_first_disk_or_from_the_one_that_is_named() {
    let disks = "[[disk]]\npath='a.vhdx'\n[[disk]]\npath='b.vhdx'\n";
    let text = |boot: &str| format!("memory='64M'\n{boot}\n{disks}");
    let kernel = |boot: &str| {
        let machine = Description::parse(&text(boot), Path::new("/vm")).unwrap();
        (machine.boot.kernel, machine.boot.command_line)
    };
    let more = "boot.from_disk=true\nboot.command_line='quiet'";
    assert_eq!(kernel(more), (Kernel::Disk(0), "quiet".into()));
    assert_eq!(
        kernel("boot.from_disk='b'"),
        (Kernel::Disk(1), String::new())
    );
    let file = Kernel::File("/vm/k".into());
    assert_eq!(kernel("boot={from_disk=false, kernel='k'}").0, file);
    for (boot, named) in [
        ("boot.from_disk='c'", "`c`"),
        ("boot={from_disk=true, kernel='k'}", "from_disk"),
        ("boot={from_disk=true, initrd='i'}", "from_disk"),
        ("boot.from_disk=false", "from_disk = true"),
        ("boot.from_disk=1", "the name of a disk"),
    ] {
        let what = refused(&text(boot));
        assert!(what.contains(named), "{named} in: {what}");
    }
    assert!(refused("memory='64M'\nboot.from_disk=true").contains("no disk"));
    // Asked for on the command line it goes before what is described.
    let asked = |boot: &str| Description::parse_for_disk(&text(boot), Path::new("/vm"));
    for (boot, place) in [("", 0), ("boot.kernel='k'", 0), ("boot.from_disk='b'", 1)] {
        let boot = asked(boot).unwrap().boot;
        assert_eq!((boot.kernel, boot.initrd), (Kernel::Disk(place), None));
    }
    let alone = Description::of_disk("d/root.vhdx".into(), 2, 1 << 30).unwrap();
    assert_eq!(
        (alone.disks[0].name.as_str(), alone.disks[0].queues),
        ("root", 2)
    );
    assert!(Description::of_disk("root.vhdx".into(), 2, 1).is_err());
}

#[test]
fn a_console_goes_where_it_is_told() {
    for (to, expected) in [
        ("stdio", Console::Stdio),
        ("none", Console::Nowhere),
        ("pty", Console::Pty),
        ("file:a", Console::File("/vm/a".into())),
        ("socket:/b", Console::Socket("/b".into())),
    ] {
        let text = format!("memory='64M'\nconsole.to='{to}'\n[boot]\nkernel='k'");
        let described = Description::parse(&text, Path::new("/vm")).unwrap();
        assert_eq!(described.console, expected);
    }
}

#[test]
fn networks_are_on_their_taps_with_what_was_said_of_them() {
    let text = "memory='64M'\nboot.kernel='k'\n[[network]]\ntap='tap0'\nmac='02:aB:00:00:00:01'\nmtu=9000\n\
                [[network]]\ntap='tap1'";
    let machine = Description::parse(text, Path::new("")).unwrap();
    let [first, second] = &machine.networks[..] else {
        panic!("{:?}", machine.networks)
    };
    assert_eq!(first.mac, Some([2, 0xAB, 0, 0, 0, 1]));
    assert_eq!((first.tap.as_str(), first.mtu), ("tap0", Some(9000)));
    assert_eq!((second.mac, second.mtu), (None, None));
}
