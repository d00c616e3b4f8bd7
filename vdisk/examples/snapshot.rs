//! Keep what a disk holds, go on in a new disk that is built on it, and merge the two again.

use vdisk::chain::{ParentSearch, create_child};
use vdisk::create::CreateOptions;
use vdisk::disk::{Disk, OpenOptions, create_file, random_bits};
use vdisk::merge::commit;

fn first_bytes(disk: &mut Disk) -> vdisk::Result<[u8; 8]> {
    let mut bytes = [0; 8];
    disk.read_at(0, &mut bytes)?;
    Ok(bytes)
}

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let (base, child) = (
        folder.path().join("base.vhdx"),
        folder.path().join("child.vhdx"),
    );
    create_file(&base, CreateOptions::new(1 << 30, &mut random_bits))?;
    let mut disk = Disk::open(&base, &OpenOptions::default())?;
    disk.write_at(0, b"as it is")?;
    disk.close()?;

    // Size, sectors and identity are the base's. The base must not be written from now on.
    create_child(&child, &base, CreateOptions::new(1 << 30, &mut random_bits))?;
    let mut disk = Disk::open(&child, &OpenOptions::default())?;
    assert_eq!(&first_bytes(&mut disk)?, b"as it is");
    disk.write_at(0, b"now else")?;
    disk.close()?;

    // Parents are looked for in the child's folder only, unless told otherwise.
    let merged = commit(&child, &ParentSearch::default(), &mut |_| Ok(()))?;
    println!(
        "{} bytes went to {}",
        merged.written,
        merged.parent.display()
    );
    let mut disk = Disk::open(&base, &OpenOptions::default())?;
    assert_eq!(&first_bytes(&mut disk)?, b"now else");
    Ok(())
}
