//! Taking a checkpoint: one exact instant, alone on the disk.
//!
//! ```text
//!   alone | a flush round | all bits to the bitmap that collected until now | flush
//!         | the new bitmap zero | header with the checkpoint | flush | done
//! ```
//!
//! The flush round comes first: what completed before the checkpoint must not be lost by a crash after
//! it, or the disk would change after the checkpoint without a bit. What the activity log names stays
//! named; it stands for the new bitmap from then on.

use crate::engine::ops::Purpose;
use crate::engine::step::Run;
use crate::engine::{Engine, FileOpKind, Outcome, RequestId};
use crate::error::{Error, ErrorKind, Result};
use crate::format::track::{Checkpoint, CheckpointName};
use crate::units::FileOffset;

use super::TrackOp;

/// How far the checkpoint is that is being taken.
#[derive(Debug)]
pub(super) enum Taking {
    /// The flush round with this number is waited for.
    Round(u64),
    /// Bits go to the bitmap that collected until now.
    Saving,
    /// This bitmap becomes zero.
    Zeroing(u32),
    /// It is, or could not be.
    Zeroed(u32, Option<std::io::Error>),
    /// The header is being written.
    Header,
}

impl Engine {
    /// Take a checkpoint as far as it goes now.
    pub(in crate::engine) fn checkpoint(&mut self, id: RequestId, name: CheckpointName, time: u64) {
        if !self.fence.holds(id) {
            if let Err(error) = self.check_checkpoint(name) {
                return self.finish_with(id, error);
            }
            return self.fence_want(id);
        }
        match self.session_open(id) {
            Ok(()) => {}
            Err(Run::Failed(error)) => return self.checkpoint_failed(id, error),
            Err(_) => return,
        }
        match self.checkpoint_go(name, time) {
            Ok(true) => self.checkpoint_taken(id),
            Ok(false) => self.requests.block(id),
            Err(error) => self.checkpoint_failed(id, error),
        }
    }

    fn check_checkpoint(&self, name: CheckpointName) -> Result<()> {
        let track = self.vhdx.as_ref().and_then(|vhdx| vhdx.track.as_ref());
        let Some(track) = track else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "changes of this disk are not tracked, so there are no checkpoints; turn tracking on first",
            ));
        };
        let mut names = track.header.checkpoints.iter().map(|one| one.name);
        if names.any(|one| one == name) {
            return Err(Error::invalid(format!(
                "there is a checkpoint named `{name}` already"
            )));
        }
        if track.header.unused_bitmap().is_none() {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "there are {} checkpoints, and room for no more; remove one first",
                    track.header.checkpoints.len()
                ),
            ));
        }
        Ok(())
    }

    fn taking(&mut self) -> Option<&mut Option<Taking>> {
        let track = self.vhdx.as_mut()?.track.as_mut()?;
        Some(&mut track.taking)
    }

    /// One step; whether it was the last.
    fn checkpoint_go(&mut self, name: CheckpointName, time: u64) -> Result<bool> {
        let stage = self.taking().and_then(Option::take);
        let next = match stage {
            None => {
                // Another one of that name may have come first.
                self.check_checkpoint(name)?;
                self.flusher.wanted = true;
                let round = self.flusher.begun + 1;
                self.flush_kick();
                Taking::Round(round)
            }
            Some(Taking::Round(round)) if self.flusher.ended < round => Taking::Round(round),
            Some(Taking::Round(_) | Taking::Saving) if !self.track_saved() => Taking::Saving,
            Some(Taking::Round(_) | Taking::Saving) => self.zero_bitmap(),
            Some(Taking::Zeroed(_, Some(error))) => {
                return Err(Error::io("no bitmap can be made for a checkpoint", error));
            }
            Some(Taking::Zeroed(bitmap, None)) => {
                self.add_checkpoint(name, time, bitmap);
                Taking::Header
            }
            Some(Taking::Header) if self.track_idle() => return Ok(true),
            Some(stage @ (Taking::Zeroing(_) | Taking::Header)) => stage,
        };
        if let Some(taking) = self.taking() {
            *taking = Some(next);
        }
        Ok(false)
    }

    fn track_idle(&self) -> bool {
        let track = self.vhdx.as_ref().and_then(|vhdx| vhdx.track.as_ref());
        track.is_none_or(|track| track.idle())
    }

    /// Nobody knows what an unused bitmap holds.
    fn zero_bitmap(&mut self) -> Taking {
        let track = self.vhdx.as_ref().and_then(|vhdx| vhdx.track.as_ref());
        let Some(track) = track else {
            return Taking::Saving;
        };
        let bitmap = track.header.unused_bitmap().unwrap_or(0);
        let shape = track.header.shape;
        let kind = FileOpKind::Zero {
            at: FileOffset(track.region.at.0 + shape.page_at(bitmap, 0)),
            len: shape.bitmap_len,
            keep: false,
        };
        self.ops.push(Purpose::Track(TrackOp::Zero), kind);
        Taking::Zeroing(bitmap)
    }

    pub(super) fn bitmap_zeroed(&mut self, outcome: Outcome) {
        let error = match outcome {
            Outcome::Failed(error) => Some(error),
            _ => None,
        };
        if let Some(taking) = self.taking()
            && let Some(Taking::Zeroing(bitmap)) = taking
        {
            *taking = Some(Taking::Zeroed(*bitmap, error));
        }
    }

    fn add_checkpoint(&mut self, name: CheckpointName, time: u64, bitmap: u32) {
        let size = self.map.size();
        let Some(vhdx) = &mut self.vhdx else { return };
        let data_write = vhdx.data_write();
        let Some(track) = &mut vhdx.track else { return };
        track.enter(data_write);
        track.header_wanted = true;
        let id = track.header.next_id;
        track.header.next_id += 1;
        track.header.checkpoints.push(Checkpoint {
            id,
            name,
            time,
            size,
            low: size,
            bitmap,
            lost: false,
        });
    }

    /// It is durable: what changes from now on counts for it.
    fn checkpoint_taken(&mut self, id: RequestId) {
        if let (Some(vhdx), Some(map)) = (&mut self.vhdx, self.map.track())
            && let Some(track) = &mut vhdx.track
        {
            for number in track.frames.here() {
                map.clear(number);
            }
            track.epoch += 1;
            map.set_collecting(true);
        }
        self.requests.finish(id);
        self.fence_release(id);
        self.wake = true;
    }

    fn checkpoint_failed(&mut self, id: RequestId, error: Error) {
        if let Some(taking) = self.taking() {
            *taking = None;
        }
        self.finish_with(id, error);
    }
}
