//! Where the record of a group of disks lies: in the folder of its disks.
//!
//! Must never take a damaged record for an absent one.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{FileThread, GROUP_SUFFIX, Over, Request, directory_of, for_good, load_blocking};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{GroupRecord, MAX_LEN};

/// The place of the record of one group.
#[derive(Clone, Debug)]
pub struct GroupStore {
    path: PathBuf,
    files: FileThread,
}

impl GroupStore {
    /// That of the group of that name, for the disks of which one has its ownership record at `record`.
    #[must_use]
    pub fn beside(record: &Path, group: Uuid) -> Self {
        let path = directory_of(record).join(format!("{group}{GROUP_SUFFIX}"));
        let files = FileThread::shared();
        Self { path, files }
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The record, `None` when there is none. Blocks.
    ///
    /// Fails with [`ErrorKind::Record`] when it cannot be read, is damaged, or is of another group.
    pub fn load(&self) -> Result<Option<GroupRecord>> {
        let group = self.path.file_stem().and_then(|stem| stem.to_str());
        let Some(record) = load_group(&self.path)? else {
            return Ok(None);
        };
        if group.is_none_or(|group| group != record.group.to_string()) {
            let what = format!("{} is the record of another group", self.path.display());
            return Err(Error::new(ErrorKind::Record, what));
        }
        Ok(Some(record))
    }

    /// Take it away, if it is there. Blocks.
    ///
    /// Fails with [`ErrorKind::Record`].
    pub fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                let what = format!("cannot remove {}", self.path.display());
                Err(Error::io(ErrorKind::Record, what, e))
            }
            _ => Ok(()),
        }
    }

    /// Make `record` the durable one; `done` is told on another thread when it is. On failure it may or may not be.
    pub fn persist(
        &self,
        record: &GroupRecord,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) {
        match record.to_bytes() {
            Ok(bytes) => self.files.ask(Request::Replace {
                path: self.path.clone(),
                bytes,
                over: Over::Anything,
                done: Box::new(done),
            }),
            Err(e) => done(Err(io::Error::other(e.to_string()))),
        }
    }
}

fn load_group(path: &Path) -> Result<Option<GroupRecord>> {
    let bytes = load_blocking(path, MAX_LEN).and_then(|bytes| for_good(path, bytes));
    let failure = |e| {
        let what = format!("cannot read the group's record {}", path.display());
        Error::io(ErrorKind::Record, what, e)
    };
    let Some(bytes) = bytes.map_err(failure)? else {
        return Ok(None);
    };
    let record = GroupRecord::from_bytes(&bytes);
    let record =
        record.map_err(|e| Error::new(ErrorKind::Record, format!("{}: {e}", path.display())))?;
    Ok(Some(record))
}

/// The records of all groups beside the ownership record at `record`; those that cannot be read are left out.
///
/// Fails with [`ErrorKind::Record`] when the folder cannot be listed.
pub fn groups_beside(record: &Path) -> Result<Vec<GroupRecord>> {
    let folder = directory_of(record);
    let failure = |e| {
        let what = format!("cannot list {}", folder.display());
        Error::io(ErrorKind::Record, what, e)
    };
    let mut groups = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failure)? {
        let path = entry.map_err(failure)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.ends_with(GROUP_SUFFIX)) {
            groups.extend(load_group(&path).ok().flatten());
        }
    }
    Ok(groups)
}
