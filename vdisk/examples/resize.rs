//! Give a disk another size, and see that no data is cut off unasked.

use vdisk::ErrorKind;
use vdisk::create::CreateOptions;
use vdisk::disk::{Disk, OpenOptions, create_file, random_bits};

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.vhdx");
    create_file(&path, CreateOptions::new(1 << 30, &mut random_bits))?;
    let mut disk = Disk::open(&path, &OpenOptions::default())?;

    disk.resize(8 << 40, false)?;
    disk.write_at((8 << 40) - 5, b"there")?;

    let refused = disk.resize(1 << 30, false).expect_err("data is in the way");
    println!("{refused}");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    assert_eq!(disk.size(), 8 << 40);

    disk.resize(1 << 30, true)?;
    assert_eq!(disk.size(), 1 << 30);
    disk.close()?;
    Ok(())
}
