//! The disk engine: requests in, file operations out.
//!
//! ```text
//!   submit(id, Request)     a guest-visible operation
//!   next_op() -> FileOp     what to do to the file now
//!   complete(op, Outcome)   one was done, or failed
//!   next_completion()       what to tell the guest
//! ```
//!
//! After each `submit`, `complete` and `poll` the driver drains `next_op` and `next_completion`.
//! The engine says where bytes are and never holds a guest's: an operation's payload is metadata of
//! its own or a range of a request whose buffer the driver keeps. It does no I/O, reads no clock and
//! takes its randomness as a seed; the crash simulation runs this very code.
//!
//! Reads, and writes to blocks that are there, need none of this: the [`BlockMap`] answers them on
//! whichever thread they arrive. What comes here: allocation, zeroing and discarding, blocks in which
//! a parent has a part, unaligned writes, flushes with anything unpublished, a session's first write, pages of the BAT that are not
//! in memory.
//!
//! The order of writes is reasoned out in `docs/crash-consistency.md`; the format is MS-VHDX.

mod fence;
mod flush;
mod map;
mod op;
mod ops;
mod requests;
mod resize;
mod step;
mod vhdx;

pub use map::{
    Access, BlockMap, Generation, Lookup, MAX_WORKERS, MapShape, PAGE_ENTRIES, Participant,
};
pub use op::{
    Compacted, Completion, Done, Extent, FileOp, FileOpKind, Mark, OpId, Outcome, Request,
    RequestId,
};
pub use vhdx::{EngineOptions, ImageState, TrackState};

use std::sync::Arc;

use self::fence::Fence;
use self::flush::Flusher;
use self::ops::{Ops, Purpose};
use self::requests::Requests;
use self::resize::Resizing;
use self::vhdx::Vhdx;

/// The machine that decides everything about one disk. It has one owner at a time.
#[derive(Debug)]
pub struct Engine {
    map: Arc<BlockMap>,
    /// The engine's own part in the reclamation rule.
    me: Participant,
    ops: Ops,
    requests: Requests,
    flusher: Flusher,
    fence: Fence,
    /// The resize that is alone on the disk.
    resizing: Option<Resizing>,
    /// What a raw image does not have.
    vhdx: Option<Box<Vhdx>>,
    /// Why nothing more is accepted, once a flush has failed.
    failed: Option<String>,
    /// Something happened that a blocked request may have waited for.
    wake: bool,
}

impl Engine {
    /// An engine for a raw image of `size` bytes whose writes must be multiples of `alignment`.
    #[must_use]
    pub fn raw(size: u64, alignment: u64, read_only: bool) -> Self {
        let shape = MapShape {
            block_shift: None,
            chunk_shift: 0,
            alignment,
            read_only,
            parent: false,
        };
        let map = Arc::new(BlockMap::new(shape, size, 0, 1));
        map.set_armed(!read_only);
        Self::over(map, None)
    }

    fn over(map: Arc<BlockMap>, vhdx: Option<Box<Vhdx>>) -> Self {
        Self {
            me: map.register(),
            map,
            ops: Ops::default(),
            requests: Requests::default(),
            flusher: Flusher::default(),
            fence: Fence::default(),
            resizing: None,
            vhdx,
            failed: None,
            wake: false,
        }
    }

    /// The map that workers read.
    #[must_use]
    pub fn map(&self) -> &Arc<BlockMap> {
        &self.map
    }

    /// Take on a request; `id` names it until it completes.
    ///
    /// # Panics
    /// When a request of that name is active.
    pub fn submit(&mut self, id: RequestId, request: Request) {
        self.requests.insert(id, request);
        self.step(id);
        self.settle();
    }

    /// The next operation for the driver, if there is one now.
    pub fn next_op(&mut self) -> Option<FileOp> {
        self.ops.pop()
    }

    /// Tell how an operation went.
    pub fn complete(&mut self, op: OpId, outcome: Outcome) {
        if let Some(purpose) = self.ops.end(op) {
            self.ended(purpose, outcome);
        }
        self.fence_poll();
        self.wake |= self.moves_wait();
        self.settle();
    }

    /// The next request that ended, if there is one now.
    pub fn next_completion(&mut self) -> Option<Completion> {
        self.requests.pop_completion()
    }

    /// Look again at what waits for workers; a [`Participant`] says when.
    pub fn poll(&mut self) {
        self.fence_poll();
        self.reclaim();
        self.wake |= self.resizing.is_some() || self.moves_wait();
        self.settle();
    }

    /// A flush that a worker made without the engine failed, for the reason `why`: from now on nothing
    /// more is accepted, as after a failed flush of the engine's own.
    pub fn fail(&mut self, why: &str) {
        self.fail_disk(why);
        self.settle();
    }

    /// Whether nothing is under way: no operation is waiting or running.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.ops.is_idle()
    }

    fn ended(&mut self, purpose: Purpose, outcome: Outcome) {
        match purpose {
            Purpose::Part {
                request,
                generation,
                sets,
            } => {
                // The engine itself is asking: nobody needs to be told to poll it.
                let _ = self.me.leave(generation);
                if let Some(sectors) = sets {
                    self.sectors_written(sectors, &outcome);
                }
                self.part_ended(request, outcome);
            }
            Purpose::CopyUp { request, sets } => self.copied_up(request, sets, outcome),
            Purpose::LoadBits(at) => self.bits_loaded(at, outcome),
            Purpose::ReserveBitmap(at) => self.bitmap_reserved(at, &outcome),
            Purpose::Holes { request } => self.holes_ended(request, outcome),
            Purpose::LoadPage(page, at) => self.page_loaded((page, at), outcome),
            Purpose::Resize => self.resize_op_ended(outcome),
            Purpose::Survey => self.survey_op_ended(outcome),
            Purpose::Gather => self.gathered(outcome),
            Purpose::Move(index) => self.block_moved(index, outcome),
            Purpose::Track(op) => self.track_op_ended(op, outcome),
            Purpose::Grow(len) => self.grown(len, &outcome),
            Purpose::ReserveBat(granule) => self.bat_reserved(granule, &outcome),
            Purpose::Clean(at) => self.cleaned(at, &outcome),
            Purpose::Session => match outcome {
                Outcome::Failed(error) => self.session_op_failed(&error),
                _ => self.session_op_ended(),
            },
            _ => match outcome {
                Outcome::Failed(error) => self.fail_disk(&format!("{purpose:?} failed: {error}")),
                _ if self.failed.is_some() => {}
                _ => self.durability_ended(purpose),
            },
        }
    }

    fn durability_ended(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::HostFlush => self.host_flush_done(),
            Purpose::LogWrite => self.log_written(),
            Purpose::Apply => self.applied(),
            _ => {}
        }
    }

    /// Let whoever was blocked try again until nothing moves any more.
    fn settle(&mut self) {
        while std::mem::take(&mut self.wake) {
            self.fence_poll();
            for id in self.requests.take_blocked() {
                self.step(id);
            }
            self.reclaim();
        }
        if let Some(vhdx) = &mut self.vhdx {
            vhdx.space.forget_full();
            vhdx.pages.forget_unread();
            vhdx.bitmaps.forget_unread();
        }
        self.flush_kick();
        self.track_kick();
        self.map.set_attention(self.waits_for_workers());
    }

    fn waits_for_workers(&self) -> bool {
        let freed = self
            .vhdx
            .as_ref()
            .is_some_and(|vhdx| vhdx.space.has_freed() || vhdx.track_waits());
        freed || self.moves_wait() || !self.fence.is_open()
    }
}
