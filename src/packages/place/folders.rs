//! The folders of a package: which has room, which has a file, and that nobody else is at work there.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use package::Hash;
use rustix::fs::{FlockOperation, flock, statvfs};

use super::super::journal::NOTES;
use super::{Growing, Place};
use crate::failure::{Exit, Failure, Result};

/// Folders of a package. The first is held as long as this lives, if they are written to.
pub(super) struct Folders {
    all: Vec<PathBuf>,
    _held: Option<File>,
}

impl Folders {
    /// Some that are only read.
    pub(super) fn of(all: &[PathBuf]) -> Self {
        Self {
            all: all.to_vec(),
            _held: None,
        }
    }

    /// Makes those that are not there, and holds the first.
    pub(super) fn hold(all: &[PathBuf]) -> Result<Self> {
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
            _held: Some(held),
        })
    }

    /// The first folder that has room for `need` bytes, or else the last.
    fn with_room(&self, need: u64) -> &Path {
        let roomy = self.all.iter().find(|folder| free(folder) >= need);
        roomy
            .or(self.all.last())
            .map_or(Path::new("."), PathBuf::as_path)
    }

    /// Where a file of this name is.
    fn find(&self, name: &str) -> Option<PathBuf> {
        let mut paths = self.all.iter().map(|folder| folder.join(name));
        paths.find(|path| fs::symlink_metadata(path).is_ok())
    }

    /// Where a file of this name is, or else would be looked for first.
    fn path(&self, name: &str) -> PathBuf {
        let first = || self.all.first().map(|folder| folder.join(name));
        let found = self.find(name).or_else(first);
        found.unwrap_or_else(|| PathBuf::from(name))
    }
}

impl Place for Folders {
    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for folder in &self.all {
            let failed = |e| failed(folder, "cannot be listed", &e);
            for entry in fs::read_dir(folder).map_err(failed)? {
                let file = entry.map_err(failed)?.file_name();
                names.extend(file.into_string().ok());
            }
        }
        Ok(names)
    }

    fn length(&self, name: &str) -> Result<Option<u64>> {
        let Some(path) = self.find(name) else {
            return Ok(None);
        };
        let found = fs::metadata(&path).map_err(|e| failed(&path, "cannot be read", &e))?;
        if !found.is_file() {
            let what = format!("{}: is no regular file", path.display());
            return Err(Failure::new(Exit::Corrupt, what));
        }
        Ok(Some(found.len()))
    }

    fn open(&self, name: &str, _: u64) -> Result<Box<dyn Read>> {
        let path = self.path(name);
        let file = File::open(&path).map_err(|e| failed(&path, "cannot be opened", &e))?;
        Ok(Box::new(file))
    }

    fn open_anew(&self, name: &str, _: u64) -> Result<Box<dyn Read>> {
        let path = self.path(name);
        let file = File::open(&path).map_err(|e| failed(&path, "cannot be opened", &e))?;
        // A host that keeps it has it read from memory, which is no failure.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        Ok(Box::new(file))
    }

    fn begin(&self, name: &str, most: u64) -> Result<Box<dyn Growing>> {
        Ok(Box::new(Partial::new(self.with_room(most), name)?))
    }

    fn clear(&self, name: &str, _: Option<&str>) -> Result<()> {
        self.remove(&format!("{name}.part"))?;
        self.remove(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let need = bytes.len() as u64 + (1 << 20);
        let path = self.find(name).unwrap_or_else(|| {
            // What tells of an unfinished package is looked for in the folder that is held.
            let held = self.all.first().filter(|_| name.ends_with(NOTES));
            held.map_or_else(|| self.with_room(need), PathBuf::as_path)
                .join(name)
        });
        put(&path, bytes).map_err(|e| full_or(&path, "cannot be written", &e))
    }

    fn load(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.find(name) else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(most).read_to_end(&mut bytes));
        read.map_err(|e| failed(&path, "cannot be read", &e))?;
        Ok(Some(bytes))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let Some(path) = self.find(name) else {
            return Ok(());
        };
        let removed = fs::remove_file(&path).and_then(|()| sync_folder_of(&path));
        removed.map_err(|e| failed(&path, "cannot be removed", &e))
    }

    /// Of one file system once.
    fn free(&self) -> Option<u64> {
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
        Some(sum)
    }

    fn failed(&self, name: &str, what: &str, error: &io::Error) -> Failure {
        full_or(&self.path(name), what, error)
    }
}

/// A file that goes away if it does not become whole.
struct Partial {
    file: BufWriter<File>,
    part: PathBuf,
    place: PathBuf,
    keep: bool,
}

impl Partial {
    fn new(folder: &Path, name: &str) -> Result<Self> {
        let place = folder.join(name);
        if fs::symlink_metadata(&place).is_ok() {
            let what = format!("{}: exists already", place.display());
            return Err(Failure::new(Exit::Failed, what).hint(
                "remove it if it is of an interrupted export, or give another folder or --name",
            ));
        }
        let part = folder.join(format!("{name}.part"));
        let file = File::create(&part).map_err(|e| full_or(&place, "cannot be written", &e))?;
        Ok(Self {
            file: BufWriter::with_capacity(1 << 20, file),
            part,
            place,
            keep: false,
        })
    }
}

impl Write for Partial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Growing for Partial {
    fn upload(&self) -> Option<&str> {
        None
    }

    fn finish(mut self: Box<Self>, _: (u64, Hash)) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        fs::rename(&self.part, &self.place)?;
        self.keep = true;
        sync_folder_of(&self.place)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.keep {
            // There may be nothing to remove, and nobody to tell.
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// Puts a file at `path` as a whole, durably, in place of what is there.
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_folder_of(path)
}

/// Makes the names in the folder of `path` durable.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(crate::copy::journal::folder_of(path))?.sync_all()
}

/// A failed write; where the medium is full, with what to do.
fn full_or(path: &Path, what: &str, error: &io::Error) -> Failure {
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
