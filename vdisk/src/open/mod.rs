//! Opening an image: every structure read in order, judged, and put together (MS-VHDX 3).
//!
//! ```text
//!   identifier, headers ─► log (replayed, or laid over the file in memory)
//!        └─► region tables ─► metadata ─► geometry ─► BAT
//! ```
//!
//! A blocking procedure over a [`Storage`]. An image that is refused is not changed: a writable
//! open of a dirty image first reads everything through the replay in memory, and only then
//! replays into the file. It must never write anything else.

mod bat_scan;
mod detach;
mod mend;
mod relink;
mod replay;
mod track;
mod view;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

use crate::engine::Mark;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::ENTRY_BYTES;
use crate::format::header::{Header, Slot, choose_current};
use crate::format::identifier::Identifier;
use crate::format::metadata::{self, Metadata};
use crate::format::region::{self, RegionTable};
use crate::format::{BatEntry, Code, Finding, Geometry, PAGE, Region, Severity};
use crate::space::SpaceMap;
use crate::storage::Storage;
use crate::units::{BlockIndex, MIB};

use bat_scan::BatScan;
pub(crate) use bat_scan::{each_entry, name};
pub(crate) use detach::{PartialBlocks, detach};
pub(crate) use mend::{Change, change_pages, mend_region_tables};
pub use relink::set_locator;
pub(crate) use replay::{LiveLog, header_update};
pub(crate) use track::{
    Tracking, damaged as tracking_damaged, recover_tracking, renew, set_parts, track_region,
    write_header,
};
pub(crate) use view::View;

/// More warnings than this are not kept.
const MAX_WARNINGS: usize = 1000;

/// How to open an image.
pub struct LoadOptions<'a> {
    /// Whether the image will be written: a dirty log is then replayed into the file.
    pub writable: bool,
    /// Whether to read and check the whole BAT, so that [`Image::used`] knows of every block.
    pub scan_bat: bool,
    /// Images that are opened only when told.
    pub admit: Admit,
    /// Random bits for GUIDs; needed when a log is replayed into the file.
    pub random: &'a mut dyn FnMut() -> u128,
}

/// Which images are opened although they say that they should not, or not alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admit {
    /// Those marked as another's ([`Mark`]).
    pub marked: bool,
    /// Those with a parent, which the caller then opens, too.
    pub parent: bool,
}

/// An image that was opened and keeps every rule that was checked.
#[derive(Clone, Debug)]
pub struct Image {
    /// The current header.
    pub header: Header,
    /// Where it lies; the next one goes to the other slot.
    pub slot: Slot,
    /// Sizes of the disk.
    pub geometry: Geometry,
    /// What the metadata says, every item's place included.
    pub metadata: Metadata,
    /// Where BAT and metadata lie, and regions of other programs.
    pub regions: RegionTable,
    /// Length of the file in bytes; of a dirty image opened for reading, the length after replay.
    pub file_len: u64,
    /// What is off the specification and read without harm.
    pub warnings: Vec<Finding>,
    /// The mebibytes of the file in use: those of header section, log and regions, and of blocks if the
    /// BAT was scanned.
    pub used: SpaceMap,
    /// Whether the BAT was scanned.
    pub scanned: bool,
    /// The byte after the last object if the BAT was scanned, else after anything that may be one.
    pub end_of_used: u64,
    /// Of a dirty image opened for reading: pages of 4096 bytes by file offset, to be read in place
    /// of the file's.
    pub overlay: BTreeMap<u64, Bytes>,
    /// Whether the file's log must still be replayed: true only when not opened for writing.
    pub dirty: bool,
}

impl Image {
    /// Where the BAT lies.
    #[must_use]
    pub fn bat(&self) -> Region {
        self.regions.bat()
    }

    /// Where the metadata lies.
    #[must_use]
    pub fn metadata_region(&self) -> Region {
        self.regions.metadata()
    }

    /// Where the log lies.
    #[must_use]
    pub fn log(&self) -> Region {
        log_of(&self.header)
    }
}

/// How many payload blocks are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockCounts {
    /// State 0.
    pub not_present: u64,
    /// State 1.
    pub undefined: u64,
    /// State 2.
    pub zero: u64,
    /// State 3.
    pub unmapped: u64,
    /// State 6.
    pub fully_present: u64,
    /// State 7.
    pub partially_present: u64,
    /// Entries that break a rule; those whose state could be read are counted there as well.
    pub faulty: u64,
}

impl BlockCounts {
    fn without_not_present(&self) -> u64 {
        self.undefined + self.zero + self.unmapped + self.fully_present + self.partially_present
    }
}

/// Takes what an examination finds; an error ends it.
pub(crate) trait Judge {
    fn found(&mut self, finding: Finding) -> Result<()>;

    /// A rule that is broken and does not keep what comes next from being read.
    fn fault(&mut self, structure: &'static str, error: Error) -> Result<()>;
}

/// Refuses at the first error, keeps the warnings.
#[derive(Default)]
pub(crate) struct Strict {
    pub(crate) warnings: Vec<Finding>,
}

impl Judge for Strict {
    fn fault(&mut self, _structure: &'static str, error: Error) -> Result<()> {
        Err(error)
    }

    fn found(&mut self, finding: Finding) -> Result<()> {
        if finding.severity == Severity::Error {
            let error = Error::corrupt(format!("{}: {}", finding.structure, finding.message));
            let error = error.coded(finding.code);
            return Err(match finding.offset {
                Some(offset) => error.at(offset),
                None => error,
            });
        }
        if finding.severity > Severity::Info && self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(finding);
        }
        Ok(())
    }
}

/// What stands before the log.
pub(crate) struct Opening {
    pub(crate) identifier: Identifier,
    pub(crate) header: Header,
    pub(crate) slot: Slot,
    /// Length of the file as it is.
    pub(crate) file_len: u64,
}

impl Opening {
    /// Reads identifier and headers, and checks where the log lies.
    pub(crate) fn read(storage: &mut dyn Storage, judge: &mut dyn Judge) -> Result<Self> {
        let failed = |source| Error::io("cannot read the image", source);
        let file_len = storage.len().map_err(failed)?;
        let mut page = vec![0; PAGE];
        storage.read_at(0, &mut page).map_err(failed)?;
        let identifier = Identifier::decode(&page)?;
        if file_len < MIB {
            return Err(Error::corrupt(format!(
                "the file is cut short: it has {file_len} bytes, a header section has 1 MiB"
            ))
            .coded(Code::FileTooShort));
        }
        let mut headers = [vec![0; PAGE], vec![0; PAGE]];
        for (slot, header) in [Slot::One, Slot::Two].into_iter().zip(&mut headers) {
            storage.read_at(slot.at().0, header).map_err(failed)?;
        }
        let [one, two] = &headers;
        let (header, slot) = choose_current(one, two)?;
        for (place, page) in [(Slot::One, one), (Slot::Two, two)] {
            if let Err(error) = Header::decode(page) {
                let finding = Finding::warning(
                    Code::HeaderDamaged,
                    "header",
                    error.to_string(),
                    "the other header is used; the next change of the image mends this one",
                );
                judge.found(finding.at(place.at().0))?;
            }
        }
        let opening = Self {
            identifier,
            header,
            slot,
            file_len,
        };
        opening.check_log_place(judge)?;
        Ok(opening)
    }

    fn check_log_place(&self, judge: &mut dyn Judge) -> Result<()> {
        let header = &self.header;
        let log = log_of(header);
        if header.log_len == 0 && header.log_guid.is_zero() {
            return judge.found(
                Finding::warning(
                    Code::LogAbsent,
                    "header",
                    "LogLength is 0: the image has no log",
                    "it can be read; it cannot be written safely",
                )
                .at(self.slot.at().0),
            );
        }
        if log.len == 0 || !log.len.is_multiple_of(MIB) {
            return Err(self.wrong(format!(
                "LogLength is {}: not a positive multiple of 1 MiB",
                log.len
            )));
        }
        if log.at.0 < MIB || !log.at.0.is_multiple_of(MIB) {
            return Err(self.wrong(format!(
                "LogOffset is {}: not a multiple of 1 MiB from 1 MiB up",
                log.at
            )));
        }
        if log.end() > self.file_len {
            return Err(self.wrong(format!(
                "the log at {} of {} bytes goes beyond the end of the file ({} bytes)",
                log.at, log.len, self.file_len
            )));
        }
        Ok(())
    }

    fn wrong(&self, what: String) -> Error {
        Error::corrupt(what)
            .coded(Code::LogPlace)
            .at(self.slot.at().0)
    }
}

fn log_of(header: &Header) -> Region {
    Region {
        at: header.log_at,
        len: u64::from(header.log_len),
    }
}

/// What stands behind the log and before the blocks.
pub(crate) struct Structures {
    pub(crate) regions: RegionTable,
    pub(crate) metadata: Metadata,
    pub(crate) geometry: Geometry,
    /// Header section, log and regions claimed.
    pub(crate) used: SpaceMap,
    /// An intact region table, if the two copies are not both like it.
    pub(crate) good_table: Option<Vec<u8>>,
}

impl Structures {
    /// Reads region tables and metadata through the replay.
    pub(crate) fn read(
        view: &mut View<'_>,
        header: &Header,
        judge: &mut dyn Judge,
    ) -> Result<Self> {
        let copy1 = view.read(region::COPY_ONE.0, region::TABLE_BYTES, "region table")?;
        let copy2 = view.read(region::COPY_TWO.0, region::TABLE_BYTES, "region table")?;
        let (regions, warnings) = RegionTable::choose(&copy1, &copy2)?;
        let one_is_good = RegionTable::decode(&copy1, region::COPY_ONE).is_ok();
        let good_table = (!warnings.is_empty()).then_some(if one_is_good { copy1 } else { copy2 });
        for warning in warnings {
            judge.found(warning)?;
        }
        let used = claim_structures(view.len, header, &regions, judge)?;
        let place = regions.metadata();
        let table = view.read(place.at.0, metadata::TABLE_BYTES, "metadata table")?;
        let (items, faults) =
            metadata::survey_table(&table, place.len).map_err(|error| locate(error, place))?;
        for fault in faults {
            judge.fault("metadata", locate(fault, place))?;
        }
        let metadata = Metadata::decode(items, &mut |offset, len| {
            view.read(place.at.0 + u64::from(offset), len as usize, "metadata")
        })
        .map_err(|error| locate(error, place))?;
        if metadata.has_stray_locator() {
            judge.found(
                Finding::warning(
                    Code::LocatorStray,
                    "metadata",
                    "there is a parent locator and the image has no parent",
                    "it is ignored",
                )
                .at(place.at.0),
            )?;
        }
        let geometry = metadata.geometry().map_err(|error| locate(error, place))?;
        let bat = regions.bat();
        if bat.len < geometry.bat_len() {
            return Err(Error::corrupt(format!(
                "the BAT region has {} bytes, the disk needs {}",
                bat.len,
                geometry.bat_len()
            ))
            .coded(Code::BatTooSmall)
            .at(bat.at.0));
        }
        Ok(Self {
            regions,
            metadata,
            geometry,
            used,
            good_table,
        })
    }

    /// Goes over the whole BAT, claims every block's space.
    pub(crate) fn scan_bat(
        &mut self,
        view: &mut View<'_>,
        judge: &mut dyn Judge,
    ) -> Result<BlockCounts> {
        let place = (self.regions.bat(), view.len);
        BatScan::new(self.geometry, place, &mut self.used, judge).run(view)
    }

    /// Where the file ends, in whole mebibytes, with the disk's last block, which may go beyond the file.
    fn end_of_file(&self, view: &mut View<'_>) -> Result<u64> {
        let last = BlockIndex(self.geometry.payload_blocks() - 1);
        let at = self.regions.bat().at.0 + self.geometry.bat_index(last).0 * ENTRY_BYTES;
        let mut entry = [0; ENTRY_BYTES as usize];
        view.read_into(at, &mut entry, "BAT")?;
        let space = BatEntry::decode(u64::from_le_bytes(entry))
            .ok()
            .and_then(BatEntry::space)
            .filter(|space| space.0 < view.len);
        let size = u64::from(self.geometry.block_size());
        let end = space.map_or(0, |space| space.0 + size);
        Ok(view.len.max(end).next_multiple_of(MIB))
    }
}

/// An error of the metadata counts its offset from the region; a file's from the file.
fn locate(error: Error, region: Region) -> Error {
    if error.kind() == ErrorKind::Io {
        return error;
    }
    let within = error.offset().unwrap_or(0);
    error
        .coded(Code::MetadataValue)
        .at(region.at.0.saturating_add(within))
}

/// The header section, the log and every region, each with its name.
pub(crate) fn structures_of(header: &Header, regions: &RegionTable) -> Vec<(String, Region)> {
    let log = log_of(header);
    let header_section = Region {
        at: crate::units::FileOffset(0),
        len: MIB,
    };
    let known = regions.entries.iter().map(|entry| {
        let name = match entry.id {
            region::BAT_REGION => "the BAT region".to_owned(),
            region::METADATA_REGION => "the metadata region".to_owned(),
            id => format!("region {id}"),
        };
        (name, entry.place)
    });
    [("the header section".to_owned(), header_section)]
        .into_iter()
        .chain((log.len != 0).then(|| ("the log".to_owned(), log)))
        .chain(known)
        .collect()
}

/// Claims the header section, the log and every region; all must lie inside the file.
fn claim_structures(
    file_len: u64,
    header: &Header,
    regions: &RegionTable,
    judge: &mut dyn Judge,
) -> Result<SpaceMap> {
    let mut used = SpaceMap::new();
    let structures = structures_of(header, regions);
    for (name, place) in &structures {
        let (at, len) = (place.at, place.len);
        if place.end() > file_len {
            let error = Error::corrupt(format!(
                "{name} at {at} of {len} bytes goes beyond the end of the file ({file_len} bytes)"
            ));
            let error = error.coded(Code::StructureBeyondEnd).at(at.0);
            judge.fault("file", error)?;
        } else if let Err(taken) = used.claim(at.0 / MIB, len / MIB) {
            let taken = taken * MIB;
            let holds = |(_, other): &&(String, Region)| (other.at.0..other.end()).contains(&taken);
            let other = structures.iter().find(holds);
            let other = other.map_or("another structure", |(name, _)| name.as_str());
            let error = Error::corrupt(format!(
                "{name} at {at} of {len} bytes overlaps {other} at {taken:#x}"
            ));
            let error = error.coded(Code::StructureOverlap).at(at.0);
            judge.fault("file", error)?;
        }
    }
    Ok(used)
}

/// Opens an image: reads and checks everything but payload, replays the log where there is one.
///
/// Kinds of failure: `Corrupt`, `Unsupported` (a parent, a newer version), `NotOwned` (marked),
/// `NeedsRepair` (the log was named and never written), `InvalidArgument`, and those of the host.
pub fn load(storage: &mut dyn Storage, options: LoadOptions<'_>) -> Result<Image> {
    load_scanning(storage, options, 0)
}

/// Opens an image that is not in use, whatever it is, without changing it.
pub(crate) fn examine(storage: &mut dyn Storage) -> Result<Image> {
    let options = LoadOptions {
        writable: false,
        scan_bat: false,
        admit: Admit {
            marked: true,
            parent: true,
        },
        random: &mut || 0,
    };
    load(storage, options)
}

/// Opens an image that is not in use, to change its structures; with `scan_bat` it is known which space is
/// free.
pub(crate) fn prepare(
    storage: &mut dyn Storage,
    scan_bat: bool,
    random: &mut dyn FnMut() -> u128,
) -> Result<Image> {
    let options = LoadOptions {
        writable: true,
        scan_bat,
        admit: Admit {
            marked: false,
            parent: true,
        },
        random,
    };
    load(storage, options)
}

/// As [`load`], and a BAT of at most `most` bytes is read and checked whether asked for or not, before
/// anything is changed.
pub(crate) fn load_scanning(
    storage: &mut dyn Storage,
    options: LoadOptions<'_>,
    most: u64,
) -> Result<Image> {
    let mut judge = Strict::default();
    let Opening {
        identifier: _,
        mut header,
        mut slot,
        file_len,
    } = Opening::read(storage, &mut judge)?;
    let log = LiveLog::read(storage, &header, &mut judge)?;
    let (overlay, len) = match &log {
        Some(log) => log.overlay(file_len)?,
        None => (BTreeMap::new(), file_len),
    };
    let mut view = View {
        storage,
        overlay,
        len,
    };
    let mut structures = Structures::read(&mut view, &header, &mut judge)?;
    admit(&structures.metadata, &options, &header)?;
    let random = options.random;
    let dirty = log.is_some() && !options.writable;
    let scan = |structures: &Structures| options.scan_bat || structures.regions.bat().len <= most;
    if options.writable && (log.is_some() || structures.good_table.is_some()) {
        if scan(&structures) {
            structures.scan_bat(&mut view, &mut judge)?;
        }
        judge = Strict::default();
        let changed = put_right(&mut view, log.as_ref(), (header, slot), random)?;
        (header, slot) = changed;
        structures = Structures::read(&mut view, &header, &mut judge)?;
    }
    let scanned = scan(&structures);
    let end_of_used = if scanned {
        structures.scan_bat(&mut view, &mut judge)?;
        structures.used.end() * MIB
    } else {
        structures.end_of_file(&mut view)?
    };
    Ok(Image {
        header,
        slot,
        geometry: structures.geometry,
        metadata: structures.metadata,
        regions: structures.regions,
        file_len: view.len,
        warnings: judge.warnings,
        end_of_used,
        used: structures.used,
        scanned,
        overlay: view.overlay,
        dirty,
    })
}

/// What a writable open changes before anything else: replays the log, makes both region tables
/// alike. What the view shows is afterwards in the file, and its length is read again: a replay may
/// have made it longer.
fn put_right(
    view: &mut View<'_>,
    log: Option<&LiveLog>,
    mut current: (Header, Slot),
    random: &mut dyn FnMut() -> u128,
) -> Result<(Header, Slot)> {
    if let Some(log) = log {
        current = log.replay(view.storage, current, random)?;
        view.overlay.clear();
    }
    let read = Structures::read(view, &current.0, &mut Strict::default())?;
    if let Some(table) = &read.good_table {
        current = mend_region_tables(view.storage, current, table, random)?;
    }
    view.len = view
        .storage
        .len()
        .map_err(|source| Error::io("cannot tell the length of the file", source))?;
    Ok(current)
}

/// Whether an image may be opened in the way asked for.
fn admit(metadata: &Metadata, options: &LoadOptions<'_>, header: &Header) -> Result<()> {
    if let (Some(mark), false) = (metadata.mark, options.admit.marked) {
        let what = match mark {
            Mark::Incomplete => {
                "this image is the target of a migration that is not complete; its data is partial"
            }
            Mark::HandedOver => {
                "this image was handed over to another host; its data is out of date"
            }
        };
        return Err(Error::new(ErrorKind::NotOwned, what));
    }
    if metadata.parent.is_some() && !options.admit.parent {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "this disk is built on another one, and is opened with it or not at all",
        ));
    }
    if options.writable && header.log_len == 0 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "this image has no log (LogLength is 0); it can only be opened for reading",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
