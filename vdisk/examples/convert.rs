//! Turn a raw image into VHDX; holes stay holes.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use vdisk::create::CreateOptions;
use vdisk::disk::{Disk, ImageFormat, OpenOptions, create_file, random_bits};

const PIECE: u64 = 1 << 20;

/// A sparse raw image to begin with.
fn raw_image(path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.set_len(256 << 20)?;
    file.seek(SeekFrom::Start(100 << 20))?;
    file.write_all(&vec![7; 3 << 20])
}

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let (from, to) = (
        folder.path().join("disk.img"),
        folder.path().join("disk.vhdx"),
    );
    raw_image(&from)?;

    let reading = OpenOptions {
        read_only: true,
        format: Some(ImageFormat::Raw),
        ..OpenOptions::default()
    };
    let mut source = Disk::open(&from, &reading)?;
    create_file(&to, CreateOptions::new(source.size(), &mut random_bits))?;
    let mut target = Disk::open(&to, &OpenOptions::default())?;

    let (mut offset, mut copied) = (0, 0);
    let mut buffer = vec![0; PIECE as usize];
    while offset < source.size() {
        for extent in source.status(offset, source.size() - offset)? {
            let end = offset + extent.len;
            while offset < end {
                let len = PIECE.min(end - offset);
                if !extent.zero {
                    let piece = &mut buffer[..len as usize];
                    source.read_at(offset, piece)?;
                    target.write_at(offset, piece)?;
                    copied += len;
                }
                offset += len;
            }
        }
    }
    // Durable and closed; dropped instead, its log would be replayed at the next open.
    target.close()?;
    println!("copied {copied} bytes of {}", source.size());
    assert!(copied >= 3 << 20);
    Ok(())
}
