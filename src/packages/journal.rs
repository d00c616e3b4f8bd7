//! What an interrupted export leaves in its first folder, so that the next one goes on.
//!
//! `NAME.export.json` says what is exported and which volumes are whole and durable. It is there before the
//! first volume, replaced as a whole after each, and goes after the manifest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use package::{DiskShape, VolumeEntry};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::folders::{Folders, put};
use crate::failure::{Exit, Failure, Result};
use crate::source::Identity;

const SCHEMA: u32 = 1;

/// What is exported, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) source: Identity,
    pub(crate) disk: DiskShape,
    /// Most bytes of a volume.
    pub(crate) limit: u64,
    /// The checkpoint since which changes are exported.
    pub(crate) since: Option<String>,
    pub(crate) builds_on: Option<Uuid>,
    /// For whom it is encrypted, empty for nobody.
    pub(crate) lock: String,
}

/// An export under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Journal {
    schema: u32,
    pub(crate) package: Uuid,
    /// The checkpoint that it took.
    pub(crate) checkpoint: Option<String>,
    pub(crate) work: Work,
    pub(crate) volumes: Vec<VolumeEntry>,
}

impl Journal {
    pub(crate) fn new(package: Uuid, checkpoint: Option<String>, work: Work) -> Self {
        Self {
            schema: SCHEMA,
            package,
            checkpoint,
            work,
            volumes: Vec::new(),
        }
    }

    /// Where that of a package of this name is.
    pub(crate) fn path(folders: &Folders, name: &str) -> PathBuf {
        folders.first().join(format!("{name}.export.json"))
    }

    /// Reads the one at `path`; `None` if there is none.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => {
                let what = format!("{}: cannot be read", path.display());
                return Err(Failure::io(what, &e));
            }
        };
        let read: Option<Self> = serde_json::from_slice(&bytes).ok();
        let read = read.filter(|journal| journal.schema == SCHEMA);
        let journal = read.ok_or_else(|| {
            let what = format!("{}: is not understood", path.display());
            Failure::new(Exit::Failed, what)
                .hint("it tells of an interrupted export: remove it and the files that lie with it")
        })?;
        Ok(Some(journal))
    }

    /// Puts it at `path`, durably.
    pub(crate) fn store(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self);
        let text = text.map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
        put(path, &text)
    }

    /// Up to which byte of the disk whole volumes tell.
    pub(crate) fn done(&self) -> u64 {
        self.volumes.last().map_or(0, |volume| volume.end)
    }

    /// Refuses to go on with another export than this.
    pub(crate) fn refuse_other(&self, now: &Work, path: &Path) -> Result<()> {
        let before = &self.work;
        let what = if before.source != now.source {
            "the disk is another one, or was changed"
        } else if before != now {
            "another package was asked for"
        } else {
            return Ok(());
        };
        let what = format!(
            "{}: {what} since this export was interrupted, so it cannot be gone on with",
            path.display()
        );
        Err(Failure::new(Exit::Failed, what).hint("--restart throws it away and starts over"))
    }
}
