//! Repair of an image: what can be put right without a guess, and nothing else.
//!
//! ```text
//!   examine ─► plan ─► mend (log, headers, region tables, length, bits of entries)
//!      ▲                 │
//!      └─────────────────┤ examine again
//!                        └─► tidy (entries, promotions, space), in an image that is sound by now
//! ```
//!
//! What is decided is in [`plan`](self::Plan); this is the driver. What a disk reads as never
//! changes, nor its `DataWriteGuid`, so disks built on it stay valid. Every change of a structure
//! goes through the log, in entries that are right each by itself: a power cut anywhere leaves the
//! image as it was or better, and the same repair goes on (`docs/crash-consistency.md`).

mod copy;
mod entries;
mod plan;

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use serde::Serialize;

pub use self::copy::copy_sparse;
use self::entries::{without_idle_parts, without_reserved_bits};
pub use self::plan::{Plan, Withheld};
use crate::check::{CheckReport, Examined, Idle, behind_end, examine, sector_bits};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::ENTRY_BYTES;
use crate::format::header::{Header, Slot};
use crate::format::log::entry_len;
use crate::format::{
    BatEntry, BlockState, Code, ENTRIES_PER_PAGE, Guid, PAGE, PAGE_BYTES, Region, Remedy,
};
use crate::open::{
    LiveLog, Strict, View, change_pages, each_entry, header_update, mend_region_tables,
};
use crate::storage::Storage;
use crate::units::{BatIndex, FileOffset, MIB};

/// Pages of the BAT that one entry of the log carries at most: 4 MiB of them in memory.
const MOST_PAGES: usize = 1024;
/// Chunks whose promotions are gathered at once: at most 262,144 blocks.
const CHUNKS_AT_ONCE: u64 = 8;

/// How to repair.
pub struct RepairOptions<'a> {
    /// Whether only to tell what would be done.
    pub dry_run: bool,
    /// Random bits for GUIDs.
    pub random: &'a mut dyn FnMut() -> u128,
}

/// Something that was done, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Which remedy.
    pub remedy: Remedy,
    /// What it did, with numbers.
    pub what: String,
}

/// What a repair brought.
#[derive(Clone, Debug, Serialize)]
pub struct RepairReport {
    /// Whether nothing was changed and `done` tells what would be.
    pub dry_run: bool,
    /// In order; empty if there was nothing to do, or nothing that may be done.
    pub done: Vec<Done>,
    /// Remedies that were called for and not applied.
    pub withheld: Vec<Withheld>,
    /// What an examination found before.
    pub before: CheckReport,
    /// What an examination finds now; the same after a dry run.
    pub after: CheckReport,
}

/// Repairs the image in `storage`, which nobody else may have open.
///
/// An image in which there is nothing to do is not changed at all. Fails with `NotOwned` for an image
/// that is marked as another's, and as the host does; an image that cannot be repaired is no failure.
pub fn repair(storage: &mut dyn Storage, options: RepairOptions<'_>) -> Result<RepairReport> {
    let (before, mut examined) = examine(storage)?;
    if before.has(Code::Marked) {
        let what = "the image is marked as another host's, or as a target that is not complete; \
                    nothing was changed";
        return Err(Error::new(ErrorKind::NotOwned, what));
    }
    let mut report = RepairReport {
        dry_run: options.dry_run,
        done: Vec::new(),
        withheld: Vec::new(),
        after: before.clone(),
        before,
    };
    let random = options.random;
    for tidies in [false, true] {
        let plan = Plan::new(&report.after);
        let of_stage = |remedy: &Remedy| remedy.needs_sound_image() == tidies;
        let withheld = plan.withheld.into_iter();
        report
            .withheld
            .extend(withheld.filter(|withheld| of_stage(&withheld.remedy)));
        let Some(found) = &examined else { break };
        let overlay = if options.dry_run {
            replayed(storage, found)?
        } else {
            BTreeMap::new()
        };
        let mut mender = Mender {
            current: (found.opening.header.clone(), found.opening.slot),
            view_len: None,
            storage: &mut *storage,
            overlay,
            found,
            random: &mut *random,
            dry_run: options.dry_run,
            renewed: false,
        };
        let before = report.done.len();
        for remedy in plan.steps.into_iter().filter(of_stage) {
            let what = mender.apply(remedy)?;
            report.done.extend(what.map(|what| Done { remedy, what }));
        }
        if report.done.len() > before && !options.dry_run {
            (report.after, examined) = examine(storage)?;
        }
    }
    Ok(report)
}

/// The pages that the log would bring.
fn replayed(storage: &mut dyn Storage, found: &Examined) -> Result<BTreeMap<u64, Bytes>> {
    let log = LiveLog::read(storage, &found.opening.header, &mut Strict::default());
    let Ok(Some(log)) = log else {
        return Ok(BTreeMap::new());
    };
    Ok(log.overlay(found.opening.file_len)?.0)
}

/// One stage of a repair under way.
struct Mender<'a> {
    storage: &'a mut dyn Storage,
    /// In a dry run, what a replay would bring.
    overlay: BTreeMap<u64, Bytes>,
    found: &'a Examined,
    current: (Header, Slot),
    random: &'a mut dyn FnMut() -> u128,
    dry_run: bool,
    /// Whether both headers were written since the stage began.
    renewed: bool,
    /// The length of the file in a dry run, were it lengthened.
    view_len: Option<u64>,
}

fn failed(source: std::io::Error) -> Error {
    Error::io("cannot repair the image", source)
}

impl Mender<'_> {
    /// Applies one remedy; what it did, if there was anything to do.
    fn apply(&mut self, remedy: Remedy) -> Result<Option<String>> {
        match remedy {
            Remedy::ReplayLog => self.replay().map(Some),
            Remedy::RewriteHeaders => self.rewrite_headers().map(Some),
            Remedy::RewriteRegionTables => self.rewrite_region_tables(),
            Remedy::LengthenFile => self.lengthen(),
            Remedy::ClearBits => {
                let entries = 0..self.found.structures.geometry.bat_entries();
                let cleared =
                    self.change_entries(entries, |_, entry| without_reserved_bits(entry))?;
                Ok(some(cleared, "entries lost their reserved bits"))
            }
            Remedy::ClearEntries => self.clear_entries(),
            Remedy::Promote => self.promote(),
            Remedy::ReleaseSpace => self.release(),
        }
    }

    /// The length of the file as it is, or as a dry run would have it.
    fn file_len(&mut self) -> Result<u64> {
        match self.view_len {
            Some(len) => Ok(len),
            None => self.storage.len().map_err(failed),
        }
    }

    /// Writes both headers with a new `FileWriteGuid`, as must be done before anything changes.
    fn renew(&mut self) -> Result<()> {
        if self.dry_run || self.renewed {
            return Ok(());
        }
        let (header, slot) = self.current.clone();
        let header = Header {
            file_write: Guid::from_random((self.random)()),
            ..header
        };
        self.current = header_update(self.storage, slot, header)?;
        self.renewed = true;
        Ok(())
    }

    fn replay(&mut self) -> Result<String> {
        let header = &self.current.0;
        let log = LiveLog::read(self.storage, header, &mut Strict::default())?;
        let Some(log) = log else {
            return Ok("the log is empty".to_owned());
        };
        let (pages, _) = log.overlay(self.found.opening.file_len)?;
        if !self.dry_run {
            let current = self.current.clone();
            self.current = log.replay(self.storage, current, self.random)?;
            self.renewed = true;
        }
        Ok(match pages.len() {
            0 => "the log was emptied; it changed nothing".to_owned(),
            pages => format!("the log was replayed: {pages} pages of 4 KiB"),
        })
    }

    fn rewrite_headers(&mut self) -> Result<String> {
        self.renew()?;
        Ok("both headers were written anew".to_owned())
    }

    fn rewrite_region_tables(&mut self) -> Result<Option<String>> {
        let Some(table) = &self.found.structures.good_table else {
            return Ok(None);
        };
        if !self.dry_run {
            let current = self.current.clone();
            self.current = mend_region_tables(self.storage, current, table, self.random)?;
            self.renewed = true;
        }
        Ok(Some("both region tables were written anew".to_owned()))
    }

    fn lengthen(&mut self) -> Result<Option<String>> {
        let len = self.file_len()?;
        let needed = self.found.structures.used.end() * MIB;
        if needed <= len {
            return Ok(None);
        }
        self.renew()?;
        if self.dry_run {
            self.view_len = Some(needed);
        } else {
            let lengthened = self.storage.set_len(needed);
            lengthened
                .and_then(|()| self.storage.flush())
                .map_err(failed)?;
        }
        let what = format!("the file was lengthened by {} bytes", needed - len);
        Ok(Some(what))
    }

    fn clear_entries(&mut self) -> Result<Option<String>> {
        let structures = &self.found.structures;
        let len = self.file_len()?;
        let idle = Idle::new(structures, len);
        let geometry = structures.geometry;
        let [_, behind] = behind_end(&geometry, structures.regions.bat().len);
        let cleared = self.change_entries(0..behind.end, |index, entry| {
            without_idle_parts(&idle, &geometry, (index, entry))
        })?;
        Ok(some(cleared, "entries lost what meant nothing"))
    }

    fn promote(&mut self) -> Result<Option<String>> {
        let chunks = self.found.structures.geometry.bitmap_blocks();
        let mut promoted = 0;
        for first in (0..chunks).step_by(CHUNKS_AT_ONCE as usize) {
            let chunks = first..chunks.min(first + CHUNKS_AT_ONCE);
            let mut changes = Vec::new();
            let structures = &self.found.structures;
            let mut view = self.view()?;
            sector_bits(&mut view, structures, chunks, &mut |index, entry| {
                let whole = BatEntry {
                    state: BlockState::FullyPresent,
                    ..entry
                };
                changes.push((index, whole.encode()));
                Ok(())
            })?;
            promoted += changes.len() as u64;
            self.write_entries(&changes)?;
        }
        Ok(some(promoted, "blocks became fully present"))
    }

    /// The file's end is cut, and what nothing refers to before it becomes a hole.
    fn release(&mut self) -> Result<Option<String>> {
        let used = &self.found.structures.used;
        let (len, end) = (self.file_len()?, used.end() * MIB);
        let (mut holes, mut cut) = (0, 0);
        for (first, count) in used.free_runs(end / MIB) {
            let run_end = (first + count) * MIB;
            let data = self.storage.next_data(first * MIB).map_err(failed)?;
            let Some(from) = data.filter(|at| *at < run_end) else {
                continue;
            };
            self.renew()?;
            let from = from / MIB * MIB;
            if !self.dry_run {
                self.storage
                    .zero(from, run_end - from, false)
                    .map_err(failed)?;
            }
            holes += (run_end - from) / MIB;
        }
        if len > end {
            self.renew()?;
            cut = len - end;
            if !self.dry_run {
                self.storage.set_len(end).map_err(failed)?;
            }
        }
        if holes == 0 && cut == 0 {
            return Ok(None);
        }
        if !self.dry_run {
            self.storage.flush().map_err(failed)?;
        }
        Ok(Some(format!(
            "{cut} bytes were cut off the end of the file, {holes} MiB inside became holes"
        )))
    }

    fn view(&mut self) -> Result<View<'_>> {
        let len = self.file_len()?;
        Ok(View {
            storage: &mut *self.storage,
            overlay: self.overlay.clone(),
            len,
        })
    }

    /// Replaces entries of the BAT by what `mended` makes of them; how many are others now.
    fn change_entries(
        &mut self,
        entries: Range<u64>,
        mended: impl Fn(BatIndex, u64) -> u64,
    ) -> Result<u64> {
        let bat = self.found.structures.regions.bat();
        let step = self.pages_at_once() as u64 * ENTRIES_PER_PAGE;
        let mut changed = 0;
        let mut first = entries.start;
        while first < entries.end {
            let window = first..entries.end.min(first + step);
            first = window.end;
            let mut others = Vec::new();
            each_entry(&mut self.view()?, bat, window, |index, entry| {
                let new = mended(index, entry);
                if new != entry {
                    others.push((index, new));
                }
                Ok(())
            })?;
            changed += others.len() as u64;
            self.write_entries(&others)?;
        }
        Ok(changed)
    }

    /// How many pages one entry of the log may carry.
    fn pages_at_once(&self) -> usize {
        let room = u64::from(self.current.0.log_len).saturating_sub(PAGE_BYTES);
        let fits = |pages: &usize| entry_len(*pages) as u64 <= room;
        (1..=MOST_PAGES).rev().find(fits).unwrap_or(1)
    }

    /// Makes these the entries, in ascending order, through the log: whole pages, as many at once as it
    /// holds.
    fn write_entries(&mut self, changes: &[(BatIndex, u64)]) -> Result<()> {
        if self.dry_run || changes.is_empty() {
            return Ok(());
        }
        let bat = self.found.structures.regions.bat();
        let page_of = |index: BatIndex| index.0 / ENTRIES_PER_PAGE;
        let of_page: Vec<&[(BatIndex, u64)]> = changes
            .chunk_by(|(a, _), (b, _)| page_of(*a) == page_of(*b))
            .collect();
        for batch in of_page.chunks(self.pages_at_once()) {
            let mut pages = Vec::with_capacity(batch.len());
            for changes in batch {
                pages.extend(self.changed_page(bat, changes)?);
            }
            let current = self.current.clone();
            self.current = change_pages(self.storage, current, &pages, self.random)?;
            self.renewed = true;
        }
        Ok(())
    }

    /// The page of the BAT with these entries, which are all on it.
    fn changed_page(
        &mut self,
        bat: Region,
        changes: &[(BatIndex, u64)],
    ) -> Result<Option<(FileOffset, Bytes)>> {
        let Some((first, _)) = changes.first() else {
            return Ok(None);
        };
        let start = first.0 / ENTRIES_PER_PAGE;
        let at = bat.at.0 + start * PAGE_BYTES;
        let mut page = self.view()?.read(at, PAGE, "BAT")?;
        for (index, entry) in changes {
            let within = ((index.0 % ENTRIES_PER_PAGE) * ENTRY_BYTES) as usize;
            if let Some(place) = page.get_mut(within..within + ENTRY_BYTES as usize) {
                place.copy_from_slice(&entry.to_le_bytes());
            }
        }
        Ok(Some((FileOffset(at), Bytes::from(page))))
    }
}

/// `count` of something, if there is any.
fn some(count: u64, what: &str) -> Option<String> {
    (count != 0).then(|| format!("{count} {what}"))
}

#[cfg(test)]
mod tests;
