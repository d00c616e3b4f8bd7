//! Pieces of a guest's memory that make one buffer.
//!
//! The guest owns these bytes and may change them at any moment, so there is never a reference to
//! them: they are copied through raw pointers, or named to the kernel. Whoever reads the same byte
//! twice may find two values. Where the pieces lie is checked against the guest's memory once, here.

use std::iter;
use std::ops::Range;
use std::rc::Rc;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::virtio::GuestMemory;

/// The most pieces of one buffer (`UIO_MAXIOV`).
pub(crate) const MAX_PIECES: usize = 1024;

/// Consecutive bytes of this process that are a guest's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) start: *mut u8,
    pub(super) len: usize,
}

/// The pieces, in the order of the buffer's bytes.
#[derive(Debug)]
pub(super) struct Pieces {
    /// Keeps the pieces mapped.
    memory: Rc<GuestMemory>,
    /// Most buffers have but one.
    first: Piece,
    more: Vec<Piece>,
    len: usize,
}

impl Pieces {
    /// The bytes of these segments (guest address, length); `None` where some are not the guest's, or
    /// there are none, or too many pieces.
    pub(super) fn of(
        memory: &Rc<GuestMemory>,
        segments: impl Iterator<Item = (u64, usize)>,
    ) -> Option<Self> {
        let mut made = Builder::default();
        for (address, len) in segments {
            // A segment may cross regions of the memory that do not lie beside each other here.
            for slice in GuestMemoryBackend::get_slices(&***memory, GuestAddress(address), len) {
                let slice = slice.ok()?;
                made.push(slice.ptr_guard_mut().as_ptr(), slice.len())?;
            }
        }
        made.finish(memory)
    }

    /// The pieces of a range, which is not empty and inside.
    pub(super) fn part(&self, range: Range<usize>) -> Option<Self> {
        let mut made = Builder::default();
        for piece in self.within(range) {
            made.push(piece.start, piece.len)?;
        }
        made.finish(&self.memory)
    }

    /// How many bytes they are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The pieces of a range, which is inside.
    pub(super) fn within(&self, range: Range<usize>) -> impl Iterator<Item = Piece> {
        let mut before = 0;
        let all = iter::once(&self.first).chain(&self.more);
        all.filter_map(move |piece| {
            let at = before;
            before += piece.len;
            let start = range.start.clamp(at, before);
            let end = range.end.clamp(at, before);
            let skip = start - at;
            (start < end).then(|| Piece {
                start: piece.start.wrapping_add(skip),
                len: end - start,
            })
        })
    }
}

#[derive(Default)]
struct Builder {
    first: Option<Piece>,
    more: Vec<Piece>,
    len: usize,
}

impl Builder {
    fn push(&mut self, start: *mut u8, len: usize) -> Option<()> {
        self.len = self.len.checked_add(len)?;
        let full = self.more.len() + 1 == MAX_PIECES;
        let last = self.more.last_mut().or(self.first.as_mut());
        match last {
            Some(last) if last.start.wrapping_add(last.len) == start => last.len += len,
            Some(_) if full => return None,
            Some(_) => self.more.push(Piece { start, len }),
            None => self.first = Some(Piece { start, len }),
        }
        Some(())
    }

    fn finish(self, memory: &Rc<GuestMemory>) -> Option<Pieces> {
        Some(Pieces {
            memory: Rc::clone(memory),
            first: self.first?,
            more: self.more,
            len: self.len,
        })
    }
}
