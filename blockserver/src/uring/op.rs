//! What a ring can do, and what it gives back.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::buffer::IoBuffer;
use super::outgoing::Outgoing;

/// `offset` of a read from something that has no positions, such as an eventfd.
pub(crate) const NO_POSITION: u64 = u64::MAX;

/// A file or socket. Whoever uses it keeps it open until its operations have ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor(pub(super) RawFd);

impl Descriptor {
    /// The descriptor of something open.
    pub(crate) fn of(file: &impl AsFd) -> Self {
        Self(file.as_fd().as_raw_fd())
    }
}

/// The arguments of `fallocate`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allocation {
    /// `FALLOC_FL_*`.
    pub(crate) mode: i32,
    /// Byte offset in the file.
    pub(crate) at: u64,
    /// How many bytes.
    pub(crate) len: u64,
}

/// How to receive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reception {
    /// Whether to go on until the range is full.
    pub(crate) whole: bool,
    /// Whether the socket is known to be empty, so that trying before waiting is waste.
    pub(crate) idle: bool,
}

/// One operation, with what it works on.
pub(crate) enum Op {
    /// Fill `range` of the buffer from `at`.
    Read {
        /// Which file.
        file: Descriptor,
        /// To be filled.
        buffer: IoBuffer,
        /// Which part of the buffer.
        range: Range<usize>,
        /// Byte offset in the file, or [`NO_POSITION`].
        at: u64,
    },
    /// Write `range` of the buffer at `at`.
    Write {
        /// Which file.
        file: Descriptor,
        /// To be written.
        buffer: IoBuffer,
        /// Which part of the buffer.
        range: Range<usize>,
        /// Byte offset in the file.
        at: u64,
    },
    /// `fdatasync`.
    Sync {
        /// Which file.
        file: Descriptor,
    },
    /// `ftruncate`.
    SetLength {
        /// Which file.
        file: Descriptor,
        /// Its new length in bytes.
        len: u64,
    },
    /// `fallocate`.
    Allocate {
        /// Which file.
        file: Descriptor,
        /// What of it, and how.
        call: Allocation,
    },
    /// Receive into `range` of the buffer.
    Receive {
        /// Which socket.
        socket: Descriptor,
        /// To be filled.
        buffer: IoBuffer,
        /// Which part of the buffer.
        range: Range<usize>,
        /// How.
        how: Reception,
    },
    /// Send all that is left of a batch.
    Send {
        /// Which socket.
        socket: Descriptor,
        /// The batch.
        outgoing: Box<Outgoing>,
    },
    /// Accept one connection.
    Accept {
        /// Which listening socket.
        listener: Descriptor,
    },
    /// Complete after a while, with `ETIME`.
    Timer {
        /// How long.
        after: Duration,
    },
}

/// What an operation in flight keeps alive.
pub(crate) enum Held {
    /// Nothing.
    Nothing,
    /// The buffer it fills or writes.
    Buffer(IoBuffer),
    /// The buffer of several pieces that it fills or writes.
    Pieces {
        /// The buffer.
        buffer: IoBuffer,
        /// Where the kernel reads where they are.
        _vectors: Box<[libc::iovec]>,
    },
    /// The batch it sends.
    Outgoing(Box<Outgoing>),
    /// The time it waits for.
    Time {
        /// Where the kernel reads it.
        _time: Box<io_uring::types::Timespec>,
    },
}

/// A completed operation.
pub(crate) struct Finished<C> {
    /// What the submitter said about it.
    pub(crate) context: C,
    /// What it worked on.
    pub(crate) held: Held,
    /// Whether the socket is known to hold more.
    pub(crate) more_input: bool,
    /// Bytes, a descriptor, or a negated errno.
    pub(super) raw: i32,
}

impl<C> Finished<C> {
    /// How many bytes, or the error.
    pub(crate) fn result(&self) -> io::Result<usize> {
        usize::try_from(self.raw).map_err(|_| io::Error::from_raw_os_error(-self.raw))
    }

    /// The buffer that came back.
    pub(crate) fn buffer(&mut self) -> Option<IoBuffer> {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Buffer(buffer) | Held::Pieces { buffer, .. } => Some(buffer),
            other => {
                self.held = other;
                None
            }
        }
    }

    /// The batch that came back.
    pub(crate) fn outgoing(&mut self) -> Option<Box<Outgoing>> {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Outgoing(outgoing) => Some(outgoing),
            other => {
                self.held = other;
                None
            }
        }
    }

    /// The connection that an [`Op::Accept`] brought. To be called at most once.
    pub(crate) fn accepted(&mut self) -> io::Result<OwnedFd> {
        if self.raw < 0 {
            return Err(io::Error::from_raw_os_error(-self.raw));
        }
        let raw = std::mem::replace(&mut self.raw, -libc::EBADF);
        // SAFETY: only called on completed accepts, whose result is a new descriptor that nobody
        // else owns; `raw` was replaced, so a second call finds an error.
        Ok(unsafe { OwnedFd::from_raw_fd(raw) })
    }
}
