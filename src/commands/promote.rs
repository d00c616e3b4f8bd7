//! `diskferry receive --promote-at-last-epoch`: a disk that followed a lost one is this host's own.

use std::path::Path;

use mirror::files::{load_record, sidecar_path};
use mirror::record::State;
use serde::Serialize;

use super::alone::{Found, alone, found, of_mirror};
use crate::failure::{Exit, Failure, Result};
use crate::report::Report;

#[derive(Serialize)]
struct Promoted {
    disk: String,
    /// The ownership epoch it has now.
    epoch: u64,
}

pub(crate) fn run(disk: &Path, report: Report) -> Result<()> {
    let disk = &found(disk)?;
    let shown = disk.display().to_string();
    let record = sidecar_path(disk);
    let known = load_record(&record).map_err(|e| of_mirror(&shown, &e))?;
    if !known.is_some_and(|known| matches!(known.state, State::Following { .. })) {
        let what =
            format!("{shown}: does not follow another disk, so it has no state to fall back to");
        return Err(Failure::new(Exit::InUse, what));
    }
    let epoch = alone(disk, promote)?;
    let promoted = Promoted { disk: shown, epoch };
    report.result("promoted", &promoted, |promoted| {
        format!(
            "{} is this host's own, as its source's was at the last consistent marker; nothing may serve that one again",
            promoted.disk
        )
    })
}

/// Its epoch then.
fn promote(found: &Found) -> Result<u64> {
    let owned = mirror::net::promote(&found.record, found.port.as_ref());
    let owned = owned.map_err(|e| of_mirror(&found.shown, &e))?;
    // If the mark stays, `serve` takes it out: the record says whose the disk is.
    found.park(None)?;
    Ok(owned.epoch())
}
