//! Examination of an image: everything that can be found wrong in one go, and what follows from it.
//!
//! Never changes the file. A dirty image is examined as it will be after replay. Goes on after an
//! error wherever what comes next can still be read; keeps at most [`MAX_FINDINGS`]. Of the disk's
//! data it reads nothing, and of sector bitmaps only those of chunks with partially present blocks.

mod headers;
mod idle;
mod overlaps;
mod parents;
mod sector_bits;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::engine::Mark;
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::Header;
use crate::format::{Code, Guid, Remedy};
pub use crate::format::{Finding, Severity};
pub use crate::open::BlockCounts;
use crate::open::{Judge, LiveLog, Opening, Structures, Tracking, View, tracking_damaged};
use crate::space::SpaceMap;
use crate::storage::Storage;
use crate::units::MIB;

pub(crate) use self::idle::{Idle, behind_end};
pub use self::parents::{Parents, check_parents};
pub(crate) use self::sector_bits::sector_bits;

/// More findings than this are counted, not kept.
pub const MAX_FINDINGS: usize = 1000;

const UNREADABLE: &str = "nothing beyond it can be examined";
const BROKEN: &str = "the image is refused; what else is in it was examined all the same";

/// What an examination brought.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// What was found, in the order of the file.
    pub findings: Vec<Finding>,
    /// Findings beyond [`MAX_FINDINGS`], which are not listed.
    pub omitted: u64,
    /// How many findings of each kind there are, those included that are not listed.
    pub codes: BTreeMap<Code, u64>,
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
    /// How many listed findings are errors.
    #[serde(skip)]
    listed_errors: usize,
    /// Kinds of errors that no repair mends, listed or not.
    #[serde(skip)]
    lasting: BTreeSet<Code>,
}

impl CheckReport {
    /// Whether nothing worse than a warning was found and everything was examined.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.complete && self.listed_errors == 0
    }

    /// Whether it is not sound and a repair makes it so.
    #[must_use]
    pub fn is_mendable(&self) -> bool {
        self.complete && self.listed_errors > 0 && self.lasting.is_empty()
    }

    /// How many of the listed findings are errors.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.listed_errors
    }

    /// Whether something of this kind was found.
    #[must_use]
    pub fn has(&self, code: Code) -> bool {
        self.codes.contains_key(&code)
    }

    /// The kinds of errors that were found and that no repair mends.
    pub(crate) fn lasting(&self) -> impl Iterator<Item = Code> {
        self.lasting.iter().copied()
    }

    /// Whether something was found against which a repair has this remedy.
    #[must_use]
    pub fn calls_for(&self, remedy: Remedy) -> bool {
        self.codes.keys().any(|code| code.remedy() == Some(remedy))
    }

    /// Records that the examination cannot go on; failures of the host are the caller's.
    fn stop(&mut self, error: Error, code: Code) -> Result<()> {
        let code = error.code().unwrap_or(code);
        self.broken(structure_of(code), error.coded(code), UNREADABLE)
    }

    fn broken(&mut self, structure: &'static str, error: Error, follows: &str) -> Result<()> {
        match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::NeedsRepair => {}
            _ => return Err(error),
        }
        let code = error.code().unwrap_or(Code::NotVhdx);
        let what = error.to_string();
        let finding = Finding::new(code, Severity::Error, structure, what, follows);
        self.found(match error.offset() {
            Some(offset) => finding.at(offset),
            None => finding,
        })
    }

    /// Findings about the disks beneath, made by [`check_parents`].
    pub fn add(&mut self, findings: Vec<Finding>) {
        for finding in findings {
            // Taking it cannot fail.
            let _ = self.found(finding);
        }
    }
}

impl Judge for CheckReport {
    fn found(&mut self, finding: Finding) -> Result<()> {
        *self.codes.entry(finding.code).or_default() += 1;
        let error = finding.severity == Severity::Error;
        if error && finding.code.remedy().is_none() {
            self.lasting.insert(finding.code);
        }
        if self.findings.len() >= MAX_FINDINGS {
            self.omitted += 1;
            // An error must not be crowded out by anything else: it replaces one.
            if !error || self.listed_errors == self.findings.len() {
                return Ok(());
            }
            let other = |f: &Finding| f.severity != Severity::Error;
            if let Some(room) = self.findings.iter().rposition(other) {
                self.findings.remove(room);
            }
        }
        self.listed_errors += usize::from(error);
        self.findings.push(finding);
        Ok(())
    }

    fn fault(&mut self, structure: &'static str, error: Error) -> Result<()> {
        self.broken(structure, error, BROKEN)
    }
}

/// The structure that a kind of finding is about; kinds are in the order of the file.
fn structure_of(code: Code) -> &'static str {
    match code {
        code if code < Code::NoValidHeader => "file",
        code if code < Code::LogToReplay => "header",
        code if code < Code::RegionCopyDamaged => "log",
        code if code < Code::MetadataTable => "region table",
        code if code < Code::BatTooSmall => "metadata",
        _ => "BAT",
    }
}

/// What an examination read, for those who change the image next.
pub(crate) struct Examined {
    pub(crate) opening: Opening,
    pub(crate) structures: Structures,
}

/// Examines an image. An `Err` means that the host failed; everything else is in the report.
pub fn check(storage: &mut dyn Storage) -> Result<CheckReport> {
    examine(storage).map(|(report, _)| report)
}

/// As [`check`], with what was read if everything could be.
pub(crate) fn examine(storage: &mut dyn Storage) -> Result<(CheckReport, Option<Examined>)> {
    let mut report = CheckReport::default();
    let opening = match Opening::read(storage, &mut report) {
        Ok(opening) => opening,
        Err(error) => {
            report.stop(error, Code::NoValidHeader)?;
            return Ok((report, None));
        }
    };
    headers::compare(storage, (&opening.header, opening.slot), &mut report)?;
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
            report.stop(error, Code::RegionInvalid)?;
            return Ok((report, None));
        }
    };
    oddities(&mut view, &structures, &mut report)?;
    ownership(&structures, &mut report)?;
    blocks(&mut view, &opening.header, &mut structures, &mut report)?;
    leaks(&mut view, &structures.used, &mut report)?;
    report.complete = true;
    let examined = Examined {
        opening,
        structures,
    };
    Ok((report, Some(examined)))
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
                    Code::LogToReplay,
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
            report.stop(error, Code::LogDamaged)?;
            Ok((BTreeMap::new(), opening.file_len))
        }
    }
}

/// What readers ignore in the tables.
fn oddities(view: &mut View<'_>, structures: &Structures, report: &mut CheckReport) -> Result<()> {
    use crate::format::{metadata, region};
    let one = region::COPY_ONE.0;
    let table = match &structures.good_table {
        Some(table) => table.clone(),
        None => view.read(one, region::TABLE_BYTES, "region table")?,
    };
    let (not_required, reserved) = region::oddities(&table);
    if not_required {
        let code = Code::RegionNotRequired;
        let what = "BAT or metadata region are not flagged as required";
        let follows = "none; QEMU writes it so";
        report.found(Finding::info(code, "region table", what, follows).at(one))?;
    }
    let ignored = "it is ignored, and kept";
    if reserved {
        let what = "reserved bits or bytes are set";
        report.found(Finding::info(Code::RegionReserved, "region table", what, ignored).at(one))?;
    }
    match Tracking::read(&mut *view.storage, &structures.regions, Guid::ZERO) {
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            report.found(tracking_damaged(&error))?;
        }
        tracking => drop(tracking?),
    }
    let at = structures.regions.metadata().at.0;
    let table = view.read(at, metadata::TABLE_BYTES, "metadata table")?;
    if metadata::reserved_set(&table) {
        let what = "reserved bytes of the table are set";
        report.found(Finding::info(Code::MetadataReserved, "metadata", what, ignored).at(at))?;
    }
    Ok(())
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
        report.found(Finding::warning(Code::Marked, "metadata", what, follows).at(at))?;
    }
    if structures.metadata.parent.is_some() {
        let follows = "what it reads depends on the parent as well";
        let code = Code::HasParent;
        report.found(Finding::info(code, "metadata", "the image has a parent", follows).at(at))?;
    }
    Ok(())
}

/// The BAT, what of it means nothing, and sector bitmaps.
fn blocks(
    view: &mut View<'_>,
    header: &Header,
    structures: &mut Structures,
    report: &mut CheckReport,
) -> Result<()> {
    let counts = structures.scan_bat(view, report)?;
    report.blocks = counts;
    report.allocated = structures.used.used() * MIB;
    overlaps::name(view, header, structures, report)?;
    idle::tell(view, structures, report)?;
    let metadata = &structures.metadata;
    let all = structures.geometry.payload_blocks();
    let absent = all.saturating_sub(counts.fully_present);
    if metadata.leave_allocated && metadata.parent.is_none() && absent != 0 {
        report.found(
            Finding::info(
                Code::FixedNotAllocated,
                "BAT",
                format!("{absent} blocks of a fixed disk have no space"),
                "they read as zero; writing them needs room on the host",
            )
            .at(structures.regions.bat().at.0),
        )?;
    }
    if counts.partially_present != 0 {
        let chunks = 0..structures.geometry.bitmap_blocks();
        let found = sector_bits(view, structures, chunks, &mut |_, _| Ok(()))?;
        found.tell(report)?;
    }
    Ok(())
}

/// Whole mebibytes of the file that no object takes.
fn leaks(view: &mut View<'_>, used: &SpaceMap, report: &mut CheckReport) -> Result<()> {
    let limit = report.file_len.div_ceil(MIB);
    for (first, count) in used.free_runs(limit) {
        report.leaked_mib += count;
        let (at, end) = (first * MIB, (first + count) * MIB);
        // Asked of those that are listed only: there can be millions.
        let listed = report.findings.len() < MAX_FINDINGS;
        let data = if listed {
            view.next_data(at, "file")?
        } else {
            None
        };
        let hole = match data {
            Some(data) if data < end => "",
            _ => ", which take no room on the host",
        };
        report.found(
            Finding::new(
                Code::Leak,
                Severity::Leak,
                "file",
                format!("nothing refers to {count} MiB{hole}"),
                "space only; a writer may reuse it",
            )
            .at(at),
        )?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
