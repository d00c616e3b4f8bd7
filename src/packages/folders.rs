//! The folders of a package: which has room, which has a file, and that nobody else is at work there.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statvfs};

use crate::failure::{Exit, Failure, Result};

/// Folders into which a package is written; the first is held as long as this lives.
pub(crate) struct Folders {
    all: Vec<PathBuf>,
    _held: File,
}

impl Folders {
    /// Makes those that are not there, and holds the first.
    pub(crate) fn hold(all: &[PathBuf]) -> Result<Self> {
        for folder in all {
            match fs::create_dir(folder) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed(folder, "cannot be made", &e));
                }
                _ if !folder.is_dir() => {
                    return Err(Failure::usage(format!(
                        "{}: is no folder",
                        folder.display()
                    )));
                }
                Ok(()) => {
                    sync_folder_of(folder).map_err(|e| failed(folder, "cannot be made", &e))?;
                }
                Err(_) => {}
            }
        }
        let first = all
            .first()
            .ok_or_else(|| Failure::usage("no folder is given"))?;
        let held = File::open(first).map_err(|e| failed(first, "cannot be opened", &e))?;
        // A file system without locks has none that could be in the way.
        if flock(&held, FlockOperation::NonBlockingLockExclusive)
            == Err(rustix::io::Errno::WOULDBLOCK)
        {
            let what = format!("{}: another export writes there", first.display());
            return Err(Failure::new(Exit::InUse, what).hint("wait for it, or give another folder"));
        }
        Ok(Self {
            all: all.to_vec(),
            _held: held,
        })
    }

    /// The folder that is held.
    pub(crate) fn first(&self) -> &Path {
        &self.all[0]
    }

    /// The first folder that has room for `need` bytes, or else the last.
    pub(crate) fn with_room(&self, need: u64) -> &Path {
        let roomy = self.all.iter().find(|folder| free(folder) >= need);
        roomy
            .or(self.all.last())
            .map_or(Path::new("."), PathBuf::as_path)
    }

    /// Bytes that are free in all of them; of one file system once.
    pub(crate) fn free(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let mut devices = Vec::new();
        let mut sum = 0_u64;
        for folder in &self.all {
            let device = fs::metadata(folder).map_or(0, |found| found.dev());
            if !devices.contains(&device) {
                devices.push(device);
                sum = sum.saturating_add(free(folder));
            }
        }
        sum
    }

    /// Where a file of this name is.
    pub(crate) fn find(&self, name: &str) -> Option<PathBuf> {
        find(&self.all, name)
    }
}

/// Where a file of this name is.
pub(crate) fn find(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    let mut paths = folders.iter().map(|folder| folder.join(name));
    paths.find(|path| fs::symlink_metadata(path).is_ok())
}

/// Puts a file at `path` as a whole, durably, in place of what is there.
pub(crate) fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        sync_folder_of(path)
    };
    write().map_err(|e| full_or(path, "cannot be written", &e))
}

/// Makes the names in the folder of `path` durable.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(crate::copy::journal::folder_of(path))?.sync_all()
}

/// A failed write; where the medium is full, with what to do.
pub(crate) fn full_or(path: &Path, what: &str, error: &io::Error) -> Failure {
    let failure = failed(path, what, error);
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    if full.contains(&error.kind()) {
        return failure.hint(
            "free space there, or give one more folder (--to) behind these: the same command goes on",
        );
    }
    failure
}

fn failed(path: &Path, what: &str, error: &io::Error) -> Failure {
    Failure::io(format!("{}: {what}", path.display()), error)
}

fn free(folder: &Path) -> u64 {
    statvfs(folder).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
}
