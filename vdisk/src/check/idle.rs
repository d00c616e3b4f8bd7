//! Entries of the BAT that mean nothing: behind the end of the disk, and those of sector bitmaps in a
//! disk without a parent.
//!
//! Whoever shrinks or flattens a disk may leave them, and so may a mistake: the size item damaged,
//! entries written one place too far (QEMU before 8.0). So one that names space of the file which
//! nothing else uses is an orphan: what is there may be somebody's data, and nobody clears it here.

use std::ops::Range;

use crate::error::Result;
use crate::format::bat::{ENTRY_BYTES, Slot};
use crate::format::{BatEntry, Code, Finding, Geometry, Severity};
use crate::open::{Judge, Structures, View, each_entry};
use crate::space::SpaceMap;
use crate::units::{BatIndex, BlockIndex, MIB};

use super::CheckReport;

/// What tells entries that mean nothing from orphans.
pub(crate) struct Idle<'a> {
    geometry: Geometry,
    used: &'a SpaceMap,
    file_len: u64,
}

impl<'a> Idle<'a> {
    /// Of an image whose every block has claimed its space in `structures`.
    pub(crate) fn new(structures: &'a Structures, file_len: u64) -> Self {
        Self {
            geometry: structures.geometry,
            used: &structures.used,
            file_len,
        }
    }

    /// Whether this entry means nothing whatever it says.
    pub(crate) fn means_nothing(&self, index: BatIndex) -> bool {
        match self.geometry.classify(index) {
            Slot::Unused => true,
            Slot::Bitmap(_) => !self.geometry.differencing(),
            Slot::Payload(_) => false,
        }
    }

    /// Whether it names space of the file that nothing else uses.
    pub(crate) fn is_orphan(&self, entry: u64) -> bool {
        let place = BatEntry::decode(entry).ok().and_then(BatEntry::space);
        place
            .is_some_and(|at| at.0 >= MIB && at.0 < self.file_len && !self.used.is_used(at.0 / MIB))
    }
}

/// Indices behind the end of a disk in a table of `room` bytes; entries of larger disks than there can
/// be are not looked at.
pub(crate) fn behind_end(geometry: &Geometry, room: u64) -> [Range<u64>; 2] {
    let entries = geometry.bat_entries();
    let last = BlockIndex(geometry.payload_blocks().saturating_sub(1));
    let end = (room / ENTRY_BYTES).min(geometry.largest().bat_entries());
    // Of a disk with a parent the last chunk has its bitmap's entry at its end.
    [
        geometry.bat_index(last).0 + 1..entries,
        entries..end.max(entries),
    ]
}

/// Tells of entries that mean nothing and are not zero.
pub(super) fn tell(
    view: &mut View<'_>,
    structures: &Structures,
    report: &mut CheckReport,
) -> Result<()> {
    let idle = Idle::new(structures, view.len);
    let (geometry, bat) = (structures.geometry, structures.regions.bat());
    let (mut stale, mut orphans) = (Vec::new(), Vec::new());
    let (mut stale_count, mut orphan_count) = (0_u64, 0_u64);
    let mut see = |index: BatIndex, entry: u64, behind: bool| {
        if idle.means_nothing(index) {
            let at = bat.at.0 + index.0 * ENTRY_BYTES;
            if idle.is_orphan(entry) {
                orphan_count += 1;
                orphans.push(at);
                orphans.truncate(1);
            } else if behind {
                stale_count += 1;
                stale.push(at);
                stale.truncate(1);
            }
        }
        Ok(())
    };
    for range in behind_end(&geometry, bat.len) {
        each_entry(view, bat, range, |index, entry| see(index, entry, true))?;
    }
    if report.has(Code::BitmapWithoutParent) {
        for chunk in 0..geometry.bitmap_blocks() {
            let index = geometry.bitmap_index(chunk).0;
            if index < geometry.bat_entries() {
                each_entry(view, bat, index..index + 1, |index, entry| {
                    see(index, entry, false)
                })?;
            }
        }
    }
    if let Some(at) = stale.first() {
        let what = format!("{stale_count} entries behind the end of the disk are not zero");
        let follows = "none now; a program that enlarges the disk may take them for blocks";
        let code = Code::EntriesBehindEnd;
        report.found(Finding::info(code, "BAT", what, follows).at(*at))?;
    }
    if let Some(at) = orphans.first() {
        let finding = Finding::new(
            Code::EntryOrphan,
            Severity::Warning,
            "BAT",
            format!("{orphan_count} entries that mean nothing name space which nothing else uses"),
            "what is there may be data whose entry or size was damaged; a repair leaves it, a \
             writer may use that space",
        );
        report.found(finding.at(*at))?;
    }
    Ok(())
}
