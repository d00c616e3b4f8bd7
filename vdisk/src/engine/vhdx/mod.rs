//! The part of the engine that knows VHDX: allocation, publication through the log, sessions.
//!
//! | module | decides |
//! |---|---|
//! | [`pages`] | which pages of the BAT are in memory, which are pending |
//! | [`space`] | where a new block goes, when freed space may be used again |
//! | [`log`] | what the log holds, when it may be overwritten (MS-VHDX 2.3) |
//! | [`session`] | the headers: opening a session at the first change, parking it (MS-VHDX 2.2.2) |
//! | [`blocks`] | what each kind of request does to a block |
//! | [`resize`] | what another size takes: entries, the table, the size itself |
//! | [`resize_child`] | the same where there is a parent, which must not shine through |
//! | [`child`] | what each kind of request does where there is a parent (MS-VHDX 2.5.1.1, states 0 and 7) |
//! | [`survey`] | which space is taken, where the image was opened without reading its whole BAT |
//! | [`walk`] | which part of the BAT is read next by what goes through all of it |
//! | [`compact`] | which blocks are moved so that the file becomes shorter |
//! | [`moves`] | how one block is moved under whoever reads and writes it |
//! | [`track`] | what is noted of changes, and when that is durable |
//! | [`bitmaps`] | which sectors of a block are the child's own (MS-VHDX 2.5.1.2) |

mod bitmaps;
mod blocks;
mod child;
mod compact;
mod log;
mod moves;
mod order;
mod pages;
mod resize;
mod resize_child;
mod session;
mod space;
mod survey;
mod track;
mod walk;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

pub(super) use self::bitmaps::Sectors;

use self::bitmaps::Bitmaps;
use self::compact::Compaction;
use self::log::Log;
use self::moves::Moves;
use self::pages::Pages;
pub(super) use self::resize::Table;
use self::session::Session;
use self::space::{Space, Taken};
use self::survey::Survey;
use self::track::Track;
pub(super) use self::track::TrackOp;
pub use self::track::TrackState;
use super::{BlockMap, Engine, MapShape, Mark, RequestId};
use crate::format::header::Slot;
use crate::format::metadata::SizeItem;
use crate::format::{Geometry, Guid, Header, RegionTable};
use crate::space::Occupied;
use crate::units::{FileOffset, MIB};

/// Bytes of a BAT page.
pub(super) const PAGE: u64 = 4096;

/// Pages of a child's BAT that are kept at least. A write there may need two at once, its block's and
/// its bitmap's; with too few, requests would go on taking them from each other.
const LEAST_FRAMES: usize = 8;

/// What opening an image found out, as far as the engine needs it.
#[derive(Clone, Debug)]
pub struct ImageState {
    /// The current header.
    pub header: Header,
    /// Where it was read from.
    pub slot: Slot,
    /// Block size, sector size, virtual size.
    pub geometry: Geometry,
    /// Where BAT and metadata lie.
    pub regions: RegionTable,
    /// The first page of the metadata table.
    pub metadata_page: Bytes,
    /// The item that says the size of the disk.
    pub size_item: SizeItem,
    /// The mark that is in place.
    pub mark: Option<Mark>,
    /// Whether blocks keep their space (a fixed disk).
    pub leave_allocated: bool,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// What of the file is in use.
    pub used: Occupied,
    /// Pages that a replay in memory has changed, by their offset in the file (read-only opens).
    pub overlay: BTreeMap<u64, Bytes>,
}

/// How an engine is to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Nothing may be written.
    pub read_only: bool,
    /// Ranges written must be multiples of this in the file, a power of two; 1 if any may.
    pub alignment: u64,
    /// Memory for pages of the BAT, in bytes.
    pub cache: usize,
    /// Random bits, fresh for each engine: the GUIDs of its sessions come from them.
    pub seed: u128,
    /// Length the log shall at least have, in bytes; `None` chooses by the size of the BAT.
    pub log_len: Option<u32>,
    /// A BAT of at most so many bytes is read and checked whole before anything is written, which takes
    /// some milliseconds; a longer one is gone through in the background.
    pub scan_first: u64,
    /// Pages in one entry of the log at most, at least one; more make several entries.
    pub entry_pages: usize,
    /// The `DataWriteGuid` of its sessions; `None` for a fresh one each. A merge announces the one that
    /// a parent will have before it changes it.
    pub data_write: Option<Guid>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            alignment: 1,
            cache: 64 << 20,
            seed: 0,
            log_len: None,
            scan_first: 4 * MIB,
            entry_pages: 1000,
            data_write: None,
        }
    }
}

/// What a VHDX disk has beyond a raw one.
#[derive(Debug)]
pub(super) struct Vhdx {
    layout: Layout,
    pub(super) pages: Pages,
    pub(super) bitmaps: Bitmaps,
    pub(super) space: Space,
    pub(super) log: Log,
    session: Session,
    survey: Option<Survey>,
    moves: Moves,
    compaction: Option<Box<Compaction>>,
    /// The request that a compaction works for.
    compacting: Option<RequestId>,
    /// What a resize has for the next flush round.
    resize_pages: Vec<(FileOffset, Bytes)>,
    /// Where changes are noted, if they are.
    track: Option<Box<Track>>,
}

/// What changes only when the image is marked or the disk is resized.
#[derive(Debug)]
pub(super) struct Layout {
    geometry: Geometry,
    block_size: u64,
    regions: RegionTable,
    metadata_page: Bytes,
    size_item: SizeItem,
    mark: Option<Mark>,
    leave_allocated: bool,
    overlay: BTreeMap<u64, Bytes>,
}

impl Engine {
    /// An engine for an opened VHDX image.
    #[must_use]
    pub fn vhdx(image: ImageState, options: &EngineOptions) -> Self {
        let geometry = image.geometry;
        let block_size = u64::from(geometry.block_size());
        let shape = MapShape {
            block_shift: Some(block_size.trailing_zeros()),
            chunk_shift: geometry.chunk_ratio().trailing_zeros(),
            alignment: options.alignment,
            read_only: options.read_only,
            parent: geometry.differencing(),
        };
        // A quarter of the memory is for sector bitmaps, where there are any.
        let cache_pages = options.cache / PAGE as usize;
        let (frames, bit_pages) = if geometry.differencing() {
            ((cache_pages / 4 * 3).max(LEAST_FRAMES), cache_pages / 4)
        } else {
            (cache_pages.max(2), 0)
        };
        // The disk may grow while workers hold the map, so it has room for the largest table: 4 bytes a
        // page, 512 KiB at most.
        let entries = geometry.largest().bat_entries();
        let map = Arc::new(BlockMap::new(
            shape,
            geometry.virtual_size(),
            entries,
            frames,
        ));
        let log_len = log::wanted_len(&geometry, options.log_len, image.header.log_len);
        let limit = pages::pending_limit(&map, geometry.largest().bat_len(), log_len);
        let vhdx = Vhdx {
            pages: Pages::new(map.frame_count(), limit, image.regions.bat().len),
            bitmaps: Bitmaps::new(bit_pages, block_size / u64::from(geometry.sector())),
            space: Space::new(
                block_size,
                image.file_len,
                image.used.end,
                Taken::new(image.used.map, image.used.scanned),
            ),
            log: Log::new(log_len, options.entry_pages),
            session: Session::new(image.header, image.slot, (options.seed, options.data_write)),
            survey: None,
            moves: Moves::default(),
            compaction: None,
            compacting: None,
            resize_pages: Vec::new(),
            track: None,
            layout: Layout {
                geometry,
                block_size,
                regions: image.regions,
                metadata_page: image.metadata_page,
                size_item: image.size_item,
                mark: image.mark,
                leave_allocated: image.leave_allocated,
                overlay: image.overlay,
            },
        };
        Self::over(map, Some(Box::new(vhdx)))
    }

    /// The mark that is in the image, if it is one that can carry one.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        self.vhdx.as_ref().and_then(|vhdx| vhdx.layout.mark)
    }
}

/// GUIDs from a seed: a counter through a mixer whose every output bit depends on every input bit.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuidSource {
    state: u128,
}

impl GuidSource {
    pub(super) fn new(seed: u128) -> Self {
        Self { state: seed }
    }

    pub(super) fn next(&mut self) -> Guid {
        self.state = self
            .state
            .wrapping_add(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        let high = mix((self.state >> 64) as u64 ^ mix(self.state as u64));
        let low = mix(high ^ self.state as u64);
        Guid::from_random(u128::from(high) << 64 | u128::from(low))
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
