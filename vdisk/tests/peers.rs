//! Other readers of VHDX written in Rust see in our images what we see: the crate `vhdx-core`.

use std::io::Read as _;
use std::path::Path;

use vdisk::Result;
use vdisk::chain::create_child;
use vdisk::create::CreateOptions;
use vdisk::disk::{Disk, OpenOptions, create_file, random_bits};
use vhdx::VhdxReader;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 40 * MIB;

/// Writes, zeroes and discards here and there, each seed elsewhere.
fn write_about(path: &Path, seed: u64) -> Result<()> {
    let mut disk = Disk::open(path, &OpenOptions::default())?;
    let mut dice = seed;
    for step in 0..60_u64 {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let offset = (dice >> 33) % (SIZE / 4096) * 4096;
        let len = (1 + step % 40).min((SIZE - offset) / 4096) * 4096;
        match step % 7 {
            5 => disk.zero(offset, len)?,
            _ => disk.write_at(offset, &vec![step as u8 + 1; len as usize])?,
        }
    }
    disk.close()
}

fn as_we_read(path: &Path) -> Result<Vec<u8>> {
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let mut content = vec![0xEE; SIZE as usize];
    Disk::open(path, &options)?.read_at(0, &mut content)?;
    Ok(content)
}

fn as_they_read(mut reader: VhdxReader) -> Vec<u8> {
    assert_eq!(reader.virtual_disk_size(), SIZE);
    let mut content = Vec::new();
    reader
        .read_to_end(&mut content)
        .expect("it reads to the end");
    content
}

fn base(path: &Path, sector: u32, fixed: bool) -> Result<()> {
    let mut random = random_bits;
    let mut options = CreateOptions::new(SIZE, &mut random);
    options.block_size = Some(MIB as u32);
    options.logical_sector = sector;
    options.fixed = fixed;
    create_file(path, options)
}

#[test]
fn vhdx_core_reads_the_same_in_dynamic_and_fixed_disks_of_both_sector_sizes() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    for (number, (sector, fixed)) in [(512, false), (4096, false), (512, true)]
        .iter()
        .enumerate()
    {
        let path = folder.path().join(format!("{number}.vhdx"));
        base(&path, *sector, *fixed)?;
        write_about(&path, 7 + number as u64)?;
        let theirs = VhdxReader::open(&path).expect("it opens");
        assert_eq!(theirs.logical_sector_size(), *sector);
        assert!(
            as_they_read(theirs) == as_we_read(&path)?,
            "{sector}, {fixed}"
        );
    }
    Ok(())
}

#[test]
fn vhdx_core_reads_the_same_in_a_disk_that_is_built_on_another_one() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (parent, child) = (folder.path().join("a.vhdx"), folder.path().join("b.vhdx"));
    base(&parent, 512, false)?;
    write_about(&parent, 3)?;
    let mut random = random_bits;
    let mut options = CreateOptions::new(0, &mut random);
    options.block_size = Some(MIB as u32);
    create_child(&child, &parent, options)?;
    write_about(&child, 4)?;
    let beneath = VhdxReader::open(&parent).expect("the parent opens");
    let bytes = std::fs::read(&child).unwrap();
    let theirs = VhdxReader::from_bytes_with_parent(bytes, beneath).expect("the child opens");
    assert!(as_they_read(theirs) == as_we_read(&child)?);
    Ok(())
}
