//! A disk that was handed over before this program started: only its clients are left.
//!
//! Must never touch the image.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use vdisk::engine::Mark;
use vdisk::tap::WriteTap;

use crate::net::port::{DiskPort, Done, ReadDone, ServedDisk, Signal, StatusDone};

/// Sends the clients to the address given.
pub(super) type Forward = Box<dyn FnOnce(&str) + Send>;

/// The clients, waiting to hear where the disk is.
pub(super) struct HandedOver {
    pub(super) forward: Mutex<Option<Forward>>,
}

fn not_here<T>(done: impl FnOnce(io::Result<T>)) {
    done(Err(io::Error::other("the disk was handed over")));
}

impl DiskPort for HandedOver {
    fn size(&self) -> u64 {
        0
    }

    fn read(&self, _offset: u64, _len: u32, done: ReadDone) {
        not_here(done);
    }

    fn write(&self, _offset: u64, _data: Bytes, done: Done) {
        not_here(done);
    }

    fn zero(&self, _offset: u64, _len: u64, done: Done) {
        not_here(done);
    }

    fn flush(&self, done: Done) {
        not_here(done);
    }

    fn status(&self, _offset: u64, _len: u64, done: StatusDone) {
        not_here(done);
    }

    fn park(&self, _mark: Option<Mark>, done: Done) {
        not_here(done);
    }
}

impl ServedDisk for HandedOver {
    fn attach_tap(&self, _tap: Arc<dyn WriteTap>, _attached: Signal) {}

    fn detach_tap(&self, _detached: Signal) {}

    fn hold(&self, _held: Signal) {}

    fn release(&self) {}

    fn forward(&self, address: &str) {
        let forward = self
            .forward
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(forward) = forward {
            forward(address);
        }
    }
}
