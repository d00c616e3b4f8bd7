//! Faults of this process's memory that are answered by this process: userfaultfd.
//!
//! Driver, and one of the places of this crate that may hold unsafe code: the kernel is told addresses. Only
//! pages that do not exist are ever filled, and only where [`UserFaults::register`] was told; the kernel holds
//! both. Specified in `Documentation/admin-guide/mm/userfaultfd.rst` of the kernel.
//!
//! Guests touch memory through KVM, and disks through `io_uring`: both are the kernel, so faults of the kernel
//! have to come here too. That is what `/dev/userfaultfd` grants to whoever may open it, and the system call to
//! `CAP_SYS_PTRACE` or with `vm.unprivileged_userfaultfd=1`; its mode for user space alone does not do.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::mm::{UserfaultfdFlags, userfaultfd};

const API: u64 = 0xAA;
const MISSING_HUGETLBFS: u64 = 1 << 4;
const MISSING_SHMEM: u64 = 1 << 5;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const MESSAGE_BYTES: usize = 32;

/// `_IOC` of the kernel: direction, number, bytes of the argument.
const fn request(direction: u32, number: u32, bytes: usize) -> libc::c_ulong {
    ((direction << 30) | ((bytes as u32) << 16) | (0xAA << 8) | number) as libc::c_ulong
}

const READ: u32 = 2;
const READ_WRITE: u32 = 3;
const NEW: libc::c_ulong = request(0, 0x00, 0);
const REGISTER: libc::c_ulong = request(READ_WRITE, 0x00, size_of::<Register>());
const UNREGISTER: libc::c_ulong = request(READ, 0x01, size_of::<Span>());
const WAKE: libc::c_ulong = request(READ, 0x02, size_of::<Span>());
const COPY: libc::c_ulong = request(READ_WRITE, 0x03, size_of::<Copy>());
const ZEROPAGE: libc::c_ulong = request(READ_WRITE, 0x04, size_of::<Zero>());
const HELLO: libc::c_ulong = request(READ_WRITE, 0x3F, size_of::<Hello>());

#[repr(C)]
struct Hello {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    span: Span,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Zero {
    span: Span,
    mode: u64,
    zeroed: i64,
}

/// Where faults arrive.
#[derive(Debug)]
pub(super) struct UserFaults {
    fd: OwnedFd,
}

impl AsFd for UserFaults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl UserFaults {
    /// Have faults of shared memory come here; with `huge`, of huge pages.
    pub(super) fn open(huge: bool) -> io::Result<Self> {
        let faults = Self { fd: open_fd()? };
        let wanted = if huge {
            MISSING_HUGETLBFS
        } else {
            MISSING_SHMEM
        };
        let mut hello = Hello {
            api: API,
            features: wanted,
            ioctls: 0,
        };
        faults.ask(HELLO, &mut hello)?;
        Ok(faults)
    }

    /// Touches of pages of `bytes` from `start` on that do not exist come here from now on.
    pub(super) fn register(&self, start: u64, bytes: u64) -> io::Result<()> {
        let mut register = Register {
            span: Span { start, len: bytes },
            mode: MODE_MISSING,
            ioctls: 0,
        };
        self.ask(REGISTER, &mut register)
    }

    /// They do not any more: pages that do not exist are zero, and who waits goes on.
    pub(super) fn unregister(&self, start: u64, bytes: u64) -> io::Result<()> {
        self.ask(UNREGISTER, &mut Span { start, len: bytes })
    }

    /// Let those go on that wait for this range.
    pub(super) fn wake(&self, start: u64, bytes: u64) -> io::Result<()> {
        self.ask(WAKE, &mut Span { start, len: bytes })
    }

    /// Make pages from `start` on of `from`, whole and at once, and wake who waits for them. None of them may
    /// exist.
    pub(super) fn fill(&self, mut start: u64, mut from: &[u8]) -> io::Result<()> {
        while !from.is_empty() {
            let mut copy = Copy {
                to: start,
                from: from.as_ptr() as u64,
                len: from.len() as u64,
                mode: 0,
                copied: 0,
            };
            let filled = self.ask(COPY, &mut copy);
            match filled {
                Ok(()) => return Ok(()),
                // A part of it, or the address space is being changed.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    let copied = usize::try_from(copy.copied).unwrap_or(0);
                    from = from.get(copied..).unwrap_or_default();
                    start += copied as u64;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Make zero pages there, but where pages exist, and wake who waits for them.
    pub(super) fn zero(&self, start: u64, bytes: u64) -> io::Result<()> {
        let span = Span { start, len: bytes };
        loop {
            let mut zero = Zero {
                span,
                mode: 0,
                zeroed: 0,
            };
            match self.ask(ZEROPAGE, &mut zero) {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    return self.wake(start, bytes);
                }
                result => return result,
            }
        }
    }

    /// Addresses that were touched since it was asked last; none when there are none.
    pub(super) fn touched(&self) -> io::Result<Vec<u64>> {
        let mut messages = [0; MESSAGE_BYTES * 64];
        let len = match rustix::io::read(&self.fd, &mut messages) {
            Ok(len) => len,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let messages = messages[..len].chunks_exact(MESSAGE_BYTES);
        let faults = messages.filter(|message| message[0] == EVENT_PAGEFAULT);
        let address = |message: &[u8]| message[16..].first_chunk().copied().map(u64::from_ne_bytes);
        Ok(faults.filter_map(address).collect())
    }

    /// One request with its argument.
    fn ask<T>(&self, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: the descriptor is a userfaultfd, `argument` is the structure that the kernel reads and writes for
        // `request` (each pair stands above), and it outlives the call. What the kernel does to this process's
        // memory: it makes pages that did not exist in ranges that were registered, whose mapping is shared
        // with a guest and never has a reference of Rust into it; it reads `from` of a copy, which is borrowed.
        let result =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// A descriptor that faults of the kernel come to as well.
fn open_fd() -> io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd");
    if let Ok(device) = device {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the request takes flags, no memory, and gives a new descriptor that nobody else has.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), NEW, flags) };
        if fd >= 0 {
            // SAFETY: as above: it was just made, for us.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    // SAFETY: nothing is registered yet, so no memory behaves otherwise by that; see `ask` for what follows.
    let fd = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) };
    Ok(fd?)
}
