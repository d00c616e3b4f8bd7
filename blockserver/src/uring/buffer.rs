//! Memory for direct I/O: aligned buffers and pieces of a guest's memory, shared with the kernel while
//! an operation runs, and a pool of the former.
//!
//! Soundness rests on five rules kept in this module, in [`guest`](super::guest) and in
//! [`ring`](super::ring):
//!
//! 1. An operation in flight holds a clone of its [`IoBuffer`], so the memory outlives it.
//! 2. A reference into the memory exists only while its holder is the only one
//!    ([`IoBuffer::unique`]), hence never while an operation is in flight.
//! 3. Everything else goes by copies through raw pointers, which make no claim about aliasing; where
//!    such a copy and the kernel touch the same bytes, the bytes are torn, no more. An [`IoBuffer`]
//!    can not leave its thread.
//! 4. A guest's memory has no holder that is the only one: the guest is another. There is never a
//!    reference into it.
//! 5. Bytes that were lent are only read: others refer to them. What would change them panics.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

use super::guest::{Piece, Pieces};
use crate::virtio::GuestMemory;

/// Alignment and granularity of every buffer, in bytes; enough for direct I/O on any block device
/// with sectors of up to this size.
pub(crate) const ALIGNMENT: usize = 4096;

/// Buffers from this size on take memory page by page as they are used.
const LAZY: usize = 256 << 10;

/// The largest size class of the pool: a request of 32 MiB with its surroundings.
const LARGEST_CLASS: usize = 64 << 20;

/// Size classes from [`ALIGNMENT`] to [`LARGEST_CLASS`], each twice the one before.
const CLASSES: usize = (LARGEST_CLASS / ALIGNMENT).trailing_zeros() as usize + 1;

/// How many buffers of a size wait for their pool once nobody has them any more, and the largest that do.
const MOST_RETURNED: usize = 8;
const LARGEST_RETURNED: usize = 1 << 20;

/// An owned, zero-initialised piece of memory aligned to [`ALIGNMENT`].
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    capacity: usize,
    /// What the allocator gave, `start` being somewhere in it.
    base: NonNull<u8>,
}

// SAFETY: a `Memory` owns its bytes alone, as a `Box<[u8]>` does; nothing about it is bound to a
// thread.
unsafe impl Send for Memory {}

// SAFETY: through a shared reference the memory can only be read (`AsRef` of `Aligned`), by rule 2 of
// the module only when nobody writes to it.
unsafe impl Sync for Memory {}

impl Memory {
    /// At least `len` bytes of zeros. Of long ones only the pages that are used take memory: a client
    /// may announce much and send little.
    pub(crate) fn zeroed(len: usize) -> Self {
        let capacity = len.max(1).next_multiple_of(ALIGNMENT);
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero: `capacity` is a positive multiple of ALIGNMENT.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else {
            handle_alloc_error(layout);
        };
        let skip = base.align_offset(ALIGNMENT);
        // SAFETY: less than ALIGNMENT bytes are skipped, and by none if `base` is aligned; else the
        // layout has ALIGNMENT bytes more than `capacity`.
        let start = unsafe { base.add(skip) };
        Self {
            start,
            capacity,
            base,
        }
    }

    /// Memory of a large alignment is zeroed by the allocator with its own hands; memory of a small
    /// one it takes, when it is much, as zero pages from the kernel.
    fn layout(capacity: usize) -> Layout {
        let (size, alignment) = if capacity < LAZY {
            (capacity, ALIGNMENT)
        } else {
            (capacity + ALIGNMENT, 16)
        };
        Layout::from_size_align(size, alignment).expect("the size of a buffer fits an isize")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, freed nowhere else.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.capacity)) }
    }
}

/// Memory that was let go of, on whichever thread, for the pool that it came from: fresh pages cost a fault each.
#[derive(Debug, Default)]
struct Returned {
    waiting: Mutex<[Vec<Memory>; RETURNED_CLASSES]>,
}

/// Sizes from [`ALIGNMENT`] to [`LARGEST_RETURNED`].
const RETURNED_CLASSES: usize = (LARGEST_RETURNED / ALIGNMENT).trailing_zeros() as usize + 1;

impl Returned {
    /// What is of no use is freed.
    fn put(&self, memory: Memory) {
        let size = memory.capacity;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(class) = waiting.get_mut(class_of(size))
            && size.is_power_of_two()
            && class.len() < MOST_RETURNED
        {
            class.push(memory);
        }
    }

    /// Memory of exactly that size, a power of two.
    fn take(&self, size: usize) -> Option<Memory> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.get_mut(class_of(size))?.pop()
    }
}

/// An owned piece of memory, which goes back to the pool that it came from, if that is there.
#[derive(Debug)]
pub(crate) struct Aligned {
    /// There until it is dropped.
    memory: Option<Memory>,
    home: Weak<Returned>,
}

impl Aligned {
    fn zeroed(len: usize) -> Self {
        Self::new(Memory::zeroed(len), Weak::new())
    }

    fn new(memory: Memory, home: Weak<Returned>) -> Self {
        let memory = Some(memory);
        Self { memory, home }
    }

    fn memory(&self) -> &Memory {
        self.memory
            .as_ref()
            .expect("it is there until it is dropped")
    }
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        let memory = self.memory();
        // SAFETY: `start` points to `capacity` bytes initialised at allocation. An `Aligned` outside
        // an `IoBuffer` is owned alone (`IoBuffer::into_aligned` checks), so nobody writes to it
        // while the reference lives.
        unsafe { std::slice::from_raw_parts(memory.start.as_ptr(), memory.capacity) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        if let (Some(memory), Some(home)) = (self.memory.take(), self.home.upgrade()) {
            home.put(memory);
        }
    }
}

/// A buffer that an operation and its requester hold together.
#[derive(Clone, Debug)]
pub(crate) struct IoBuffer(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// Memory of our own.
    Own(Rc<Aligned>),
    /// A guest's.
    Guest(Rc<Pieces>),
    /// Bytes that never change, of whoever asked for them to be written; at any address.
    Lent(Rc<Bytes>),
}

impl IoBuffer {
    /// At least `len` bytes of zeros, outside any pool.
    pub(crate) fn zeroed(len: usize) -> Self {
        Self::own(Aligned::zeroed(len))
    }

    fn own(aligned: Aligned) -> Self {
        Self(Kind::Own(Rc::new(aligned)))
    }

    /// The bytes of these segments (address, length) of a guest's memory; `None` where some are not
    /// there, or there are none, or they lie in more pieces than one system call takes.
    pub(crate) fn of_guest(
        memory: &Rc<GuestMemory>,
        segments: impl Iterator<Item = (u64, usize)>,
    ) -> Option<Self> {
        let pieces = Pieces::of(memory, segments)?;
        Some(Self(Kind::Guest(Rc::new(pieces))))
    }

    /// These bytes, to be written from where they are.
    pub(crate) fn lent(bytes: Bytes) -> Self {
        Self(Kind::Lent(Rc::new(bytes)))
    }

    /// The bytes of `range`, which is not empty and inside, as a buffer: of a guest's memory the same
    /// bytes, of other memory none.
    pub(crate) fn part(&self, range: Range<usize>) -> Option<Self> {
        match &self.0 {
            Kind::Own(_) | Kind::Lent(_) => None,
            Kind::Guest(pieces) if range == (0..pieces.len()) => Some(self.clone()),
            Kind::Guest(pieces) => Some(Self(Kind::Guest(Rc::new(pieces.part(range)?)))),
        }
    }

    /// How many bytes it holds.
    pub(crate) fn capacity(&self) -> usize {
        match &self.0 {
            Kind::Own(aligned) => aligned.memory().capacity,
            Kind::Guest(pieces) => pieces.len(),
            Kind::Lent(bytes) => bytes.len(),
        }
    }

    /// Whether others may change the bytes whenever they like.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.0, Kind::Guest(_))
    }

    /// The bytes, if nobody else (an operation in flight, above all) holds the buffer; a guest's
    /// memory never.
    pub(crate) fn unique(&mut self) -> Option<&mut [u8]> {
        let Kind::Own(aligned) = &mut self.0 else {
            return None;
        };
        let memory = Rc::get_mut(aligned)?.memory();
        // SAFETY: initialised memory of `capacity` bytes; `get_mut` proved that no other handle, so
        // no operation in flight and no other reference exists for as long as the borrow lasts.
        Some(unsafe { std::slice::from_raw_parts_mut(memory.start.as_ptr(), memory.capacity) })
    }

    /// The memory itself, to be given to another thread, if it is our own and nobody else holds it.
    pub(crate) fn into_aligned(self) -> Result<Aligned, Self> {
        match self.0 {
            Kind::Own(aligned) => Rc::try_unwrap(aligned).map_err(|shared| Self(Kind::Own(shared))),
            Kind::Guest(_) | Kind::Lent(_) => Err(self),
        }
    }

    /// Rule 5.
    ///
    /// # Panics
    /// When the bytes are lent.
    pub(super) fn check_not_lent(&self) {
        let lent = matches!(self.0, Kind::Lent(_));
        assert!(!lent, "bytes that were lent are not written to");
    }

    /// Copy `data` to `at`.
    pub(crate) fn copy_in(&self, at: usize, data: &[u8]) {
        self.check_not_lent();
        let mut from = data.as_ptr();
        for Piece { start, len } in self.pieces(at..at + data.len()) {
            // SAFETY: `pieces` checked the bounds of the target, and its lengths add up to that of
            // `data`; by rules 2 and 4 no reference into the target exists, so `data` lies elsewhere.
            unsafe { std::ptr::copy_nonoverlapping(from, start, len) }
            from = from.wrapping_add(len);
        }
    }

    /// Append the bytes of `range` to `to`.
    pub(crate) fn copy_out(&self, range: Range<usize>, to: &mut Vec<u8>) {
        to.reserve(range.len());
        for Piece { start, len } in self.pieces(range) {
            let end = to.len();
            // SAFETY: `pieces` checked the source; `reserve` made room for all of the target, of which
            // this copy initialises the next part before the length covers it.
            unsafe {
                std::ptr::copy_nonoverlapping(start, to.as_mut_ptr().add(end), len);
                to.set_len(end + len);
            }
        }
    }

    /// Copy the bytes of `range` of `from` to `at`.
    pub(crate) fn copy_from(&self, at: usize, from: &Self, range: Range<usize>) {
        self.check_not_lent();
        let mut next = range.start;
        for target in self.pieces(at..at + range.len()) {
            let mut to = target.start;
            for Piece { start, len } in from.pieces(next..next + target.len) {
                // SAFETY: `pieces` checked both ends, and the lengths of the inner ones add up to that
                // of the outer one; `copy` allows them to overlap.
                unsafe { std::ptr::copy(start, to, len) }
                to = to.wrapping_add(len);
            }
            next += target.len;
        }
    }

    /// Fill `range` with zeros.
    pub(crate) fn zero(&self, range: Range<usize>) {
        self.check_not_lent();
        for Piece { start, len } in self.pieces(range) {
            // SAFETY: `pieces` checked the bounds.
            unsafe { std::ptr::write_bytes(start, 0, len) }
        }
    }

    /// Whether every piece of `range` begins and ends at multiples of `mask` + 1, a power of two that
    /// is at most [`ALIGNMENT`].
    pub(crate) fn is_aligned(&self, range: Range<usize>, mask: usize) -> bool {
        match &self.0 {
            Kind::Own(_) => (range.start | range.len()) & mask == 0,
            Kind::Guest(_) | Kind::Lent(_) => {
                let odd = |piece: Piece| (piece.start.addr() | piece.len) & mask;
                self.pieces(range).all(|piece| odd(piece) == 0)
            }
        }
    }

    /// The bytes of `range`, as vectors for the kernel; `None` when they are in one piece.
    pub(super) fn vectors(&self, range: Range<usize>) -> Option<Box<[libc::iovec]>> {
        let mut pieces = self.pieces(range);
        let (first, second) = (pieces.next()?, pieces.next()?);
        let all = [first, second].into_iter().chain(pieces);
        let vector = |piece: Piece| libc::iovec {
            iov_base: piece.start.cast(),
            iov_len: piece.len,
        };
        Some(all.map(vector).collect())
    }

    /// Where the bytes of `range` begin; nothing is written there unless [`Self::check_not_lent`] was asked.
    ///
    /// # Panics
    /// When the range is not inside the buffer, or not in one piece.
    pub(super) fn pointer(&self, range: Range<usize>) -> *mut u8 {
        let len = range.len();
        match &self.0 {
            Kind::Own(aligned) => {
                self.check(&range);
                // SAFETY: within the allocation, by the check.
                unsafe { aligned.memory().start.as_ptr().add(range.start) }
            }
            Kind::Guest(_) => {
                let piece = self.pieces(range).next();
                let whole = piece.filter(|piece| piece.len == len);
                whole.expect("the bytes lie in one piece").start
            }
            Kind::Lent(bytes) => {
                self.check(&range);
                bytes.as_ptr().wrapping_add(range.start).cast_mut()
            }
        }
    }

    /// The pieces that `range` is in.
    ///
    /// # Panics
    /// When the range is not inside the buffer.
    fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = Piece> {
        self.check(&range);
        let (own, guest) = match &self.0 {
            Kind::Own(_) | Kind::Lent(_) => {
                let (len, start) = (range.len(), self.pointer(range));
                (Some(Piece { start, len }), None)
            }
            Kind::Guest(pieces) => (None, Some(pieces.within(range))),
        };
        own.into_iter().chain(guest.into_iter().flatten())
    }

    fn check(&self, range: &Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.capacity(),
            "{range:?} is outside a buffer of {} bytes",
            self.capacity()
        );
    }
}

/// Buffers kept for use again, up to a bound of bytes, and a few of each size besides that others let go of.
#[derive(Debug)]
pub(crate) struct Pool {
    classes: [Vec<IoBuffer>; CLASSES],
    kept: usize,
    limit: usize,
    /// What was let go of, by others above all.
    returned: Arc<Returned>,
}

impl Pool {
    /// A pool that keeps at most `limit` bytes for later.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            classes: [const { Vec::new() }; CLASSES],
            kept: 0,
            limit,
            returned: Arc::default(),
        }
    }

    /// A buffer of at least `len` bytes. It holds what its last user left in it.
    pub(crate) fn take(&mut self, len: usize) -> IoBuffer {
        let size = len.max(ALIGNMENT).next_power_of_two();
        let Some(class) = self.classes.get_mut(class_of(size)) else {
            return IoBuffer::zeroed(len);
        };
        if let Some(buffer) = class.pop() {
            self.kept -= size;
            return buffer;
        }
        let memory = self.returned.take(size);
        let memory = memory.unwrap_or_else(|| Memory::zeroed(size));
        IoBuffer::own(Aligned::new(memory, Arc::downgrade(&self.returned)))
    }

    /// Keep a buffer for later, unless someone else still holds it or there is enough.
    pub(crate) fn give(&mut self, mut buffer: IoBuffer) {
        let size = buffer.capacity();
        let room = self.kept + size <= self.limit && size.is_power_of_two();
        if !room || buffer.unique().is_none() {
            return;
        }
        if let Some(class) = self.classes.get_mut(class_of(size)) {
            self.kept += size;
            class.push(buffer);
        }
    }
}

/// Which class buffers of `size` bytes (a power of two, at least [`ALIGNMENT`]) belong to.
fn class_of(size: usize) -> usize {
    (size / ALIGNMENT).trailing_zeros() as usize
}

#[cfg(test)]
#[path = "buffer_tests.rs"]
mod tests;
