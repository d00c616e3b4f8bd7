//! Make a disk that is built on another one a disk of its own.

use vdisk::chain::{ParentSearch, create_child};
use vdisk::create::CreateOptions;
use vdisk::disk::{Disk, OpenOptions, create_file, random_bits};
use vdisk::merge::flatten;

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let (base, child) = (
        folder.path().join("base.vhdx"),
        folder.path().join("child.vhdx"),
    );
    create_file(&base, CreateOptions::new(1 << 30, &mut random_bits))?;
    let mut disk = Disk::open(&base, &OpenOptions::default())?;
    disk.write_at(0, b"of the base")?;
    disk.close()?;
    create_child(&child, &base, CreateOptions::new(1 << 30, &mut random_bits))?;

    let done = flatten(&child, &ParentSearch::default(), &mut |_| Ok(()))?;
    println!("{} bytes became the disk's own", done.copied);
    assert!(done.had_parent);

    // The base is not needed any more.
    std::fs::remove_file(&base)?;
    let mut disk = Disk::open(&child, &OpenOptions::default())?;
    let mut back = [0; 11];
    disk.read_at(0, &mut back)?;
    assert_eq!(&back, b"of the base");
    Ok(())
}
