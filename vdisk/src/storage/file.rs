//! An image file through plain system calls, held by locks (`docs/locking.md`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::holder::{Holder, holders};
use super::{Hold, Storage, lock, unlock};
use crate::error::{Error, ErrorKind, Result};

/// Bytes written at once where a file system can not punch holes.
const ZEROES: usize = 1 << 20;

/// A file on this host.
///
/// A writable one is locked against all others, a read-only one against writers, programs of QEMU
/// included (`storage/lock.rs`): across the processes of a host, and across hosts as far as
/// `docs/locking.md` says.
#[derive(Debug)]
pub struct FileStorage {
    /// There until it is given away.
    file: Option<File>,
    path: PathBuf,
}

/// The lock is given back in order and not left to the closing of the file: a process that is being
/// started by another thread at this moment still shares the file, and with it the lock.
impl Drop for FileStorage {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // What fails here comes with the end of those who share the file.
            let _ = unlock(file);
        }
    }
}

impl FileStorage {
    /// Open an existing file and lock it.
    pub fn open(path: &Path, writable: bool) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .open(path)
            .and_then(|file| writable_by_somebody(file, writable))
            .map_err(|error| Error::io("cannot be opened", error).in_file(path))?;
        Self::of(file, path, writable)
    }

    /// Open, to be read, a file that this process has open and locked already. It takes no lock, and closing it gives
    /// none back: locks belong to the open file, and this is another one.
    pub fn beside(path: &Path) -> Result<Self> {
        let file = File::open(path);
        let file = file.map_err(|error| Error::io("cannot be opened", error).in_file(path))?;
        Ok(Self {
            file: Some(file),
            path: path.to_owned(),
        })
    }

    /// Create a file that must not exist yet, and lock it.
    pub fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|error| Error::io("cannot be created", error).in_file(path))?;
        Self::of(file, path, true)
    }

    /// Lock a file that has been opened; `path` names it in errors.
    pub(crate) fn of(file: File, path: &Path, writable: bool) -> Result<Self> {
        let hold = if writable {
            Hold::Exclusive
        } else {
            Hold::Shared
        };
        match lock(&file, hold) {
            Ok(()) => {
                let storage = Self {
                    file: Some(file),
                    path: path.to_owned(),
                };
                if writable {
                    within_limit(storage.file()).map_err(|error| error.in_file(path))?;
                }
                Ok(storage)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(Error::new(ErrorKind::Locked, in_use(path)).in_file(path))
            }
            Err(error) => Err(Error::io("cannot be locked", error).in_file(path)),
        }
    }

    /// The file, for a driver that runs operations itself. The lock goes with it.
    #[must_use]
    pub fn into_file(mut self) -> File {
        self.file.take().expect("it is given away once")
    }

    /// The file beneath.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.as_ref().expect("it has not been given away")
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that its file system has left for anybody at all; what a user may take can be less.
    pub fn room(&self) -> io::Result<u64> {
        let found = rustix::fs::fstatvfs(self.file())?;
        Ok(found.f_bfree.saturating_mul(found.f_frsize))
    }

    /// Reserve host space for its first `len` bytes, so that no write to them can find the host full.
    ///
    /// Unlike [`Storage::reserve`] this fails, with `Unsupported`, where the file system cannot.
    pub fn reserve_or_fail(&self, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        Ok(rustix::fs::fallocate(
            self.file(),
            FallocateFlags::KEEP_SIZE,
            0,
            len,
        )?)
    }

    /// Make its name in its directory durable.
    pub fn sync_directory(&self) -> io::Result<()> {
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory)?.sync_all()
    }

    fn write_zeroes(&self, mut offset: u64, len: u64) -> io::Result<()> {
        let end = offset
            .saturating_add(len)
            .min(self.file().metadata()?.len());
        let zeroes = vec![0; ZEROES.min(end.saturating_sub(offset) as usize)];
        while offset < end {
            let piece = zeroes.len().min((end - offset) as usize);
            self.file().write_all_at(&zeroes[..piece], offset)?;
            offset += piece as u64;
        }
        Ok(())
    }
}

/// Refuses to write a file of which this process may not write all: its log or its table could lie
/// where a write fails, with changes on their way.
fn within_limit(file: &File) -> Result<()> {
    let known = |error| Error::io("cannot be asked", error);
    let found = file.metadata().map_err(known)?;
    let limit = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
    if !found.is_file() || found.len() <= limit {
        return Ok(());
    }
    let what = format!(
        "has {} bytes, and this process may write files up to {limit} only (ulimit -f)",
        found.len()
    );
    Err(Error::new(ErrorKind::NoSpace, what))
}

/// What to say of a file that others have locked.
fn in_use(path: &Path) -> String {
    let holders = holders(path);
    if holders.is_empty() {
        let who = "one that may not be looked at, or one on another host";
        return format!("is in use by another process ({who}); stop that one first");
    }
    let named: Vec<String> = holders.iter().map(Holder::to_string).collect();
    format!("is in use by {}; stop that one first", named.join(", "))
}

/// Refuses to write what its permissions let nobody write, also to those whom permissions do not bind:
/// that is how a disk is protected on which others are built.
fn writable_by_somebody(file: File, writable: bool) -> io::Result<File> {
    if writable && file.metadata()?.permissions().readonly() {
        let what = "its permissions let nobody write it; other disks may be built on it";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(file)
}

impl Storage for FileStorage {
    fn len(&mut self) -> io::Result<u64> {
        // A block device has its size where its end is, not in its inode.
        Ok(rustix::fs::seek(self.file(), SeekFrom::End(0))?)
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self
                .file()
                .read_at(&mut buffer[done..], offset + done as u64)
            {
                Ok(0) => {
                    buffer[done..].fill(0);
                    break;
                }
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file().write_all_at(data, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().sync_data()
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.file().set_len(len)
    }

    fn zero(&mut self, offset: u64, len: u64, keep: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let how = if keep {
            FallocateFlags::ZERO_RANGE
        } else {
            FallocateFlags::PUNCH_HOLE
        };
        match rustix::fs::fallocate(self.file(), how | FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => {
                self.write_zeroes(offset, len)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn reserve(&mut self, offset: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self.file(), FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(self.file(), SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(errno) => Err(errno.into()),
        }
    }

    fn next_hole(&mut self, offset: u64) -> io::Result<u64> {
        match rustix::fs::seek(self.file(), SeekFrom::Hole(offset)) {
            Ok(at) => Ok(at),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(self.len()?.max(offset)),
            Err(errno) => Err(errno.into()),
        }
    }
}
