//! The volume of a machine at the source: a disk that nobody writes, read out of the machine's own memory once it
//! stands still.
//!
//! The session that mirrors it begins before that, so that greeting and creating are no part of the pause: its first
//! question, what there is, is answered only then. Must never be read while the machine runs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use mirror::net::{DiskPort, Done, ReadDone, ServedDisk, Signal, StatusDone};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vdisk::engine::{Extent, Mark};
use vdisk::tap::WriteTap;

use super::volume::{self, HEAD};

/// Extents in one answer.
const MOST: usize = 4096;
const PAGE: u64 = 4096;

/// The volume.
pub(super) struct Given {
    size: u64,
    now: Mutex<Now>,
}

enum Now {
    /// The machine runs; who asked waits.
    Waiting(Vec<(u64, u64, StatusDone)>),
    /// It stands still.
    There(There),
}

#[derive(Clone)]
struct There {
    head: Bytes,
    memory: Arc<File>,
    bytes: u64,
}

impl Given {
    /// Of a machine with so much memory.
    pub(super) fn new(memory: u64) -> Self {
        Self {
            size: volume::size(memory),
            now: Mutex::new(Now::Waiting(Vec::new())),
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine stands still: this is all of it.
    pub(super) fn give(&self, head: Vec<u8>, memory: Arc<File>) {
        let there = There {
            head: head.into(),
            memory,
            bytes: self.size - HEAD,
        };
        let before = std::mem::replace(&mut *self.now(), Now::There(there.clone()));
        if let Now::Waiting(asked) = before {
            for (offset, len, done) in asked {
                done(there.extents(offset, len));
            }
        }
    }

    fn there(&self) -> io::Result<There> {
        match &*self.now() {
            Now::There(there) => Ok(there.clone()),
            Now::Waiting(_) => Err(io::Error::other("the machine runs")),
        }
    }
}

impl There {
    fn read(&self, offset: u64, len: u32) -> io::Result<Bytes> {
        let mut bytes = vec![0; len as usize];
        let head = (HEAD.saturating_sub(offset) as usize).min(bytes.len());
        let (front, behind) = bytes.split_at_mut(head);
        let begin = (offset as usize).min(self.head.len());
        for (to, from) in front.iter_mut().zip(&self.head[begin..]) {
            *to = *from;
        }
        if !behind.is_empty() {
            let at = offset + head as u64 - HEAD;
            self.memory.read_exact_at(behind, at)?;
        }
        Ok(bytes.into())
    }

    /// What there is: the head as far as it goes, and the pages of memory that exist.
    fn extents(&self, offset: u64, len: u64) -> io::Result<Vec<Extent>> {
        let end = offset.saturating_add(len);
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < MOST {
            let (there, next) = self.run(at)?;
            let next = next.min(end);
            extents.push(Extent {
                len: next - at,
                allocated: there,
                zero: !there,
            });
            at = next;
        }
        Ok(extents)
    }

    /// Whether there is something at `at`, and up to where that is so.
    fn run(&self, at: u64) -> io::Result<(bool, u64)> {
        let head = (self.head.len() as u64).next_multiple_of(PAGE);
        if at < head {
            return Ok((true, head));
        }
        if at < HEAD {
            return Ok((false, HEAD));
        }
        let within = at - HEAD;
        let data = match seek(&*self.memory, SeekFrom::Data(within)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok((false, u64::MAX)),
            // No holes in huge pages that can be asked for.
            Err(Errno::INVAL) => return Ok((true, u64::MAX)),
            Err(error) => return Err(error.into()),
        };
        if data > within {
            return Ok((false, HEAD + data));
        }
        let hole = seek(&*self.memory, SeekFrom::Hole(within))?.min(self.bytes);
        Ok((true, HEAD + hole))
    }
}

fn nobody_writes(done: Done) {
    done(Err(io::Error::other("the state of a machine is only read")));
}

impl DiskPort for Given {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, len: u32, done: ReadDone) {
        done(self.there().and_then(|there| there.read(offset, len)));
    }

    fn write(&self, _offset: u64, _data: Bytes, done: Done) {
        nobody_writes(done);
    }

    fn zero(&self, _offset: u64, _len: u64, done: Done) {
        nobody_writes(done);
    }

    fn flush(&self, done: Done) {
        done(Ok(()));
    }

    fn status(&self, offset: u64, len: u64, done: StatusDone) {
        let there = match &mut *self.now() {
            Now::Waiting(asked) => {
                asked.push((offset, len, done));
                return;
            }
            Now::There(there) => there.clone(),
        };
        done(there.extents(offset, len));
    }

    /// There is no image that could be marked; the record says all.
    fn park(&self, _mark: Option<Mark>, done: Done) {
        done(Ok(()));
    }
}

impl ServedDisk for Given {
    fn attach_tap(&self, _tap: Arc<dyn WriteTap>, attached: Signal) {
        attached();
    }

    fn detach_tap(&self, detached: Signal) {
        detached();
    }

    fn hold(&self, held: Signal) {
        held();
    }

    fn release(&self) {}

    fn forward(&self, _address: &str) {}
}
