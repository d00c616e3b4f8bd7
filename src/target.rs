//! A file that appears under its name only when it is whole.
//!
//! It is written beside its place under a name that says so, and renamed at the end. If anything
//! goes wrong before, it is removed again, and what stood under the name is untouched.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Exit, Failure, Result};

/// A file being made.
pub(crate) struct Target {
    place: PathBuf,
    partial: PathBuf,
    replace: bool,
    done: bool,
}

impl Target {
    /// Prepares to make `path`; refuses one that exists unless `replace`.
    pub(crate) fn new(path: &Path, replace: bool) -> Result<Self> {
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
        partial.push(format!(".partial-{}", std::process::id()));
        Ok(Self {
            partial: place.with_file_name(partial),
            place,
            replace,
            done: false,
        })
    }

    /// Where it is written until it is whole.
    pub(crate) fn partial(&self) -> &Path {
        &self.partial
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
        self.done = true;
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
        if !self.done {
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
