//! An operation as the kernel sees it: plain numbers and pointers, apart from what owns them.

use std::time::Duration;

use io_uring::types::Timespec;

use super::op::{Descriptor, Held, Op};

/// The arguments of a system call. The pointers are into the [`Held`] made together with it.
#[derive(Clone, Copy)]
pub(super) enum Call {
    /// `pread`, or `read` where there are no positions.
    Read {
        file: Descriptor,
        to: *mut u8,
        len: u32,
        at: u64,
    },
    /// `pwrite`.
    Write {
        file: Descriptor,
        from: *const u8,
        len: u32,
        at: u64,
    },
    /// `fdatasync`.
    Sync { file: Descriptor },
    /// `fallocate`.
    Allocate {
        file: Descriptor,
        mode: i32,
        at: u64,
        len: u64,
    },
    /// `recv`.
    Receive {
        socket: Descriptor,
        to: *mut u8,
        len: u32,
        whole: bool,
        idle: bool,
    },
    /// `sendmsg`; `only` is its one piece when it has but one.
    Send {
        socket: Descriptor,
        message: *mut libc::msghdr,
        only: Option<(*const u8, usize)>,
    },
    /// `accept`.
    Accept { listener: Descriptor },
    /// A wait.
    Timer {
        time: *const Timespec,
        after: Duration,
    },
}

// SAFETY: a call is carried out by one thread at a time; what its pointers name is kept alive and
// untouched by the slot of its ring until that thread has reported the completion.
unsafe impl Send for Call {}

impl Call {
    /// Split an operation into what keeps its memory and what the kernel is told.
    pub(super) fn new(op: Op) -> (Held, Self) {
        match op {
            Op::Read {
                file,
                buffer,
                range,
                at,
            } => {
                let (len, to) = (range.len() as u32, buffer.pointer(range));
                (Held::Buffer(buffer), Self::Read { file, to, len, at })
            }
            Op::Write {
                file,
                buffer,
                range,
                at,
            } => {
                let (len, from) = (range.len() as u32, buffer.pointer(range));
                (
                    Held::Buffer(buffer),
                    Self::Write {
                        file,
                        from,
                        len,
                        at,
                    },
                )
            }
            Op::Sync { file } => (Held::Nothing, Self::Sync { file }),
            Op::Allocate {
                file,
                mode,
                at,
                len,
            } => (
                Held::Nothing,
                Self::Allocate {
                    file,
                    mode,
                    at,
                    len,
                },
            ),
            Op::Receive {
                socket,
                buffer,
                range,
                whole,
                idle,
            } => {
                let (len, to) = (range.len() as u32, buffer.pointer(range));
                (
                    Held::Buffer(buffer),
                    Self::Receive {
                        socket,
                        to,
                        len,
                        whole,
                        idle,
                    },
                )
            }
            Op::Send {
                socket,
                mut outgoing,
            } => {
                let message = outgoing.prepare();
                let only = outgoing.only_piece();
                let only = only.map(|piece| (piece.iov_base.cast_const().cast(), piece.iov_len));
                (
                    Held::Outgoing(outgoing),
                    Self::Send {
                        socket,
                        message,
                        only,
                    },
                )
            }
            Op::Accept { listener } => (Held::Nothing, Self::Accept { listener }),
            Op::Timer { after } => {
                let time = Timespec::new()
                    .sec(after.as_secs())
                    .nsec(after.subsec_nanos());
                let time = Box::new(time);
                let call = Self::Timer {
                    time: &raw const *time,
                    after,
                };
                (Held::Time { _time: time }, call)
            }
        }
    }
}
