//! What the file system is asked and told besides bytes, where the ring has no operation for it.

use std::io;

use rustix::fs::{SeekFrom, ftruncate, seek};
use vdisk::engine::Extent;

use super::Worker;

/// The most extents that one look for holes answers.
const MAX_EXTENTS: usize = 4096;

impl Worker {
    /// Set the length of a disk's file.
    pub(super) fn set_length(&self, disk: u32, len: u64) -> io::Result<()> {
        let here = self.disks.get(disk);
        let here = here.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(ftruncate(here.disk.file(), len)?)
    }

    /// What the file system says of a range: data and holes, as far as it tells.
    pub(super) fn holes(&self, disk: u32, at: u64, len: u64) -> Vec<Extent> {
        let data = |len| Extent {
            len,
            allocated: true,
            zero: false,
        };
        let hole = |len| Extent {
            len,
            allocated: false,
            zero: true,
        };
        let Some(here) = self.disks.get(disk) else {
            return vec![data(len)];
        };
        let (file, end) = (here.disk.file(), at + len);
        let mut extents = Vec::new();
        let mut next = at;
        while next < end && extents.len() < MAX_EXTENTS {
            let data_at = match seek(file, SeekFrom::Data(next)) {
                Ok(found) => found.min(end),
                Err(rustix::io::Errno::NXIO) => end,
                // A file system that does not tell: all of it may hold data.
                Err(_) => next,
            };
            if data_at > next {
                extents.push(hole(data_at - next));
            }
            if data_at < end {
                let hole_at = seek(file, SeekFrom::Hole(data_at)).unwrap_or(end).min(end);
                extents.push(data(hole_at.max(data_at + 1) - data_at));
                next = hole_at.max(data_at + 1);
            } else {
                next = end;
            }
        }
        extents
    }
}
