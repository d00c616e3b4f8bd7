//! A pseudoterminal that somebody opens, closes and opens again.
//!
//! As long as nobody has it open nothing is written to it: what is kept is shown to who opens it. The kernel says
//! "hung up" only of one that was open before, so it is opened and closed once at first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// The side that this process has.
pub(crate) struct Pty {
    master: OwnedFd,
    name: String,
}

impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }
}

impl Pty {
    /// A new one that passes every byte as it is.
    pub(super) fn open() -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let name = name.into_string().map_err(io::Error::other)?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let other = open(name.as_str(), flags, Mode::empty())?;
        let mut raw = tcgetattr(&other)?;
        raw.make_raw();
        tcsetattr(&other, OptionalActions::Now, &raw)?;
        drop(other);
        fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        Ok(Self { master, name })
    }

    /// Where it is opened.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether anybody has it open.
    pub(super) fn is_open(&self) -> bool {
        let mut fds = [PollFd::new(&self.master, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // What cannot be looked at is taken for closed, and looked at again.
        let looked = poll(&mut fds, Some(&now));
        let [fd] = &fds;
        looked.is_ok() && !fd.revents().contains(PollFlags::HUP)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Read as _;

    use super::*;

    #[test]
    fn it_is_seen_when_somebody_opens_and_closes_it() {
        let pty = Pty::open().unwrap();
        assert!(!pty.is_open());
        for _ in 0..2 {
            let mut other = OpenOptions::new();
            let mut other = other.read(true).write(true).open(pty.name()).unwrap();
            assert!(pty.is_open());
            rustix::io::write(&pty, b"a\nb\r\x04").unwrap();
            let mut read = [0; 5];
            other.read_exact(&mut read).unwrap();
            assert_eq!(&read, b"a\nb\r\x04", "every byte as it is");
            drop(other);
            assert!(!pty.is_open());
        }
    }
}
