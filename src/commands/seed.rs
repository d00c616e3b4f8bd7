//! `diskferry receive --seed`: a copy that came another way is what a move begins from.

use std::path::Path;

use mirror::files::{load_record, sidecar_path, write_record};
use mirror::record::Ownership;
use serde::Serialize;
use vdisk::engine::Mark;

use super::alone::{Found, alone, found, of_mirror};
use crate::failure::{Exit, Failure, Result};
use crate::report::Report;

#[derive(Serialize)]
struct Seed {
    disk: String,
    /// Bytes of the disk, which the source's must have as well.
    size: u64,
}

pub(crate) fn run(disk: &Path, report: Report) -> Result<()> {
    let disk = &found(disk)?;
    let shown = disk.display().to_string();
    needs_one(&shown, &sidecar_path(disk))?;
    let size = alone(disk, plant)?;
    let seed = Seed { disk: shown, size };
    report.result("seed", &seed, |seed| {
        format!(
            "{} is a seed: a move that brings a disk of that name compares all of it and sends what is different",
            seed.disk
        )
    })
}

/// Refuse what has a record that says more.
fn needs_one(shown: &str, record: &Path) -> Result<()> {
    let known = load_record(record).map_err(|e| of_mirror(shown, &e))?;
    if known.is_none_or(|known| known.is_seed()) {
        return Ok(());
    }
    let what = format!("{shown}: has an ownership record already");
    let hint = "a disk that was being received, or was handed over, needs no --seed";
    Err(Failure::new(Exit::InUse, what).hint(hint))
}

/// Its size.
fn plant(found: &Found) -> Result<u64> {
    // Nobody else has the image by now.
    needs_one(&found.shown, &found.record)?;
    // First the mark: what may be torn is refused by other programs from then on.
    found.park(Some(Mark::Incomplete))?;
    let seed = Ownership::seed();
    write_record(&found.record, &seed).map_err(|e| of_mirror(&found.shown, &e))?;
    Ok(found.port.size())
}
