//! Making a differencing disk one of its own, in its file.
//!
//! ```text
//!   disk:  what it reads from its parents and is not zero becomes its own, and every sector of a block
//!          that is partially present; closed
//!   disk:  such blocks become fully present; the parent is forgotten; bitmaps go           (its log)
//! ```
//!
//! A crash anywhere leaves a disk that reads as before, over its parent or without it; flattening again goes
//! on. What the disk holds never changes, so its version stays, and disks built on it are not
//! disturbed.

use std::path::Path;

use super::{PIECE, WINDOW, unchanged};
use crate::chain::ParentSearch;
use crate::disk::{Disk, OpenOptions, random_bits};
use crate::engine::Extent;
use crate::error::Result;
use crate::info::info;
use crate::open::{PartialBlocks, detach};
use crate::storage::FileStorage;

/// Parts of blocks that are zero in the parent are told apart in runs of this many bytes.
const GRAIN: usize = 64 << 10;

/// What flattening a disk did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flattened {
    /// Bytes that became its own.
    pub copied: u64,
    /// Whether it had a parent until now.
    pub had_parent: bool,
}

/// Make the disk at `path` one that is built on no other; its parents are found as `search` says and
/// are not changed. The disk must not be in use.
///
/// A disk without a parent is left as it is, but for what an earlier call left that was cut short.
/// `progress` is as for [`commit`](super::commit). Fails as opening the disk does, and with
/// `NoSpace` when what becomes its own finds no room; it then reads as before.
pub fn flatten(
    path: &Path,
    search: &ParentSearch,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Flattened> {
    let in_file = |error: crate::Error| error.in_file(path);
    let mut storage = FileStorage::open(path, true)?;
    let told = info(&mut storage).map_err(in_file)?;
    let version = told.ids.data_write;
    let mut copied = 0;
    if told.parent.is_some() {
        let partial = PartialBlocks::read(&mut storage, &mut random_bits).map_err(in_file)?;
        drop(storage);
        let writing = OpenOptions {
            same_content: true,
            ..OpenOptions::default()
        };
        let disk = Disk::open_with(path, &writing, search)?;
        unchanged(&disk, version, path)?;
        let mut flattening = Flattening {
            disk,
            block: u64::from(told.block_size),
            partial,
            copied: 0,
            reached: 0,
        };
        if let Err(stopped) = flattening.run(progress) {
            // What is done already need not be done again; why it stopped says more than a failure here.
            let _ = flattening.disk.flush();
            return Err(stopped);
        }
        copied = flattening.copied;
        flattening.disk.close()?;
        storage = FileStorage::open(path, true)?;
    }
    let had_parent = detach(&mut storage, version, &mut random_bits).map_err(in_file)?;
    Ok(Flattened { copied, had_parent })
}

/// A disk that is being made one of its own.
struct Flattening {
    disk: Disk,
    /// Bytes of a block.
    block: u64,
    /// Those blocks of which no sector may stay the parent's.
    partial: PartialBlocks,
    copied: u64,
    /// How far into the disk it has come.
    reached: u64,
}

impl Flattening {
    fn run(&mut self, progress: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        let (mut at, size) = (0, self.disk.size());
        while at < size {
            let window = WINDOW.min(size - at);
            for Extent {
                len,
                allocated,
                zero,
            } in self.disk.own_status(at, window)?
            {
                if !allocated && !zero {
                    self.own_range(at, len, progress)?;
                }
                at += len;
                self.tell(at, progress)?;
            }
        }
        Ok(())
    }

    /// Makes a range its own that is wholly the parent's.
    fn own_range(
        &mut self,
        mut at: u64,
        len: u64,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let end = at + len;
        while at < end {
            let start = at / self.block * self.block;
            let block_end = (start + self.block).min(self.disk.size());
            if self.partial.contains(start / self.block) {
                let to = block_end.min(end);
                self.own_pieces(at, to, progress)?;
                at = to;
                continue;
            }
            // Such a block is absent as a whole. It stays so if it reads as zero, with a parent or without.
            let zeros_end = start + self.zero_run(start, end.max(block_end))?;
            if zeros_end < block_end {
                self.own_pieces(start, block_end, progress)?;
                at = block_end;
            } else if zeros_end >= end {
                at = end;
            } else {
                at = zeros_end / self.block * self.block;
            }
        }
        Ok(())
    }

    /// Writes what the disk reads from `at` to `end`, inside one block, to the disk.
    fn own_pieces(
        &mut self,
        mut at: u64,
        end: u64,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let mut piece = vec![0; PIECE.min(end - at) as usize];
        while at < end {
            let now = PIECE.min(end - at) as usize;
            let piece = &mut piece[..now];
            self.disk.read_at(at, piece)?;
            let mut from = 0;
            while from < now {
                let zero = |part: &[u8]| part.iter().all(|byte| *byte == 0);
                let parts = || piece[from..].chunks(GRAIN);
                let first = parts().next().is_some_and(zero);
                let alike = parts().take_while(|part| zero(part) == first);
                let run: usize = alike.map(<[u8]>::len).sum();
                if first {
                    self.disk.zero(at + from as u64, run as u64)?;
                } else {
                    self.disk
                        .write_at(at + from as u64, &piece[from..from + run])?;
                }
                from += run;
            }
            at += now as u64;
            self.copied += now as u64;
            self.tell(at, progress)?;
        }
        Ok(())
    }

    /// Says how far it has come, never less than before.
    fn tell(&mut self, at: u64, progress: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        self.reached = self.reached.max(at);
        progress(self.reached)
    }

    /// How many bytes from `at`, at most up to `end`, certainly read as zero.
    fn zero_run(&mut self, at: u64, end: u64) -> Result<u64> {
        let extents = self.disk.status(at, end - at)?;
        let zeros = extents.iter().take_while(|extent| extent.zero);
        Ok(zeros.map(|extent| extent.len).sum())
    }
}
