//! A file that appears under its name only when it is whole.
//!
//! It is written beside its place under a name that says so, and renamed at the end. If anything
//! goes wrong before, it is removed again, unless a later command is to go on with it; what stood under
//! the name is untouched.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Exit, Failure, Result};

/// A file being made.
pub(crate) struct Target {
    place: PathBuf,
    partial: PathBuf,
    replace: bool,
    /// Whether the half-made file stays where it is.
    leave: bool,
}

impl Target {
    /// Prepares to make `path`; refuses one that exists unless `replace`.
    pub(crate) fn new(path: &Path, replace: bool) -> Result<Self> {
        Self::beside(path, replace, &format!(".partial-{}", std::process::id()))
    }

    /// The same under a name beside it that another run finds again: with `.partial` behind it. The file
    /// is left there until it is [`Target::ours`].
    pub(crate) fn resumable(path: &Path, replace: bool) -> Result<Self> {
        let mut target = Self::beside(path, replace, ".partial")?;
        target.leave = true;
        Ok(target)
    }

    fn beside(path: &Path, replace: bool, ending: &str) -> Result<Self> {
        // A link stays a link: what it points at is replaced.
        let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if let Ok(found) = fs::metadata(&place) {
            refuse(path, &found, replace)?;
        }
        let Some(name) = place.file_name() else {
            return Err(Failure::usage(format!(
                "{}: is not a file's name",
                path.display()
            )));
        };
        let mut partial = name.to_owned();
        partial.push(ending);
        Ok(Self {
            partial: place.with_file_name(partial),
            place,
            replace,
            leave: false,
        })
    }

    /// Where it is written until it is whole.
    pub(crate) fn partial(&self) -> &Path {
        &self.partial
    }

    /// The half-made file is of this run: it goes if the run fails.
    pub(crate) fn ours(&mut self) {
        self.leave = false;
    }

    /// The half-made file stays, for another run to go on with.
    pub(crate) fn leave(&mut self) {
        self.leave = true;
    }

    /// It is whole and flushed: gives it its name, durably.
    pub(crate) fn finish(mut self) -> Result<()> {
        let path = &self.place;
        let failed = |e: std::io::Error| {
            Failure::io(format!("{}: cannot be put in place", path.display()), &e)
        };
        if !self.replace && fs::symlink_metadata(path).is_ok() {
            return Err(exists(path));
        }
        fs::rename(&self.partial, path).map_err(failed)?;
        self.leave = true;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        fs::File::open(folder)
            .and_then(|f| f.sync_all())
            .map_err(failed)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.leave {
            // There may be nothing to remove, and nobody to tell.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

fn refuse(path: &Path, found: &fs::Metadata, replace: bool) -> Result<()> {
    if !found.is_file() {
        let what = format!("{}: exists and is not a regular file", path.display());
        return Err(Failure::new(Exit::Unsupported, what).hint(
            "write to a file; for a block device, copy from `diskferry serve` with nbdcopy",
        ));
    }
    if !replace {
        return Err(exists(path));
    }
    Ok(())
}

fn exists(path: &Path) -> Failure {
    Failure::new(Exit::Failed, format!("{}: exists already", path.display()))
        .hint("--force replaces it")
}
