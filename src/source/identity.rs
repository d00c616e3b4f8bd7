//! What tells whether a disk is still the one that was read before.
//!
//! Files are compared by what the host says of them, and VHDX disks by the version of their data too.
//! A block device or a server says nothing that changes with its content: it has no identity.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::failed;
use crate::failure::{Exit, Failure, Result};

/// All files that a disk consists of, as they were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    files: Vec<FileIdentity>,
    /// Versions of the data, as far as the formats have such.
    versions: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    path: PathBuf,
    device: u64,
    inode: u64,
    len: u64,
    modified_seconds: i64,
    modified_nanoseconds: i64,
}

impl Identity {
    /// What the host says of `files` now; `None` if one of them is no regular file.
    pub(super) fn of(files: &[PathBuf], versions: Vec<String>) -> Result<Option<Self>> {
        let files: Option<Vec<FileIdentity>> = files
            .iter()
            .map(|path| FileIdentity::of(path))
            .collect::<Result<_>>()?;
        Ok(files.map(|files| Self { files, versions }))
    }

    /// That of something which is no file, by what it holds.
    pub(crate) fn of_content(version: String) -> Self {
        Self {
            files: Vec::new(),
            versions: vec![version],
        }
    }

    /// Fails if one of the files has changed since.
    pub(crate) fn still(&self) -> Result<()> {
        for file in &self.files {
            if FileIdentity::of(&file.path)?.as_ref() != Some(file) {
                let what = format!("{}: was changed while it was read", file.path.display());
                return Err(Failure::new(Exit::Failed, what)
                    .hint("copy a disk that nobody writes, or move it with `diskferry mirror`"));
            }
        }
        Ok(())
    }
}

impl FileIdentity {
    fn of(path: &Path) -> Result<Option<Self>> {
        let found = fs::metadata(path).map_err(|e| failed(path, "cannot be examined", e))?;
        if !found.is_file() {
            return Ok(None);
        }
        let path = path.canonicalize();
        Ok(path.ok().map(|path| Self {
            path,
            device: found.dev(),
            inode: found.ino(),
            len: found.len(),
            modified_seconds: found.mtime(),
            modified_nanoseconds: found.mtime_nsec(),
        }))
    }
}
