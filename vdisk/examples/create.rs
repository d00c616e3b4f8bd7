//! Create a disk of 16 TiB, write to it, close it, and read back what was written.

use vdisk::create::CreateOptions;
use vdisk::disk::{Disk, OpenOptions, create_file, random_bits};

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.vhdx");

    create_file(&path, CreateOptions::new(16 << 40, &mut random_bits))?;
    println!("a disk of 16 TiB takes {} bytes", path.metadata()?.len());

    let mut disk = Disk::open(&path, &OpenOptions::default())?;
    disk.write_at(5 << 40, b"far inside")?;
    // Written is not durable: a power cut may still take it back. After this it may not.
    disk.flush()?;
    disk.close()?;

    let reading = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let mut disk = Disk::open(&path, &reading)?;
    let mut back = [0; 10];
    disk.read_at(5 << 40, &mut back)?;
    assert_eq!(&back, b"far inside");
    Ok(())
}
