//! Give the space of discarded data back to the host, in small steps, while the disk is in use.

use vdisk::create::CreateOptions;
use vdisk::disk::{Disk, OpenOptions, create_file, random_bits};

const MIB: u64 = 1 << 20;

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.vhdx");
    create_file(&path, CreateOptions::new(1 << 30, &mut random_bits))?;
    let mut disk = Disk::open(&path, &OpenOptions::default())?;
    for part in 0..16 {
        disk.write_at(part * 4 * MIB, &vec![1 + part as u8; MIB as usize])?;
    }
    disk.discard(0, 60 * MIB)?;
    disk.flush()?;
    let before = path.metadata()?.len();

    loop {
        // Reads and writes may come between two steps.
        let so_far = disk.compact(false, 4 * MIB)?;
        println!("{} bytes moved, {} needed", so_far.moved, so_far.end);
        if so_far.done {
            break;
        }
    }
    let mut back = [0; 4096];
    disk.read_at(60 * MIB, &mut back)?;
    assert_eq!(back, [16; 4096]);
    assert!(path.metadata()?.len() + 20 * MIB < before);
    disk.close()?;
    Ok(())
}
