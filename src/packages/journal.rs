//! What an interrupted export leaves, in a store or in its first folder, so that the next one goes on.
//!
//! `NAME.export.json` says what is exported and which volumes are whole and durable. It is there before the
//! first volume, replaced as a whole after each, and goes after the manifest.

use package::{DiskShape, VolumeEntry};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::place::Place;
use crate::failure::{Exit, Failure, Result};
use crate::source::Identity;

const SCHEMA: u32 = 1;
/// What its name ends with.
pub(crate) const NOTES: &str = ".export.json";
/// More bytes than one of the most volumes has.
const MOST: u64 = 64 << 20;

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
    /// The upload of the volume that is under way, which has to be ended if nobody goes on with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) upload: Option<String>,
    /// The run that has it, another one each time: so one that was overtaken notices.
    #[serde(default)]
    run: Uuid,
}

impl Journal {
    pub(crate) fn new(package: Uuid, checkpoint: Option<String>, work: Work) -> Self {
        Self {
            schema: SCHEMA,
            package,
            checkpoint,
            work,
            volumes: Vec::new(),
            upload: None,
            run: Uuid::new_v4(),
        }
    }

    /// What that of a package of this name is called.
    pub(crate) fn file_name(name: &str) -> String {
        format!("{name}{NOTES}")
    }

    /// Reads that of the package `name`; `None` if there is none.
    pub(crate) fn load(place: &dyn Place, name: &str) -> Result<Option<Self>> {
        let file = Self::file_name(name);
        let Some(bytes) = place.load(&file, MOST)? else {
            return Ok(None);
        };
        let read: Option<Self> = serde_json::from_slice(&bytes).ok();
        let read = read.filter(|journal| journal.schema == SCHEMA);
        let journal = read.ok_or_else(|| {
            let what = format!("{}: is not understood", place.shown(&file));
            Failure::new(Exit::Failed, what)
                .hint("it tells of an interrupted export: remove it and the files that lie with it")
        })?;
        Ok(Some(journal))
    }

    /// Makes it that of this run.
    pub(crate) fn take_over(&mut self) {
        self.run = Uuid::new_v4();
    }

    /// Puts it there, durably.
    pub(crate) fn store(&self, place: &dyn Place, name: &str) -> Result<()> {
        let text = serde_json::to_vec(self);
        let text = text.map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
        place.put(&Self::file_name(name), &text)
    }

    /// Up to which byte of the disk whole volumes tell.
    pub(crate) fn done(&self) -> u64 {
        self.volumes.last().map_or(0, |volume| volume.end)
    }

    /// Refuses to go on with another export than this.
    pub(crate) fn refuse_other(&self, now: &Work, shown: &str) -> Result<()> {
        let before = &self.work;
        let what = if before.source != now.source {
            "the disk is another one, or was changed"
        } else if before != now {
            "another package was asked for"
        } else {
            return Ok(());
        };
        let what =
            format!("{shown}: {what} since this export was begun, so it cannot be gone on with");
        Err(Failure::new(Exit::Failed, what).hint("--restart throws it away and starts over"))
    }
}
