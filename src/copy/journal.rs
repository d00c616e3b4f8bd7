//! What an interrupted copy leaves beside its half-made target, so that the next one goes on.
//!
//! `TARGET.partial.json` says which source was read, what is being made, and up to which byte of the disk
//! all of it is durable. It is there before the half-made target is, and goes after it: a file
//! `TARGET.partial` without it is not ours. It is replaced as a whole, after a flush of the target.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure, Result};
use crate::source::Identity;

const SCHEMA: u32 = 1;

/// What a half-made target is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) source: Identity,
    /// Bytes of the new disk.
    pub(crate) size: u64,
    /// The rest of what is being made: "vhdx" or "raw", and its options.
    pub(crate) shape: String,
}

/// A half-made target, as it lies on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Journal {
    schema: u32,
    pub(crate) work: Work,
    /// Bytes from the beginning of the disk that are durable in the target.
    pub(crate) done: u64,
}

impl Journal {
    pub(crate) fn new(work: Work) -> Self {
        Self {
            schema: SCHEMA,
            work,
            done: 0,
        }
    }

    /// Reads the journal at `path`; `None` if there is none.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(path, "cannot be read", &e)),
        };
        let read: Option<Self> = serde_json::from_slice(&bytes).ok();
        let read = read.filter(|journal| journal.schema == SCHEMA);
        let Some(journal) = read else {
            let what = format!("{}: is not understood", path.display());
            return Err(Failure::new(Exit::Failed, what)
                .hint("--restart throws away the copy that it tells of, and starts over"));
        };
        Ok(Some(journal))
    }

    /// Puts it at `path`, durably, in place of what is there.
    pub(crate) fn store(&self, path: &Path) -> Result<()> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let text = serde_json::to_vec(self).map_err(io::Error::other);
        let write = |text: Vec<u8>| {
            let mut file = File::create(&beside)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            File::open(folder_of(path))?.sync_all()
        };
        text.and_then(write)
            .map_err(|e| failed(path, "cannot be written", &e))
    }
}

/// The folder in which `path` lies.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn failed(path: &Path, what: &str, error: &io::Error) -> Failure {
    Failure::io(format!("{}: {what}", path.display()), error)
}
