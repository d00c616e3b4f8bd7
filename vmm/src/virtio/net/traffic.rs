//! How many frames a network device has moved and dropped.
//!
//! Counters only; read from any thread while the device works.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a device, from when it was made.
#[derive(Debug, Default)]
pub struct Traffic {
    to_guest: Way,
    from_guest: Way,
}

#[derive(Debug, Default)]
struct Way {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

/// One way of a device's traffic, as it was at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Frames.
    pub frames: u64,
    /// Their bytes, without headers of virtio's.
    pub bytes: u64,
    /// Frames that were dropped: those that a driver or the host had not agreed to take, or for which there
    /// could be no buffers.
    pub dropped: u64,
}

impl Way {
    fn count(&self, moved: Option<usize>) {
        match moved {
            Some(bytes) => {
                self.frames.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            None => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn now(&self) -> Moved {
        Moved {
            frames: self.frames.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

impl Traffic {
    /// A frame of `len` bytes has come for the guest.
    pub(super) fn came(&self, len: usize, delivered: bool) {
        self.to_guest.count(delivered.then_some(len));
    }

    /// The guest has sent a frame; so many bytes with its header, or it was dropped.
    pub(super) fn went(&self, bytes: Option<usize>) {
        let len = bytes.map(|bytes| bytes.saturating_sub(super::header::HEADER));
        self.from_guest.count(len);
    }

    /// What the guest got.
    #[must_use]
    pub fn to_guest(&self) -> Moved {
        self.to_guest.now()
    }

    /// What the guest sent.
    #[must_use]
    pub fn from_guest(&self) -> Moved {
        self.from_guest.now()
    }
}
