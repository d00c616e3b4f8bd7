//! Memory for direct I/O: aligned buffers, shared with the kernel while an operation runs, and a
//! pool of them.
//!
//! Soundness rests on three rules kept in this module and in [`ring`](super::ring):
//!
//! 1. An operation in flight holds a clone of its [`IoBuffer`], so the memory outlives it.
//! 2. A reference into the memory exists only while its holder is the only one
//!    ([`IoBuffer::unique`]), hence never while an operation is in flight.
//! 3. Everything else goes by copies through raw pointers, which make no claim about aliasing; where
//!    such a copy and the kernel touch the same bytes, the bytes are torn, no more. An [`IoBuffer`]
//!    can not leave its thread.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

/// Alignment and granularity of every buffer, in bytes; enough for direct I/O on any block device
/// with sectors of up to this size.
pub(crate) const ALIGNMENT: usize = 4096;

/// Buffers from this size on take memory page by page as they are used.
const LAZY: usize = 256 << 10;

/// The largest size class of the pool: a request of 32 MiB with its surroundings.
const LARGEST_CLASS: usize = 64 << 20;

/// Size classes from [`ALIGNMENT`] to [`LARGEST_CLASS`], each twice the one before.
const CLASSES: usize = (LARGEST_CLASS / ALIGNMENT).trailing_zeros() as usize + 1;

/// An owned, zero-initialised piece of memory aligned to [`ALIGNMENT`].
#[derive(Debug)]
pub(crate) struct Aligned {
    start: NonNull<u8>,
    capacity: usize,
    /// What the allocator gave, `start` being somewhere in it.
    base: NonNull<u8>,
}

// SAFETY: an `Aligned` owns its memory alone, as a `Box<[u8]>` does; nothing about it is bound to a
// thread.
unsafe impl Send for Aligned {}

// SAFETY: through a shared reference the memory can only be read (`AsRef`), by rule 2 of the module
// only when nobody writes to it.
unsafe impl Sync for Aligned {}

impl Aligned {
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

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `start` points to `capacity` bytes initialised at allocation. An `Aligned` outside
        // an `IoBuffer` is owned alone (`IoBuffer::into_aligned` checks), so nobody writes to it
        // while the reference lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.capacity) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, freed nowhere else.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.capacity)) }
    }
}

/// A buffer that an operation and its requester hold together.
#[derive(Clone, Debug)]
pub(crate) struct IoBuffer(Rc<Aligned>);

impl IoBuffer {
    /// At least `len` bytes of zeros, outside any pool.
    pub(crate) fn zeroed(len: usize) -> Self {
        Self(Rc::new(Aligned::zeroed(len)))
    }

    /// How many bytes it holds.
    pub(crate) fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// The bytes, if nobody else (an operation in flight, above all) holds the buffer.
    pub(crate) fn unique(&mut self) -> Option<&mut [u8]> {
        let aligned = Rc::get_mut(&mut self.0)?;
        // SAFETY: initialised memory of `capacity` bytes; `get_mut` proved that no other handle, so
        // no operation in flight and no other reference exists for as long as the borrow lasts.
        Some(unsafe { std::slice::from_raw_parts_mut(aligned.start.as_ptr(), aligned.capacity) })
    }

    /// The memory itself, to be given to another thread, if nobody else holds it.
    pub(crate) fn into_aligned(self) -> Result<Aligned, Self> {
        Rc::try_unwrap(self.0).map_err(Self)
    }

    /// Copy `data` to `at`.
    pub(crate) fn copy_in(&self, at: usize, data: &[u8]) {
        let to = self.pointer(at..at + data.len());
        // SAFETY: `pointer` checked the bounds; by rule 2 no reference into this memory exists, so
        // `data` lies elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) }
    }

    /// Append the bytes of `range` to `to`.
    pub(crate) fn copy_out(&self, range: Range<usize>, to: &mut Vec<u8>) {
        let from = self.pointer(range.clone());
        to.reserve(range.len());
        let len = to.len();
        // SAFETY: `pointer` checked the source; `reserve` made room for the target, which this copy
        // initialises before the length covers it.
        unsafe {
            std::ptr::copy_nonoverlapping(from, to.as_mut_ptr().add(len), range.len());
            to.set_len(len + range.len());
        }
    }

    /// Copy the bytes of `range` of `from` to `at`.
    pub(crate) fn copy_from(&self, at: usize, from: &Self, range: Range<usize>) {
        let len = range.len();
        let (source, target) = (from.pointer(range), self.pointer(at..at + len));
        // SAFETY: `pointer` checked both ends; `copy` allows them to overlap.
        unsafe { std::ptr::copy(source, target, len) }
    }

    /// Fill `range` with zeros.
    pub(crate) fn zero(&self, range: Range<usize>) {
        let len = range.len();
        // SAFETY: `pointer` checked the bounds.
        unsafe { std::ptr::write_bytes(self.pointer(range), 0, len) }
    }

    /// Where the bytes of `range` begin.
    ///
    /// # Panics
    /// When the range is not inside the buffer.
    pub(super) fn pointer(&self, range: Range<usize>) -> *mut u8 {
        assert!(
            range.start <= range.end && range.end <= self.capacity(),
            "{range:?} is outside a buffer of {} bytes",
            self.capacity()
        );
        // SAFETY: within the allocation, by the check above.
        unsafe { self.0.start.as_ptr().add(range.start) }
    }
}

/// Buffers kept for use again, up to a bound of bytes.
#[derive(Debug)]
pub(crate) struct Pool {
    classes: [Vec<IoBuffer>; CLASSES],
    kept: usize,
    limit: usize,
}

impl Pool {
    /// A pool that keeps at most `limit` bytes for later.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            classes: [const { Vec::new() }; CLASSES],
            kept: 0,
            limit,
        }
    }

    /// A buffer of at least `len` bytes. It holds what its last user left in it.
    pub(crate) fn take(&mut self, len: usize) -> IoBuffer {
        let size = len.max(ALIGNMENT).next_power_of_two();
        let Some(class) = self.classes.get_mut(class_of(size)) else {
            return IoBuffer::zeroed(len);
        };
        class.pop().map_or_else(
            || IoBuffer::zeroed(size),
            |buffer| {
                self.kept -= size;
                buffer
            },
        )
    }

    /// Keep a buffer for later, unless someone else still holds it or there is enough.
    pub(crate) fn give(&mut self, mut buffer: IoBuffer) {
        let size = buffer.capacity();
        let room = self.kept + size <= self.limit && size.is_power_of_two();
        if !room || Rc::get_mut(&mut buffer.0).is_none() {
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
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_of_the_size_asked_for() {
        let mut pool = Pool::new(1 << 20);
        for len in [0, 1, 4096, 4097, 1 << 20, (32 << 20) + 8192] {
            let buffer = pool.take(len);
            assert!(buffer.capacity() >= len);
            assert_eq!(buffer.pointer(0..0) as usize % ALIGNMENT, 0);
        }
    }

    #[test]
    fn a_buffer_in_use_elsewhere_is_not_handed_out_again() {
        let mut pool = Pool::new(1 << 20);
        let mut first = pool.take(4096);
        let held = first.clone();
        assert!(first.unique().is_none());
        let address = first.pointer(0..0);
        pool.give(first);
        assert_ne!(pool.take(4096).pointer(0..0), address);
        pool.give(held);
        assert_eq!(pool.take(4096).pointer(0..0), address);
    }

    #[test]
    fn the_pool_keeps_no_more_than_its_bound() {
        let mut pool = Pool::new(8192);
        let buffers: Vec<_> = (0..4).map(|_| pool.take(4096)).collect();
        for buffer in buffers {
            pool.give(buffer);
        }
        assert_eq!((pool.kept, pool.classes[0].len()), (8192, 2));
    }

    #[test]
    fn copies_go_where_they_are_told() {
        let (mut a, b) = (IoBuffer::zeroed(4096), IoBuffer::zeroed(4096));
        b.copy_in(10, b"diskferry");
        a.copy_from(0, &b, 10..19);
        a.zero(4..6);
        let mut out = vec![b'>'];
        a.copy_out(0..9, &mut out);
        assert_eq!(out, b">disk\0\0rry");
        assert_eq!(&a.unique().expect("nobody else holds it")[..4], b"disk");
    }

    #[test]
    #[should_panic(expected = "outside a buffer")]
    fn a_copy_beyond_the_end_is_refused() {
        IoBuffer::zeroed(4096).copy_in(4090, &[0; 10]);
    }
}
