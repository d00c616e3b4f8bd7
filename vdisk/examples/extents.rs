//! List which parts of a disk hold data, without reading them.

use vdisk::create::CreateOptions;
use vdisk::disk::{Disk, OpenOptions, create_file, random_bits};

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.vhdx");
    create_file(&path, CreateOptions::new(1 << 30, &mut random_bits))?;
    let mut disk = Disk::open(&path, &OpenOptions::default())?;
    disk.write_at(0, &vec![1; 65536])?;
    disk.write_at(700 << 20, &[2; 4096])?;

    let (mut offset, mut allocated) = (0, 0);
    while offset < disk.size() {
        // An answer covers at least one byte and may end early: ask again from there.
        for extent in disk.status(offset, disk.size() - offset)? {
            println!(
                "{offset:>12} {:>12} allocated: {} zero: {}",
                extent.len, extent.allocated, extent.zero
            );
            allocated += if extent.allocated { extent.len } else { 0 };
            offset += extent.len;
        }
    }
    assert!((65536 + 4096..=4 << 20).contains(&allocated));
    disk.close()?;
    Ok(())
}
