//! An eventfd that the kernel of the host and threads of this process ring each other with.
//!
//! Driver. Blocking, so that it can be waited for by a plain read, by `poll`, and by a ring.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

/// An eventfd.
#[derive(Debug)]
pub(crate) struct Event(EventFd);

impl Event {
    /// A quiet one.
    pub(crate) fn new() -> io::Result<Self> {
        EventFd::new(libc::EFD_CLOEXEC).map(Self)
    }

    /// As `kvm-ioctls` wants it.
    pub(super) fn raw(&self) -> &EventFd {
        &self.0
    }

    fn borrowed(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self.0`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }

    /// The same eventfd for another owner.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.borrowed().try_clone_to_owned()
    }

    /// The same eventfd once more.
    pub(crate) fn duplicate(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Ring it.
    pub(crate) fn ring(&self) -> io::Result<()> {
        self.0.write(1)
    }

    /// Take what was rung.
    pub(crate) fn quiet(&self) -> io::Result<()> {
        if self.is_rung() {
            self.0.read()?;
        }
        Ok(())
    }

    /// Whether it was rung and nobody has taken that.
    pub(crate) fn is_rung(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.borrowed(), PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut fds, Some(&now)), Ok(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_rings_the_other_sees() {
        let event = Event::new().unwrap();
        assert!(!event.is_rung());
        let other = event.share().unwrap();
        rustix::io::write(&other, &1_u64.to_ne_bytes()).unwrap();
        assert!(event.is_rung());
        let mut count = [0; 8];
        rustix::io::read(&other, &mut count).unwrap();
        assert!(!event.is_rung());
    }
}
