//! A file of an image that several threads read.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vdisk::Error;
use vdisk::storage::{FileStorage, Storage as _};

use super::{Run, failed, foreign};
use crate::failure::Result;

/// A file, locked as long as one of its copies is there.
#[derive(Clone)]
pub(super) struct SharedFile {
    storage: Arc<FileStorage>,
    len: u64,
}

impl SharedFile {
    pub(super) fn new(mut storage: FileStorage) -> Result<Self> {
        let len = storage.len();
        let len = len.map_err(|e| failed(storage.path(), "its length is not known", e))?;
        Ok(Self {
            storage: Arc::new(storage),
            len,
        })
    }

    /// Bytes of the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn path(&self) -> &Path {
        self.storage.path()
    }

    /// The same result, its error with the file's name.
    pub(super) fn sound<T>(&self, read: vdisk::Result<T>) -> Result<T> {
        read.map_err(|error| foreign(error, self.path()))
    }

    /// Fills `buffer`; a file that ends before is an image that was cut off, not zeros.
    pub(super) fn read(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        let end = at.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            let what = format!("ends at byte {}, before what it must hold", self.len);
            return self.sound(Err(Error::corrupt(what).at(at)));
        }
        let read = self.storage.file().read_exact_at(buffer, at);
        read.map_err(|e| failed(self.path(), "cannot be read", e))
    }

    /// Data, or else a hole, at `at`, at most `len` bytes of it.
    pub(super) fn run(&self, at: u64, len: u64) -> Run {
        let end = at.saturating_add(len);
        let data = match seek(self.storage.file(), SeekFrom::Data(at)) {
            Ok(data) => data.min(end),
            Err(Errno::NXIO) => end,
            Err(_) => return Run { len, zero: false },
        };
        if data > at {
            let len = data - at;
            return Run { len, zero: true };
        }
        // A file system that does not tell has data to the end.
        let hole = seek(self.storage.file(), SeekFrom::Hole(at)).unwrap_or(end);
        Run {
            len: hole.clamp(at + 1, end) - at,
            zero: false,
        }
    }
}
