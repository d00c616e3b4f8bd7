//! An operation as the kernel sees it: plain numbers and pointers, apart from what owns them.

use std::ops::Range;
use std::time::Duration;

use io_uring::types::Timespec;

use super::buffer::IoBuffer;
use super::op::{Allocation, Descriptor, Held, Op, Reception};
use super::outgoing::Outgoing;

/// Memory that an operation reads or fills.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub(super) start: *mut u8,
    pub(super) len: u32,
}

impl Memory {
    fn of(buffer: &IoBuffer, range: Range<usize>) -> Self {
        let len = range.len() as u32;
        let start = buffer.pointer(range);
        Self { start, len }
    }
}

/// Pieces of memory that an operation reads or fills, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Vectors {
    pub(super) start: *const libc::iovec,
    /// At most `UIO_MAXIOV`.
    pub(super) count: u32,
}

/// The arguments of a system call. The pointers are into the [`Held`] made together with it.
#[derive(Clone, Copy)]
pub(super) enum Call {
    /// `pread`, or `read` where there are no positions.
    Read(Descriptor, Memory, u64),
    /// `pwrite`.
    Write(Descriptor, Memory, u64),
    /// `preadv`.
    ReadPieces(Descriptor, Vectors, u64),
    /// `pwritev`.
    WritePieces(Descriptor, Vectors, u64),
    /// `fdatasync`.
    Sync(Descriptor),
    /// `ftruncate`.
    SetLength(Descriptor, u64),
    /// `fallocate`.
    Allocate(Descriptor, Allocation),
    /// `recv`.
    Receive(Descriptor, Memory, Reception),
    /// `sendmsg`, and its one piece when it has but one.
    Send(Descriptor, *mut libc::msghdr, Option<(*const u8, usize)>),
    /// `accept`.
    Accept(Descriptor),
    /// A wait.
    Timer(*const Timespec, Duration),
}

// SAFETY: a call is carried out by one thread at a time; what its pointers name is kept alive and
// untouched by the slot of its ring until that thread has reported the completion.
unsafe impl Send for Call {}

impl Call {
    /// Split an operation into what keeps its memory and what the kernel is told.
    pub(super) fn new(op: Op) -> (Held, Self) {
        match op {
            #[rustfmt::skip]
            Op::Read { file, buffer, range, at } => {
                buffer.check_not_lent();
                match hold(buffer, range) {
                    (held, Place::One(memory)) => (held, Self::Read(file, memory, at)),
                    (held, Place::Many(vectors)) => (held, Self::ReadPieces(file, vectors, at)),
                }
            }
            #[rustfmt::skip]
            Op::Write { file, buffer, range, at } => match hold(buffer, range) {
                (held, Place::One(memory)) => (held, Self::Write(file, memory, at)),
                (held, Place::Many(vectors)) => (held, Self::WritePieces(file, vectors, at)),
            },
            Op::Sync { file } => (Held::Nothing, Self::Sync(file)),
            Op::SetLength { file, len } => (Held::Nothing, Self::SetLength(file, len)),
            Op::Allocate { file, call } => (Held::Nothing, Self::Allocate(file, call)),
            #[rustfmt::skip]
            Op::Receive { socket, buffer, range, how } => {
                buffer.check_not_lent();
                let memory = Memory::of(&buffer, range);
                (Held::Buffer(buffer), Self::Receive(socket, memory, how))
            }
            Op::Send { socket, outgoing } => Self::send(socket, outgoing),
            Op::Accept { listener } => (Held::Nothing, Self::Accept(listener)),
            Op::Timer { after } => {
                let seconds = Timespec::new().sec(after.as_secs());
                let time = Box::new(seconds.nsec(after.subsec_nanos()));
                let call = Self::Timer(&raw const *time, after);
                (Held::Time { _time: time }, call)
            }
        }
    }

    fn send(socket: Descriptor, mut outgoing: Box<Outgoing>) -> (Held, Self) {
        let message = outgoing.prepare();
        let only = outgoing.only_piece();
        let only = only.map(|piece| (piece.iov_base.cast_const().cast(), piece.iov_len));
        (Held::Outgoing(outgoing), Self::Send(socket, message, only))
    }
}

/// Where the bytes of a buffer are.
enum Place {
    /// In one piece.
    One(Memory),
    /// In several.
    Many(Vectors),
}

/// What keeps the bytes of a range of a buffer, and where they are meanwhile.
fn hold(buffer: IoBuffer, range: Range<usize>) -> (Held, Place) {
    let Some(vectors) = buffer.vectors(range.clone()) else {
        let memory = Memory::of(&buffer, range);
        return (Held::Buffer(buffer), Place::One(memory));
    };
    let place = Vectors {
        start: vectors.as_ptr(),
        count: vectors.len() as u32,
    };
    #[rustfmt::skip]
    let held = Held::Pieces { buffer, _vectors: vectors };
    (held, Place::Many(place))
}
