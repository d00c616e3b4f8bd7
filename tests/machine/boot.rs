//! What is installed on a disk is started from it. The disks are laid out as a Debian cloud image is, and in
//! place of its kernel they have the guest of these tests.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use super::guest::without_kvm;
use super::process::Running;
use crate::run::{command, diskferry, folder, program};

/// A GPT as Debian's cloud images have it: the root first, its other partitions behind.
const TABLE: &str = "label: gpt\nstart=1MiB, size=32MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n\
                     start=33MiB, size=3MiB, type=21686148-6449-6E6F-744E-656564454649\n";
const KERNEL: &str = "boot/vmlinuz-6.1.0-18-cloud-amd64";

/// Makes `debian.img` of 64 MiB, whose kernel does what `line` says.
fn install(here: &Path, line: &str, kernel: &[u8]) {
    let entry = format!(
        "set default=\"0\"\nmenuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'simple' {{\n\
         \tsearch --no-floppy --fs-uuid --set=root 11111111-2222-3333-4444-555555555555\n\
         \tlinux\t/{KERNEL} root=PARTUUID=0 ro {line}\n\tinitrd\t/boot/initrd.img-6.1.0-18-cloud-amd64\n}}\n"
    );
    fs::create_dir_all(here.join("tree/boot/grub")).unwrap();
    fs::write(here.join("tree").join(KERNEL), kernel).unwrap();
    let initrd = "tree/boot/initrd.img-6.1.0-18-cloud-amd64";
    fs::write(here.join(initrd), [7; 4096]).unwrap();
    fs::write(here.join("tree/boot/grub/grub.cfg"), entry).unwrap();
    let root = fs::File::create(here.join("root.img")).unwrap();
    root.set_len(32 << 20).unwrap();
    program(
        here,
        "/usr/sbin/mkfs.ext4",
        &["-q", "-F", "-d", "tree", "root.img"],
    )
    .ok();
    let disk = fs::File::create(here.join("debian.img")).unwrap();
    disk.set_len(64 << 20).unwrap();
    fs::write(here.join("table"), TABLE).unwrap();
    let mut made = command(here, "/usr/sbin/sfdisk", &["-q", "debian.img"]);
    let table = fs::File::open(here.join("table")).unwrap();
    assert!(
        made.stdin(table)
            .status()
            .expect("scripts/setup.sh installs sfdisk")
            .success()
    );
    disk.write_all_at(&fs::read(here.join("root.img")).unwrap(), 1 << 20)
        .unwrap();
}

/// What the guest said on a console that is stderr.
fn events(stderr: &str, event: &str) -> Vec<Value> {
    let lines = stderr.lines().filter(|line| line.starts_with('{'));
    let said =
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")));
    said.filter(|said: &Value| said["event"] == event).collect()
}

fn of_type<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["type"] == kind).collect()
}

/// The two commands with which `docs/vmm.md` starts an installed disk, as words after `diskferry`.
fn documented() -> [Vec<String>; 2] {
    let text = include_str!("../../docs/vmm.md");
    let (_, section) = text.split_once("\n## Booting an installed disk\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut commands = section
        .lines()
        .filter_map(|line| line.strip_prefix("    diskferry "));
    let words = |command: &str| command.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let commands = [commands.next(), commands.next()].map(|command| words(command.unwrap()));
    assert_eq!((&*commands[0][0], &*commands[1][0]), ("convert", "run"));
    commands
}

#[test]
fn a_disk_with_a_system_on_it_is_started_with_two_commands() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    let line = "console=ttyS0,115200 do=hello do=verify from=40M length=8M";
    install(here, line, vmm::guest::IMAGE);
    let [convert, run] = documented();
    let image = convert[1].as_str();
    program(
        here,
        "qemu-img",
        &["convert", "-c", "-O", "qcow2", "debian.img", image],
    )
    .ok();
    diskferry(here, &convert).ok();
    let info = diskferry(here, &["--json", "info", "debian.vhdx"])
        .ok()
        .json();
    assert_eq!(info["virtual_size"], 16_u64 << 40);
    let ran = diskferry(here, &[&run[..], &["--json".to_owned()]].concat()).ok();
    let lines = ran.json_lines();
    let [boot] = of_type(&lines, "boot")[..] else {
        panic!("{}", ran.stdout)
    };
    assert_eq!(boot["disk"], "debian");
    assert_eq!(boot["partition"], "partition 1");
    assert_eq!(boot["source"], "grub");
    assert_eq!(boot["title"], "Debian GNU/Linux");
    assert_eq!(boot["kernel"], format!("/{KERNEL}"));
    assert_eq!(boot["kernel_bytes"], vmm::guest::IMAGE.len());
    assert_eq!(boot["initrd_bytes"], 4096);
    assert_eq!(boot["command_line"], format!("root=PARTUUID=0 ro {line}"));
    assert_eq!(boot["console_added"], false);
    assert_eq!(of_type(&lines, "summary")[0]["end"], "power_off");
    assert_eq!(events(&ran.stderr, "hello").len(), 2);
    let verified = events(&ran.stderr, "verified");
    assert!(!verified.is_empty() && verified.iter().all(|said| said["wrong"] == 0));
    // What it wrote is there for the next start, which a description begins; its words go behind the disk's.
    let words = "do=verify only=read from=40M length=8M";
    let text = format!(
        "vcpus = 2\nmemory = \"64M\"\nboot.from_disk = \"debian\"\nboot.command_line = \"{words}\"\n\
         [[disk]]\npath = \"debian.vhdx\"\n"
    );
    fs::write(here.join("vm.toml"), text).unwrap();
    let ran = diskferry(here, &["run", "vm.toml", "--json"]).ok();
    let boot = ran.json_lines()[0].clone();
    assert!(
        boot["command_line"].as_str().unwrap().ends_with(words),
        "{boot}"
    );
    diskferry(here, &["check", "debian.vhdx"]).ok();
}

#[test]
fn sectors_of_four_kibibytes_and_differencing_disks_are_started_from() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    install(here, "do=hello", vmm::guest::IMAGE);
    // A file system straight on the disk: the table would be one for other sectors.
    let large = ["convert", "root.img", "large.vhdx", "--sector-size", "4096"];
    diskferry(here, &large).ok();
    let run = ["run", "large.vhdx", "--memory", "64M", "--json"];
    let ran = diskferry(here, &run).ok();
    assert_eq!(ran.json_lines()[0]["partition"], "no partition");
    assert_eq!(ran.json_lines()[0]["console_added"], true);
    diskferry(here, &["convert", "debian.img", "debian.vhdx"]).ok();
    diskferry(here, &["snapshot", "debian.vhdx", "child.avhdx"]).ok();
    let run = ["run", "child.avhdx", "--memory", "64M", "--json"];
    assert_eq!(diskferry(here, &run).ok().json_lines()[0]["disk"], "child");
    let wrong = [
        "convert",
        "debian.img",
        "wrong.vhdx",
        "--sector-size",
        "4096",
    ];
    diskferry(here, &wrong).ok();
    let ran = diskferry(here, &["run", "wrong.vhdx"]).fails(2);
    assert!(
        ran.stderr.contains("sectors of 512 bytes"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_machine_that_was_killed_starts_from_its_disk_again() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    install(here, "do=ledger from=40M blocks=256", vmm::guest::IMAGE);
    diskferry(here, &["convert", "debian.img", "debian.vhdx"]).ok();
    let words = ["run", "debian.vhdx", "--memory", "64M"];
    let mut running = Running::start(here, &words);
    running.says("running");
    let ask = |verb: &str| diskferry(here, &["machine", verb, "debian.vhdx", "--json"]);
    assert_eq!(ask("status").ok().json()["state"], "running");
    while !running.log().contains("\"ledger\"") {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    running.kill();
    let mut running = Running::start(here, &words);
    running.says("running");
    running.end();
}

/// An ELF program that does nothing but to ask for a reset: `mov al, 0xFE; out 0x64, al; jmp $`.
fn resets() -> Vec<u8> {
    const AT: u64 = 2 << 20;
    let code = [0xB0, 0xFE, 0xE6, 0x64, 0xEB, 0xFE];
    let mut note: Vec<u8> = [10_u32, 4, 1]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    note.extend(b"Diskferry\0\0\0");
    note.extend(1_u32.to_le_bytes());
    let mut file = b"\x7FELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3E\0\x01\0\0\0".to_vec();
    let notes = 64 + 2 * 56;
    let begin = (notes + note.len()) as u64;
    for field in [AT, 64, 0] {
        file.extend(field.to_le_bytes());
    }
    file.extend(b"\0\0\0\0\x40\0\x38\0\x02\0\0\0\0\0\0\0");
    for (kind, flags, offset, address, bytes) in [
        (1_u32, 5_u32, begin, AT, code.len() as u64),
        (4, 4, notes as u64, 0, note.len() as u64),
    ] {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for field in [offset, address, address, bytes, bytes, 1] {
            file.extend(field.to_le_bytes());
        }
    }
    file.extend(note);
    file.extend(code);
    file
}

#[test]
fn a_machine_that_begins_anew_reads_its_disk_anew() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    install(here, "", &resets());
    diskferry(here, &["convert", "debian.img", "debian.vhdx"]).ok();
    let words = ["run", "debian.vhdx", "--memory", "64M", "--json"];
    let mut running = command(here, "diskferry", &words)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(running.stdout.take().unwrap()).lines();
    let boots = said
        .map_while(Result::ok)
        .filter(|line| line.contains("\"boot\""));
    assert_eq!(boots.take(3).count(), 3);
    running.kill().unwrap();
    running.wait().unwrap();
}

#[test]
fn what_a_disk_would_start_is_shown_without_starting_it() {
    let here = folder();
    let here = here.path();
    install(here, "quiet", b"no kernel of any kind");
    diskferry(here, &["convert", "debian.img", "debian.vhdx"]).ok();
    let before = fs::read(here.join("debian.vhdx")).unwrap();
    let shown = diskferry(here, &["run", "debian.vhdx", "--dry-run", "--json"]).ok();
    let boot = shown.json();
    assert_eq!(
        (&boot["type"], &boot["kernel_bytes"]),
        (&"boot".into(), &21.into())
    );
    assert_eq!(
        boot["command_line"],
        "root=PARTUUID=0 ro quiet console=ttyS0"
    );
    let shown = diskferry(here, &["run", "debian.vhdx", "--dry-run"]).ok();
    for named in [
        "Debian GNU/Linux",
        "partition 1",
        KERNEL,
        "console=ttyS0 was added",
    ] {
        assert!(shown.stderr.contains(named), "{named} in: {}", shown.stderr);
    }
    assert_eq!(fs::read(here.join("debian.vhdx")).unwrap(), before);
}

#[test]
fn what_cannot_be_started_from_a_disk_is_refused_with_what_to_do() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "empty.vhdx", "1G"]).ok();
    let refused = |words: &[&str], code: i32, named: &str| {
        let ran = diskferry(here, words).fails(code);
        assert!(ran.stderr.contains(named), "{named} in: {}", ran.stderr);
    };
    for words in [
        &["run", "empty.vhdx"][..],
        &["run", "empty.vhdx", "--dry-run"],
    ] {
        refused(words, 2, "no partition: holds nothing that is known");
        refused(words, 2, "boot.kernel");
    }
    fs::write(
        here.join("vm.toml"),
        "memory = \"64M\"\nboot.kernel = \"built-in\"\n",
    )
    .unwrap();
    refused(&["run", "vm.toml", "--dry-run"], 2, "--boot-from-disk");
    refused(&["run", "vm.toml", "--boot-from-disk"], 2, "no disk");
    refused(&["run", "vm.toml", "--memory", "1G"], 2, "vm.toml");
    refused(&["run", "empty.vhdx", "--memory", "1M"], 2, "memory");
    refused(&["run", "nothing.vhdx"], 1, "nothing.vhdx");
}
