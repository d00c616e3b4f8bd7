//! Disks as other programs make them, and what is found on them.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use super::*;

#[path = "tests/failing.rs"]
mod failing;
#[path = "tests/unclean.rs"]
mod unclean;

const KERNEL: &[u8] = b"a kernel";
const INITRD: &[u8] = b"an initrd";
const UUID: &str = "11111111-2222-3333-4444-555555555555";

/// A file as a disk.
struct FileDisk {
    file: File,
    sector: u32,
}

impl BootDisk for FileDisk {
    fn size(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }

    fn sector(&self) -> u32 {
        self.sector
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}

/// Keeps what is written.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs a program that must be there, and succeed, with this on its standard input; returns what it says.
#[track_caller]
fn program(name: &str, words: &[&str], input: &str) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new(name)
        .args(words)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{name}: {e}; scripts/setup.sh installs it"));
    let mut typed = child.stdin.take().unwrap();
    typed.write_all(input.as_bytes()).unwrap();
    drop(typed);
    let ran = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{name} {words:?}: {said}");
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

/// A root file system as Debian lays it out, without a configuration of a boot loader.
struct Root {
    folder: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        let root = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        root.put("boot/vmlinuz-6.1.0-18-cloud-amd64", KERNEL);
        root.put("boot/initrd.img-6.1.0-18-cloud-amd64", INITRD);
        root.put("boot/vmlinuz-6.1.0-9-cloud-amd64", b"old");
        root.put("boot/initrd.img-6.1.0-9-cloud-amd64", b"old");
        root.put("etc/fstab", b"");
        root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join("tree").join(path)
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn with_grub(self) -> Self {
        self.put("boot/grub/grub.cfg", grub::tests::DEBIAN.as_bytes());
        self.put("boot/grub/grubenv", b"# GRUB Environment Block\n########");
        self
    }

    /// Makes its file system in an image of `mebibytes`.
    fn image(&self, mebibytes: u64, options: &[&str]) -> PathBuf {
        let image = self.folder.path().join("root.img");
        let file = File::create(&image).unwrap();
        file.set_len(mebibytes << 20).unwrap();
        let (tree, name) = (self.path(""), image.to_str().unwrap());
        let mut words = vec!["-q", "-F", "-U", UUID, "-d", tree.to_str().unwrap()];
        words.extend(options);
        words.push(name);
        program("mkfs.ext4", &words, "");
        image
    }
}

/// What is found, and the bytes of the two files.
fn found_in(path: &Path, sector: u32) -> Result<(Installed, Vec<u8>, Vec<u8>)> {
    let file = File::open(path).unwrap();
    let (kernel, initrd) = (Kept::default(), Kept::default());
    let files = Files {
        kernel: Box::new(kernel.clone()),
        initrd: Box::new(initrd.clone()),
    };
    let installed = load(Arc::new(FileDisk { file, sector }), files)?;
    let bytes = |kept: Kept| std::mem::take(&mut *kept.0.lock().unwrap());
    Ok((installed, bytes(kernel), bytes(initrd)))
}

/// A disk with the file system in a partition that `table`, of sfdisk, describes; it begins at 1 MiB.
fn disk(root: &Path, table: &str, sector: u32) -> PathBuf {
    let path = root.with_extension(format!("{sector}.disk"));
    let bytes = fs::read(root).unwrap();
    let file = File::create(&path).unwrap();
    file.set_len(bytes.len() as u64 + (4 << 20)).unwrap();
    let name = path.to_str().unwrap();
    if sector == 512 {
        program("sfdisk", &["-q", name], table);
    } else {
        // What sfdisk cannot: a table for other sectors than the file's.
        program("fdisk", &["-b", "4096", "-w", "always", name], FDISK_ROOT);
    }
    file.write_all_at(&bytes, 1 << 20).unwrap();
    path
}

const GPT_ROOT: &str = "label: gpt\nstart=1MiB, size=32MiB, \
                        type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root\nsize=1MiB, \
                        type=21686148-6449-6E6F-744E-656564454649";

/// The same, typed into fdisk for sectors of 4096 bytes.
const FDISK_ROOT: &str = "g\nn\n1\n256\n+8191\nt\n4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\nw\n";

#[test]
fn a_debian_in_a_guid_partition_table_is_found_with_what_grub_would_start() {
    let root = Root::new().with_grub();
    let image = root.image(32, &[]);
    for sector in [512, 4096] {
        let disk = disk(&image, GPT_ROOT, sector);
        let (installed, kernel, initrd) = found_in(&disk, sector).unwrap();
        assert_eq!((kernel.as_slice(), initrd.as_slice()), (KERNEL, INITRD));
        assert_eq!(installed.partition, "partition 1");
        assert_eq!(installed.source, Source::Grub);
        assert_eq!(installed.title.as_deref(), Some("Debian GNU/Linux"));
        assert!(installed.arguments.starts_with("root=PARTUUID=cccc ro "));
        assert_eq!(installed.remarks, [""; 0]);
        // The copy of the table at the end counts when the first one is gone.
        let file = File::options().write(true).open(&disk).unwrap();
        file.write_all_at(&[0; 64], u64::from(sector)).unwrap();
        assert_eq!(found_in(&disk, sector).unwrap().0, installed);
    }
    // So it does when only the entries are damaged.
    let harmed = disk(&image, GPT_ROOT, 512);
    let file = File::options().write(true).open(&harmed).unwrap();
    file.write_all_at(&[0xFF; 16], 1024 + 32).unwrap();
    assert_eq!(found_in(&harmed, 512).unwrap().0.partition, "partition 1");
    file.write_all_at(&[0xFF; 16], (36 << 20) - (33 << 9) + 32)
        .unwrap();
    let wrong = found_in(&harmed, 512).unwrap_err();
    assert!(wrong.to_string().contains("table is damaged"), "{wrong}");
    let wrong = found_in(&disk(&image, GPT_ROOT, 512), 4096).unwrap_err();
    assert!(
        wrong.to_string().contains("sectors of 512 bytes"),
        "{wrong}"
    );
}

#[test]
fn a_master_boot_record_and_no_table_at_all_are_read_too() {
    let root = Root::new().with_grub();
    let image = root.image(32, &[]);
    for (table, name) in [
        (
            "label: dos\nstart=1MiB, size=32MiB, type=83, bootable",
            "partition 1",
        ),
        (
            "label: dos\nstart=1024, size=33MiB, type=5\nstart=2048, size=32MiB, type=83",
            "partition 5",
        ),
    ] {
        let disk = disk(&image, table, 512);
        let (installed, kernel, _) = found_in(&disk, 512).unwrap();
        assert_eq!(
            (installed.partition.as_str(), kernel.as_slice()),
            (name, KERNEL)
        );
    }
    let (installed, ..) = found_in(&image, 512).unwrap();
    assert_eq!(installed.partition, "no partition");
}

#[test]
fn a_partition_for_boot_loaders_comes_before_the_root() {
    let loader = Root {
        folder: tempfile::tempdir().unwrap(),
    };
    loader.put("vmlinuz-7", KERNEL);
    loader.put("initrd-7", INITRD);
    loader.put(
        "loader/entries/seven.conf",
        b"title Seven\nlinux /vmlinuz-7\ninitrd /initrd-7\ninitrd /initrd-7\noptions root=LABEL=r",
    );
    let debian = Root::new().with_grub();
    let (boot, root) = (loader.image(16, &[]), debian.image(32, &[]));
    let table = "label: gpt\nstart=1MiB, size=32MiB, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n\
                 start=40MiB, size=16MiB, type=BC13C2FF-59E6-4262-A352-B275FD6F7172";
    let path = root.with_extension("two");
    let file = File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    program("sfdisk", &["-q", path.to_str().unwrap()], table);
    file.write_all_at(&fs::read(&root).unwrap(), 1 << 20)
        .unwrap();
    file.write_all_at(&fs::read(&boot).unwrap(), 40 << 20)
        .unwrap();
    let (installed, kernel, initrd) = found_in(&path, 512).unwrap();
    assert_eq!(installed.partition, "partition 2");
    assert_eq!(
        (installed.source, kernel.as_slice()),
        (Source::LoaderEntry, KERNEL)
    );
    assert_eq!(initrd, [INITRD, INITRD].concat());
    let (line, added) = installed.command_line("quiet");
    assert_eq!(
        (line.as_str(), added),
        ("root=LABEL=r console=ttyS0 quiet", true)
    );
}

#[test]
fn without_a_boot_loader_links_count_and_lead_nowhere_but_into_the_image() {
    let root = Root::new();
    let image = root.image(32, &[]);
    let (installed, kernel, _) = found_in(&image, 512).unwrap();
    assert_eq!(
        (installed.source, kernel.as_slice()),
        (Source::Newest, KERNEL)
    );
    assert_eq!(installed.arguments, format!("root=UUID={UUID} ro"));
    symlink("boot/vmlinuz-6.1.0-9-cloud-amd64", root.path("vmlinuz")).unwrap();
    symlink(
        "/../../boot/./initrd.img-6.1.0-9-cloud-amd64",
        root.path("initrd.img"),
    )
    .unwrap();
    let (installed, kernel, initrd) = found_in(&root.image(32, &[]), 512).unwrap();
    assert_eq!(installed.source, Source::Links);
    assert_eq!(
        (kernel.as_slice(), initrd.as_slice()),
        (&b"old"[..], &b"old"[..])
    );
    // A link that goes round, one to a file of the host, and a folder in place of a file.
    for (target, told) in [
        ("vmlinuz", Some("/vmlinuz leads too far")),
        ("/proc/self/exe", None),
        ("boot", None),
    ] {
        fs::remove_file(root.path("vmlinuz")).unwrap();
        symlink(target, root.path("vmlinuz")).unwrap();
        let (installed, ..) = found_in(&root.image(32, &[]), 512).unwrap();
        assert_eq!(installed.source, Source::Newest, "{target}");
        let remarks = installed.remarks.join("\n");
        assert_eq!(remarks.is_empty(), told.is_none(), "{target}: {remarks}");
        assert!(remarks.contains(told.unwrap_or_default()), "{remarks}");
    }
}

#[test]
fn file_systems_of_other_sizes_and_features_are_read() {
    let root = Root::new().with_grub();
    for options in [
        &["-b", "1024"][..],
        &["-b", "4096", "-O", "^metadata_csum,^64bit"],
        &["-O", "^extents,^metadata_csum,^64bit"],
        &[
            "-b",
            "1024",
            "-g",
            "1024",
            "-O",
            "meta_bg,^resize_inode,^flex_bg",
        ],
        &[
            "-b",
            "4096",
            "-g",
            "512",
            "-N",
            "4096",
            "-O",
            "meta_bg,^resize_inode",
        ],
    ] {
        let (_, kernel, initrd) = found_in(&root.image(64, options), 512).unwrap();
        assert_eq!(
            (kernel.as_slice(), initrd.as_slice()),
            (KERNEL, INITRD),
            "{options:?}"
        );
    }
}

#[test]
fn descriptors_of_a_file_system_that_was_grown_far_are_found_where_they_are() {
    let root = Root::new().with_grub();
    let options = [
        "-b",
        "4096",
        "-g",
        "512",
        "-N",
        "8192",
        "-O",
        "meta_bg,^resize_inode",
    ];
    let image = root.image(512, &options);
    let name = image.to_str().unwrap();
    // As Linux does it when the room that was kept for descriptors is full: from block 1 of them on.
    program("debugfs", &["-w", "-R", "ssv first_meta_bg 1", name], "");
    let said = program("dumpe2fs", &[name], "");
    assert!(said.contains("First meta block group:   1"), "{said}");
    // Every descriptor has a checksum, and one that is read from elsewhere is refused.
    let (_, kernel, initrd) = found_in(&image, 512).unwrap();
    assert_eq!((kernel.as_slice(), initrd.as_slice()), (KERNEL, INITRD));
}

#[test]
fn a_count_of_blocks_that_does_not_count_is_not_counted() {
    let root = Root::new().with_grub();
    let image = root.image(32, &["-O", "^metadata_csum,^64bit"]);
    let file = File::options().write(true).open(&image).unwrap();
    // The upper half, where there are no wide numbers: a library takes memory for what it says.
    file.write_all_at(&[0xFF, 0xFF, 0, 0], 1024 + 0x150)
        .unwrap();
    assert_eq!(found_in(&image, 512).unwrap().1, KERNEL);
}

#[test]
fn where_nothing_is_to_be_started_it_is_said_what_was_looked_for_and_what_to_do() {
    let empty = Root {
        folder: tempfile::tempdir().unwrap(),
    };
    empty.put("etc/fstab", b"");
    let image = empty.image(8, &[]);
    let said = found_in(&image, 512).unwrap_err().to_string();
    for named in [
        "no partition",
        "/boot/grub/grub.cfg",
        "/boot/vmlinuz-*",
        "boot.kernel",
    ] {
        assert!(said.contains(named), "{named} in: {said}");
    }
    let file = File::create(&image).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(b"XFSB", 0).unwrap();
    let said = found_in(&image, 512).unwrap_err().to_string();
    assert!(said.contains("holds XFS"), "{said}");
    file.set_len(0).unwrap();
    found_in(&image, 512).unwrap_err();
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let root = Root::new();
    root.put("boot/grub/grub.cfg", b"");
    let config = File::options()
        .write(true)
        .open(root.path("boot/grub/grub.cfg"));
    config.unwrap().set_len(2 << 20).unwrap();
    let (installed, ..) = found_in(&root.image(32, &[]), 512).unwrap();
    assert_eq!(installed.source, Source::Newest);
    let said = installed.remarks.join("\n");
    assert!(said.contains("grub.cfg has 2097152 bytes"), "{said}");
    let root = Root::new();
    root.put("boot/vmlinuz-9", b"");
    let kernel = File::options()
        .write(true)
        .open(root.path("boot/vmlinuz-9"));
    kernel.unwrap().set_len((512 << 20) + 1).unwrap();
    let said = found_in(&root.image(32, &[]), 512).unwrap_err().to_string();
    assert!(said.contains("vmlinuz-9"), "{said}");
}
