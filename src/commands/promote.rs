//! `diskferry receive --promote-at-last-epoch`: a disk that followed a lost one is this host's own, with all of its group.

use std::path::Path;

use mirror::net::{forget_group, promoted_together};
use serde::Serialize;

use super::alone::{Found, alone, found, of_mirror};
use crate::failure::Result;
use crate::report::Report;

#[derive(Serialize)]
struct Promoted {
    disk: String,
    /// The ownership epoch it has now.
    epoch: u64,
}

pub(crate) fn run(disk: &Path, apart: bool, report: Report) -> Result<()> {
    let disk = &found(disk)?;
    let shown = disk.display().to_string();
    let together = if apart {
        vec![disk.clone()]
    } else {
        promoted_together(disk).map_err(|e| of_mirror(&shown, &e))?
    };
    // If this breaks off between two of them, the same again goes on, to the same moment.
    for disk in &together {
        let epoch = alone(disk, |found| promote(found, apart))?;
        let disk = disk.display().to_string();
        report.result("promoted", &Promoted { disk, epoch }, |promoted| {
            format!(
                "{} is this host's own, as its source's was at the last consistent marker; nothing may serve that one again",
                promoted.disk
            )
        })?;
    }
    if let Err(e) = forget_group(disk) {
        tracing::warn!("{shown}: what is left of its group stays: {e}");
    }
    Ok(())
}

/// Its epoch then.
fn promote(found: &Found, apart: bool) -> Result<u64> {
    let owned = mirror::net::promote(&found.record, found.port.as_ref(), apart);
    let owned = owned.map_err(|e| of_mirror(&found.shown, &e))?;
    // If the mark stays, `serve` takes it out: the record says whose the disk is.
    found.park(None)?;
    Ok(owned.epoch())
}
