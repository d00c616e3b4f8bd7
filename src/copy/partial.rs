//! The half-made target of a copy: begun, or found and gone on with.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vdisk::storage::FileStorage;

use super::journal::{Journal, Work};
use super::sink::Notes;
use crate::commands::image;
use crate::failure::{Exit, Failure, Result};
use crate::target::Target;

/// A target that is being made.
pub(crate) struct Partial {
    pub(crate) target: Target,
    /// Where the journal is, if another run can go on.
    journal: Option<PathBuf>,
    /// Whether the half-made file is in our hands.
    ours: bool,
}

/// How a target is begun.
pub(crate) enum Start {
    /// It has to be made.
    New(Option<Notes>),
    /// It is there, and is to be gone on with.
    Resume(Notes),
}

impl Start {
    /// Up to which byte another run has copied.
    pub(crate) fn done(&self) -> u64 {
        match self {
            Self::New(_) => 0,
            Self::Resume(notes) => notes.journal.done,
        }
    }
}

impl Partial {
    /// Prepares to make `path`, so that another run can go on if `resumable`.
    pub(crate) fn new(path: &Path, replace: bool, resumable: bool) -> Result<Self> {
        if !resumable {
            let target = Target::new(path, replace)?;
            return Ok(Self {
                target,
                journal: None,
                ours: true,
            });
        }
        let target = Target::resumable(path, replace)?;
        let mut journal = target.partial().as_os_str().to_owned();
        journal.push(".json");
        Ok(Self {
            target,
            journal: Some(journal.into()),
            ours: false,
        })
    }

    /// Says how `work` is to be begun, and changes nothing; with `restart` from its beginning.
    pub(crate) fn start(&self, work: Option<Work>, restart: bool) -> Result<Start> {
        let (Some(path), Some(work)) = (self.journal.clone(), work) else {
            return Ok(Start::New(None));
        };
        let there = fs::symlink_metadata(self.target.partial()).is_ok();
        let fresh = |work| {
            let journal = Journal::new(work);
            let path = path.clone();
            Ok(Start::New(Some(Notes { journal, path })))
        };
        if restart {
            return fresh(work);
        }
        let Some(journal) = Journal::load(&path)? else {
            if there {
                return Err(in_the_way(self.target.partial()));
            }
            return fresh(work);
        };
        if !there || journal.done == 0 {
            return fresh(work);
        }
        refuse_other(&journal.work, &work, self.target.partial())?;
        Ok(Start::Resume(Notes { journal, path }))
    }

    /// What another run has left is removed, unless that run is still at it; then `notes` are written,
    /// so that what is made next is known to be ours.
    pub(crate) fn clear(&mut self, notes: Option<&Notes>) -> Result<()> {
        let Some(notes) = notes else { return Ok(()) };
        let partial = self.target.partial().to_owned();
        if fs::symlink_metadata(&partial).is_ok() {
            if !notes.path.exists() {
                return Err(in_the_way(&partial));
            }
            // Only who holds its lock may remove it.
            let held = image::patiently(|| FileStorage::open(&partial, true))?;
            let removed = fs::remove_file(&partial);
            drop(held);
            removed.map_err(|e| failed(&partial, &e))?;
        }
        notes.journal.store(&notes.path)
    }

    /// The half-made file is in our hands. If the copy fails it goes, unless it is left.
    pub(crate) fn ours(&mut self) {
        self.ours = true;
        self.target.ours();
    }

    /// The copy has failed with `done` bytes of it durable.
    pub(crate) fn give_up(mut self, done: u64) {
        if done > 0 {
            self.target.leave();
            return;
        }
        let journal = self.journal.take().filter(|_| self.ours);
        drop(self.target);
        if let Some(journal) = journal {
            // One that stays tells of no bytes, and is replaced by the next run.
            let _ = fs::remove_file(journal);
        }
    }

    /// The target is whole: it gets its name, and the journal goes.
    pub(crate) fn finish(self) -> Result<()> {
        self.target.finish()?;
        let Some(journal) = self.journal else {
            return Ok(());
        };
        match fs::remove_file(&journal) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(&journal, &e)),
            _ => Ok(()),
        }
    }
}

fn refuse_other(before: &Work, now: &Work, partial: &Path) -> Result<()> {
    let what = if before.source != now.source {
        "the source is another one, or was changed"
    } else if before != now {
        "the new disk was to be another one"
    } else {
        return Ok(());
    };
    let what = format!(
        "{}: {what} since this copy was interrupted, so it cannot be gone on with",
        partial.display()
    );
    Err(Failure::new(Exit::Failed, what).hint("--restart throws it away and starts over"))
}

fn in_the_way(partial: &Path) -> Failure {
    let what = format!(
        "{}: is in the way, and of no interrupted copy",
        partial.display()
    );
    Failure::new(Exit::Failed, what).hint("move it away")
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::io(format!("{}: cannot be removed", path.display()), error)
}
