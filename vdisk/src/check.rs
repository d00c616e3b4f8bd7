//! Examination of an image: everything that can be found wrong in one go, and what follows from it.
//!
//! Never changes the file. A dirty image is examined as it will be after replay. Goes on after an
//! error wherever what comes next can still be read; keeps at most [`MAX_FINDINGS`].

use std::collections::BTreeMap;

use serde::Serialize;

use crate::engine::Mark;
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::Header;
pub use crate::format::{Finding, Severity};
pub use crate::open::BlockCounts;
use crate::open::{Judge, LiveLog, Opening, Structures, View};
use crate::space::SpaceMap;
use crate::storage::Storage;
use crate::units::MIB;

/// More findings than this are counted, not kept.
pub const MAX_FINDINGS: usize = 1000;

const UNREADABLE: &str = "nothing beyond it can be examined";

/// What an examination brought.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// What was found, in the order of the file.
    pub findings: Vec<Finding>,
    /// Findings beyond [`MAX_FINDINGS`], which are not listed.
    pub omitted: u64,
    /// Whether the whole image could be examined.
    pub complete: bool,
    /// Whether the log must be replayed (by any writable open).
    pub dirty: bool,
    /// Blocks by state.
    pub blocks: BlockCounts,
    /// Bytes of the file that blocks and structures take.
    pub allocated: u64,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Mebibytes of the file that nothing refers to.
    pub leaked_mib: u64,
}

impl CheckReport {
    /// Whether nothing worse than a warning was found and everything was examined.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.complete && self.errors() == 0
    }

    /// How many of the listed findings are errors.
    #[must_use]
    pub fn errors(&self) -> usize {
        let error = |finding: &&Finding| finding.severity == Severity::Error;
        self.findings.iter().filter(error).count()
    }

    /// Records that the examination cannot go on; failures of the host are the caller's.
    fn stop(&mut self, structure: &'static str, error: Error) -> Result<()> {
        match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::NeedsRepair => {}
            _ => return Err(error),
        }
        let finding = Finding::new(Severity::Error, structure, error.to_string(), UNREADABLE);
        self.found(match error.offset() {
            Some(offset) => finding.at(offset),
            None => finding,
        })
    }
}

impl Judge for CheckReport {
    fn found(&mut self, finding: Finding) -> Result<()> {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            // An error must not be crowded out by warnings: it replaces one.
            let warning = |f: &Finding| f.severity != Severity::Error;
            let room = self.findings.iter().rposition(warning);
            if let (Severity::Error, Some(room)) = (finding.severity, room) {
                self.findings.remove(room);
                self.findings.push(finding);
            }
            self.omitted += 1;
        }
        Ok(())
    }
}

/// Examines an image. An `Err` means that the host failed; everything else is in the report.
pub fn check(storage: &mut dyn Storage) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let opening = match Opening::read(storage, &mut report) {
        Ok(opening) => opening,
        Err(error) => {
            report.stop("header", error)?;
            return Ok(report);
        }
    };
    report.file_len = opening.file_len;
    let (overlay, len) = replayed(storage, &opening, &mut report)?;
    let mut view = View {
        storage,
        overlay,
        len,
    };
    let mut structures = match Structures::read(&mut view, &opening.header, &mut report) {
        Ok(structures) => structures,
        Err(error) => {
            report.stop("region table, metadata", error)?;
            return Ok(report);
        }
    };
    ownership(&structures, &mut report)?;
    let counts = structures.scan_bat(&mut view, &mut report)?;
    report.blocks = counts;
    report.allocated = structures.used.used() * MIB;
    leaks(&structures.used, &mut report)?;
    report.complete = true;
    Ok(report)
}

/// The pages over the file and its length after replay. A log that cannot be replayed is reported,
/// and the file examined as it is.
fn replayed(
    storage: &mut dyn Storage,
    opening: &Opening,
    report: &mut CheckReport,
) -> Result<(BTreeMap<u64, bytes::Bytes>, u64)> {
    let Header {
        log_at, log_guid, ..
    } = opening.header;
    report.dirty = !log_guid.is_zero();
    let log = match LiveLog::read(storage, &opening.header, report) {
        Ok(None) => return Ok((BTreeMap::new(), opening.file_len)),
        Ok(Some(log)) => log.overlay(opening.file_len),
        Err(error) => Err(error),
    };
    match log {
        Ok(pages) => {
            report.found(
                Finding::warning(
                    "log",
                    "the image was not closed: its log must be replayed",
                    "nothing is lost; the next writable open replays it, programs that ignore the \
                     log read old data",
                )
                .at(log_at.0),
            )?;
            Ok(pages)
        }
        Err(error) => {
            report.stop("log", error)?;
            Ok((BTreeMap::new(), opening.file_len))
        }
    }
}

/// Why an image that is in order may not be opened all the same.
fn ownership(structures: &Structures, report: &mut CheckReport) -> Result<()> {
    let at = structures.regions.metadata().at.0;
    let marked = match structures.metadata.mark {
        Some(Mark::Incomplete) => Some("the image is the target of a migration not completed"),
        Some(Mark::HandedOver) => Some("the image was handed over to another host"),
        None => None,
    };
    if let Some(what) = marked {
        let follows = "it is refused by every program until the mark is removed";
        report.found(Finding::warning("metadata", what, follows).at(at))?;
    }
    if structures.metadata.parent.is_some() {
        let follows = "what it reads depends on the parent as well; this image alone was examined";
        report.found(Finding::warning("metadata", "the image has a parent", follows).at(at))?;
    }
    Ok(())
}

/// Whole mebibytes of the file that no object takes.
fn leaks(used: &SpaceMap, report: &mut CheckReport) -> Result<()> {
    let limit = report.file_len / MIB;
    for (first, count) in used.free_runs(limit) {
        report.leaked_mib += count;
        report.found(
            Finding::new(
                Severity::Leak,
                "file",
                format!("nothing refers to {count} MiB"),
                "space only; a writer may reuse it",
            )
            .at(first * MIB),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
