//! Promises of chains: a child reads its parent and keeps what is written to itself, a parent is found
//! only where it may be, and another program reads the same.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use vdisk::chain::{MOST_LAYERS, ParentSearch, create_child, open_chain};
use vdisk::check::{check, check_parents};
use vdisk::create::CreateOptions;
use vdisk::disk::{Disk, OpenOptions, create_file, random_bits};
use vdisk::format::{Code, Guid, ParentLocator};
use vdisk::info::info;
use vdisk::storage::FileStorage;
use vdisk::{ErrorKind, Result};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 80 * MIB;

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

fn base(path: &Path, block: u32) -> Result<()> {
    let mut random = random_bits;
    let mut options = CreateOptions::new(SIZE, &mut random);
    options.block_size = Some(block);
    create_file(path, options)
}

fn child(path: &Path, parent: &Path, block: u32) -> Result<()> {
    let mut random = random_bits;
    let mut options = CreateOptions::new(0, &mut random);
    options.block_size = Some(block);
    create_child(path, parent, options)
}

fn reading() -> OpenOptions {
    OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    }
}

fn write_about(disk: &mut Disk, content: &mut [u8], dice: &mut Dice) -> Result<()> {
    for step in 0..120_u64 {
        let offset = dice.below(SIZE - 1);
        let len = (1 + dice.below(300_000)).min(SIZE - offset);
        let range = offset as usize..(offset + len) as usize;
        if dice.below(4) == 0 {
            content[range].fill(0);
            disk.zero(offset, len)?;
        } else {
            content[range.clone()].fill(1 + (step % 255) as u8);
            disk.write_at(offset, &content[range])?;
        }
    }
    Ok(())
}

fn whole(disk: &mut Disk) -> Result<Vec<u8>> {
    let mut back = vec![0xEE; SIZE as usize];
    disk.read_at(0, &mut back)?;
    Ok(back)
}

/// A chain of four in `folder`, each written through and closed; its paths and contents, the base first.
fn chain_of_four(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut dice = Dice(7);
    let mut content = vec![0; SIZE as usize];
    let mut made: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for (number, block) in [1_u32, 32, 2, 1].into_iter().enumerate() {
        let path = folder.join(format!("disk{number}.vhdx"));
        match made.last() {
            None => base(&path, block << 20)?,
            Some((parent, _)) => child(&path, parent, block << 20)?,
        }
        let mut disk = Disk::open(&path, &OpenOptions::default())?;
        write_about(&mut disk, &mut content, &mut dice)?;
        disk.close()?;
        made.push((path, content.clone()));
    }
    Ok(made)
}

#[test]
fn every_disk_of_a_chain_reads_as_it_was_left() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    for (path, content) in chain_of_four(folder.path())? {
        let mut disk = Disk::open(&path, &reading())?;
        assert!(whole(&mut disk)? == content, "{}", path.display());
        let report = check(&mut FileStorage::open(&path, false)?)?;
        assert!(report.is_sound(), "{}: {report:?}", path.display());
    }
    Ok(())
}

#[test]
fn a_block_written_whole_needs_its_parent_no_more() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (parent, path) = (
        folder.path().join("base.vhdx"),
        folder.path().join("a.vhdx"),
    );
    base(&parent, 1 << 20)?;
    // Blocks whose bits take two pages.
    child(&path, &parent, 32 << 20)?;
    let mut disk = Disk::open(&path, &OpenOptions::default())?;
    for piece in 0..32 {
        disk.write_at(piece * MIB, &vec![piece as u8; MIB as usize])?;
    }
    disk.write_at(40 * MIB, &[1; 512])?;
    disk.close()?;
    let report = check(&mut FileStorage::open(&path, false)?)?;
    assert_eq!(report.blocks.fully_present, 1, "{report:?}");
    assert_eq!(report.blocks.partially_present, 1, "{report:?}");
    Ok(())
}

#[test]
fn a_parent_is_opened_only_where_it_may_be() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (bases, disks) = (folder.path().join("bases"), folder.path().join("disks"));
    fs::create_dir(&bases).unwrap();
    fs::create_dir(&disks).unwrap();
    let (parent, path) = (bases.join("base.vhdx"), disks.join("a.vhdx"));
    base(&parent, 1 << 20)?;
    child(&path, &parent, 1 << 20)?;
    let open = |search: &ParentSearch| open_chain(&path, &reading(), search).map(drop);
    let refused = open(&ParentSearch::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoParent, "{refused}");
    assert!(
        refused.to_string().contains("outside the folders"),
        "{refused}"
    );
    let folders = |folders: &[&Path]| ParentSearch {
        parent: None,
        folders: folders.iter().map(|&folder| folder.to_owned()).collect(),
    };
    open(&folders(&[&disks, &bases]))?;
    open(&folders(&[folder.path()]))?;
    open(&ParentSearch {
        parent: Some(parent.clone()),
        folders: Vec::new(),
    })?;
    // A link that leads out of the folder is as far out as a path.
    let inside = disks.join("base.vhdx");
    symlink(&parent, &inside).unwrap();
    let mut random = random_bits;
    let linked = disks.join("linked.vhdx");
    let version = info(&mut FileStorage::open(&parent, false)?)?
        .ids
        .data_write;
    let mut options = CreateOptions::new(SIZE, &mut random);
    options.parent = Some(ParentLocator::new(version, "base.vhdx"));
    create_file(&linked, options)?;
    let refused = open_chain(&linked, &reading(), &ParentSearch::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoParent, "{refused}");
    Ok(())
}

#[test]
fn a_pipe_in_the_place_of_a_parent_is_refused_at_once() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.vhdx");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let path = folder.path().join("a.vhdx");
    built_on(&path, 1, (2, "pipe.vhdx"))?;
    let refused = Disk::open(&path, &reading()).unwrap_err();
    assert!(refused.to_string().contains("regular file"), "{refused}");
    Ok(())
}

#[test]
fn a_parent_that_changed_is_refused() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (parent, path) = (
        folder.path().join("base.vhdx"),
        folder.path().join("a.vhdx"),
    );
    base(&parent, 1 << 20)?;
    child(&path, &parent, 1 << 20)?;
    let mut disk = Disk::open(&parent, &OpenOptions::default())?;
    disk.write_at(0, &[1; 512])?;
    disk.close()?;
    let refused = Disk::open(&path, &reading()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    assert!(refused.to_string().contains("changed"), "{refused}");
    Ok(())
}

/// An image whose version is known before it is made, built on `parent`.
fn built_on(path: &Path, version: u128, parent: (u128, &str)) -> Result<()> {
    let mut random = || version;
    let mut options = CreateOptions::new(SIZE, &mut random);
    options.parent = Some(ParentLocator::new(Guid::from_random(parent.0), parent.1));
    create_file(path, options)
}

#[test]
fn a_chain_that_leads_back_to_itself_is_refused() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    built_on(&at("self.vhdx"), 1, (1, "self.vhdx"))?;
    built_on(&at("a.vhdx"), 2, (3, "b.vhdx"))?;
    built_on(&at("b.vhdx"), 3, (2, "./a.vhdx"))?;
    for name in ["self.vhdx", "a.vhdx"] {
        let refused = Disk::open(&at(name), &reading()).unwrap_err();
        assert!(refused.to_string().contains("on itself"), "{refused}");
    }
    Ok(())
}

#[test]
fn a_chain_has_at_most_256_disks() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let at = |number: usize| folder.path().join(format!("{number}.vhdx"));
    base(&at(1), 1 << 20)?;
    for number in 2..=MOST_LAYERS + 1 {
        child(&at(number), &at(number - 1), 1 << 20)?;
    }
    let mut disk = Disk::open(&at(MOST_LAYERS), &reading())?;
    disk.read_at(SIZE - 512, &mut [0; 512])?;
    let refused = Disk::open(&at(MOST_LAYERS + 1), &reading()).unwrap_err();
    assert!(refused.to_string().contains("more than 255"), "{refused}");
    let code = code_of_parents(&at(MOST_LAYERS + 1))?;
    assert_eq!(code, Some(Code::ChainTooDeep));
    Ok(())
}

/// What a look at the parents of a disk finds; nothing is no code.
fn code_of_parents(path: &Path) -> Result<Option<Code>> {
    let found = check_parents(path, &ParentSearch::default(), (false, true))?;
    assert!(found.findings.len() < 2 && (found.findings.is_empty() || found.disks.is_empty()));
    Ok(found.findings.first().map(|finding| finding.code))
}

#[test]
fn a_check_of_a_chain_tells_what_is_wrong_with_a_parent() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (parent, path) = (at("base.vhdx"), at("a.vhdx"));
    base(&parent, 1 << 20)?;
    child(&path, &parent, 1 << 20)?;
    assert_eq!(code_of_parents(&path)?, None);
    let found = check_parents(&path, &ParentSearch::default(), (false, true))?;
    assert!(found.disks.len() == 1 && found.disks[0].1.is_sound());

    let writer = Disk::open(&parent, &OpenOptions::default())?;
    assert_eq!(code_of_parents(&path)?, Some(Code::ParentInUse));
    drop(writer);
    fs::rename(&parent, at("elsewhere")).unwrap();
    assert_eq!(code_of_parents(&path)?, Some(Code::ParentNotFound));
    fs::rename(at("elsewhere"), &parent).unwrap();
    let sound = fs::read(&parent).unwrap();
    fs::write(&parent, [1; 4096]).unwrap();
    assert_eq!(code_of_parents(&path)?, Some(Code::ParentUnusable));
    fs::write(&parent, sound).unwrap();
    let mut disk = Disk::open(&parent, &OpenOptions::default())?;
    disk.write_at(0, &[1; 512])?;
    disk.close()?;
    assert_eq!(code_of_parents(&path)?, Some(Code::ParentChanged));

    built_on(&at("self.vhdx"), 1, (1, "self.vhdx"))?;
    assert_eq!(code_of_parents(&at("self.vhdx"))?, Some(Code::ChainCycle));
    let mut random = || 77;
    let mut options = CreateOptions::new(SIZE, &mut random);
    options.logical_sector = 4096;
    create_file(&at("large.vhdx"), options)?;
    built_on(&at("small.vhdx"), 78, (77, "large.vhdx"))?;
    assert_eq!(
        code_of_parents(&at("small.vhdx"))?,
        Some(Code::ParentSectors)
    );
    Ok(())
}

#[test]
fn what_the_child_says_of_its_parent_is_told() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (parent, path) = (
        folder.path().join("base.vhdx"),
        folder.path().join("a.vhdx"),
    );
    base(&parent, 1 << 20)?;
    child(&path, &parent, 1 << 20)?;
    let of_parent = info(&mut FileStorage::open(&parent, false)?)?;
    let of_child = info(&mut FileStorage::open(&path, false)?)?;
    let told = of_child.parent.expect("a child tells of its parent");
    assert_eq!(told.relative_path.as_deref(), Some("./base.vhdx"));
    assert_eq!(told.versions, [of_parent.ids.data_write]);
    assert_eq!(of_child.ids.disk, of_parent.ids.disk);
    assert_eq!(of_child.virtual_size, SIZE);
    Ok(())
}

/// The bytes of a chain, the base first, as libvhdi reads them.
const READ_CHAIN: &str = "
import sys, pyvhdi
disks = []
for path in sys.argv[1:]:
    disk = pyvhdi.file()
    disk.open(path)
    if disks:
        disk.set_parent(disks[-1])
    disks.append(disk)
below = disks[-1]
left = below.get_media_size()
while left:
    data = below.read_buffer(min(left, 1 << 20))
    sys.stdout.buffer.write(data)
    left -= len(data)
";

/// What libvhdi reads of the last disk of a chain.
fn read_by_libvhdi(chain: &[&Path]) -> Vec<u8> {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", READ_CHAIN]).args(chain);
    let output = command.output().unwrap_or_else(|error| {
        panic!("/usr/bin/python3 cannot be run ({error}): install python3-libvhdi")
    });
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "install python3-libvhdi? {complaints}"
    );
    output.stdout
}

#[test]
fn a_child_of_another_size_is_read_the_same_by_libvhdi() -> Result<()> {
    if std::env::var_os("DISKFERRY_NO_INTEROP").is_some() {
        return Ok(());
    }
    let folder = tempfile::tempdir().unwrap();
    let (parent, path) = (
        folder.path().join("base.vhdx"),
        folder.path().join("a.vhdx"),
    );
    base(&parent, 1 << 20)?;
    let mut disk = Disk::open(&parent, &OpenOptions::default())?;
    // Not beyond the block in which the child ends once: libvhdi takes a block that is zero (state 2)
    // for one that its parent shows. Nor is anything cut off: it heeds the bits of absent blocks.
    let mut content = vec![5; 34 * MIB as usize];
    disk.write_at(0, &content)?;
    disk.close()?;
    child(&path, &parent, 2 << 20)?;
    content.resize(SIZE as usize, 0);
    let (cut, size) = ((33 * MIB + 4096) as usize, 78 * MIB);
    let mut disk = Disk::open(&path, &OpenOptions::default())?;
    disk.write_at(3 * MIB, &[6; 8192])?;
    content[3 * MIB as usize..][..8192].fill(6);
    assert!(disk.resize(cut as u64, false).is_err());
    disk.resize(cut as u64, true)?;
    disk.resize(size, false)?;
    disk.close()?;
    content.truncate(cut);
    content.resize(size as usize, 0);
    let mut disk = Disk::open(&path, &reading())?;
    let mut ours = vec![0xEE; size as usize];
    disk.read_at(0, &mut ours)?;
    assert!(ours == content, "read by ourselves");
    let read = read_by_libvhdi(&[&parent, &path]);
    assert!(read == content, "by libvhdi");
    Ok(())
}

#[test]
fn libvhdi_reads_the_same_through_a_chain() -> Result<()> {
    if std::env::var_os("DISKFERRY_NO_INTEROP").is_some() {
        return Ok(());
    }
    let folder = tempfile::tempdir().unwrap();
    let chain = chain_of_four(folder.path())?;
    for count in 1..=chain.len() {
        let paths: Vec<&Path> = chain[..count]
            .iter()
            .map(|(path, _)| path.as_path())
            .collect();
        let read = read_by_libvhdi(&paths);
        assert!(read == chain[count - 1].1, "a chain of {count}");
    }
    Ok(())
}
