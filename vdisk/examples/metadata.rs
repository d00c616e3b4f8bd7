//! Keep a note of one's own in a disk's file, which goes with the disk wherever the file goes.

use vdisk::create::CreateOptions;
use vdisk::disk::{create_file, random_bits};
use vdisk::format::Guid;
use vdisk::metadata;
use vdisk::storage::FileStorage;

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.vhdx");
    create_file(&path, CreateOptions::new(1 << 30, &mut random_bits))?;

    // Whoever keeps items chooses a GUID for each kind, once and for all.
    let owner = Guid::from_random(0x0123_4567_89AB_CDEF);
    let mut file = FileStorage::open(&path, true)?;
    let of_disk = false;
    metadata::set(&mut file, owner, ("Ada".into(), of_disk), &mut random_bits)?;

    for item in metadata::list(&mut file)? {
        println!("{} {:?} {} bytes", item.id, item.name, item.len);
    }
    let kept = metadata::get(&mut file, owner)?;
    assert_eq!(kept.as_deref(), Some(&b"Ada"[..]));
    assert!(metadata::remove(&mut file, owner, &mut random_bits)?);
    Ok(())
}
