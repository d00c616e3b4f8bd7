//! Look for everything that is wrong with an image. Nothing is changed.

use std::fs::OpenOptions as FileOptions;
use std::io::{Seek, SeekFrom, Write};

use vdisk::check::{Severity, check};
use vdisk::create::CreateOptions;
use vdisk::disk::{create_file, random_bits};
use vdisk::storage::FileStorage;

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.vhdx");
    create_file(&path, CreateOptions::new(1 << 30, &mut random_bits))?;
    let report = check(&mut FileStorage::open(&path, false)?)?;
    assert!(report.is_sound() && report.findings.is_empty());

    // Somebody writes over the first header; the second one serves.
    let mut file = FileOptions::new().write(true).open(&path)?;
    file.seek(SeekFrom::Start(64 << 10))?;
    file.write_all(b"oops")?;
    drop(file);

    let report = check(&mut FileStorage::open(&path, false)?)?;
    for finding in &report.findings {
        println!(
            "{:?} in the {}: {}; {}",
            finding.severity, finding.structure, finding.message, finding.consequence
        );
    }
    assert!(report.is_sound());
    assert_eq!(report.findings[0].severity, Severity::Warning);
    Ok(())
}
