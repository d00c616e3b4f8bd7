//! The disks of a machine that comes back are put where its description wants them.
//!
//! Each disk that the machine writes is a new disk built on what was frozen, under the name that the description
//! has; what is there already is set aside under another name, if that was asked for, and never removed. Everything
//! is checked before anything is touched. Unless the machine starts, it is all taken back. A new
//! disk takes a name atomically, so a crash leaves under each name what was there, or what comes back.

use std::fs;
use std::path::{Path, PathBuf};

use vdisk::storage::FileStorage;
use vmm::description::Description;

use super::folder::Saved;
use super::manifest::SavedDisk;
use crate::args::FormatName;
use crate::commands::image::{self, Known};
use crate::failure::{Exit, Failure, Result};
use crate::plan;
use crate::site::disk::refuse_recorded;
use crate::target::Target;

/// What is done about a disk.
struct Step<'a> {
    saved: &'a SavedDisk,
    /// Where the machine wants it.
    path: PathBuf,
    /// What is there goes to.
    aside: Option<PathBuf>,
}

/// Disks that were put in place; taken back when this is dropped, unless the machine has started.
#[derive(Default)]
pub(crate) struct Placed {
    /// Each with where what was there before is now.
    disks: Vec<(PathBuf, Option<PathBuf>)>,
    kept: bool,
}

impl Placed {
    /// The machine has started with them.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }

    /// Where what was in the way is now.
    pub(crate) fn aside(&self) -> impl Iterator<Item = &Path> {
        self.disks.iter().filter_map(|(_, aside)| aside.as_deref())
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for (path, aside) in self.disks.drain(..).rev() {
            let undone = match aside {
                Some(aside) => fs::rename(aside, &path),
                None => fs::remove_file(&path),
            };
            if let Err(error) = undone {
                tracing::error!(path = %path.display(), %error, "a disk of the restored machine stays");
            }
        }
    }
}

/// Put the disks of `saved` where `vm` wants them. With `discard` what is there is set aside.
pub(crate) fn place(saved: &Saved, vm: &Description, discard: bool) -> Result<Placed> {
    let mut steps = Vec::new();
    for (saved, wanted) in saved.manifest.disks.iter().zip(&vm.disks) {
        identity(saved, wanted.format.map(plan::format_name))?;
        if saved.read_only() {
            same_file(&saved.image, &wanted.path)?;
        } else if let Some(step) = step(saved, &wanted.path, discard)? {
            steps.push(step);
        }
    }
    let mut placed = Placed::default();
    for step in &steps {
        put(step)?;
        placed.disks.push((step.path.clone(), step.aside.clone()));
    }
    Ok(placed)
}

/// Refuse an image that is not what it was.
pub(crate) fn identity(saved: &SavedDisk, format: Option<FormatName>) -> Result<()> {
    let path = saved.image.display();
    let known = image::know(&saved.image, format).map_err(|failure| {
        let hint = "bring the disk's image back to where it was at the snapshot";
        Failure::new(failure.exit, failure.what).hint(hint)
    })?;
    let version = match &known {
        Known::Vhdx(info) => Some(info.ids.data_write.to_string()),
        Known::Raw(_) => None,
    };
    if version != saved.version || known.virtual_size() != saved.size {
        let what = format!("{path}: is not what it was at the snapshot");
        return Err(Failure::new(Exit::Mismatch, what)
            .hint("the memory of the machine fits only to the very disks that it had"));
    }
    Ok(())
}

fn same_file(image: &Path, wanted: &Path) -> Result<()> {
    let found = |path: &Path| {
        let real = fs::canonicalize(path);
        real.map_err(|e| Failure::io(format!("{}: cannot be found", path.display()), &e))
    };
    if found(image)? == found(wanted)? {
        return Ok(());
    }
    let what = format!(
        "{}: the machine had {} in its place",
        wanted.display(),
        image.display()
    );
    Err(Failure::new(Exit::Mismatch, what))
}

/// What is to be done for a disk that the machine writes. Nothing, if what is there is built on the image and was
/// not written since the snapshot.
fn step<'a>(saved: &'a SavedDisk, wanted: &Path, discard: bool) -> Result<Option<Step<'a>>> {
    // A link stays a link.
    let path = fs::canonicalize(wanted).or_else(|_| std::path::absolute(wanted));
    let path = path.map_err(|e| Failure::io(format!("{}: is no path", wanted.display()), &e))?;
    let step = |aside| {
        Ok(Some(Step {
            saved,
            path: path.clone(),
            aside,
        }))
    };
    // A disk that was handed over goes on elsewhere, whatever lies here.
    refuse_recorded(&path)?;
    if fs::symlink_metadata(&path).is_err() {
        return step(None);
    }
    if fs::canonicalize(&saved.image).is_ok_and(|image| image == path) {
        let what = format!(
            "{}: holds the disk as it was at the snapshot, and is not written any more",
            path.display()
        );
        return Err(Failure::usage(what).hint("name another path for the disk in the description"));
    }
    // Nobody may be using it.
    let free = image::patiently(|| FileStorage::open(&path, true));
    drop(free?);
    if untouched(saved, &path) {
        return Ok(None);
    }
    if !discard {
        let what = format!("{}: is there, with what was written since", path.display());
        return Err(Failure::usage(what)
            .hint("--discard-disks sets it aside under another name, beside it"));
    }
    let aside = (1..1000).map(|n| aside_name(&path, n));
    let free = aside
        .into_iter()
        .find(|path| fs::symlink_metadata(path).is_err());
    let none = || Failure::usage(format!("{}: set aside too often", path.display()));
    step(Some(free.ok_or_else(none)?))
}

fn aside_name(path: &Path, number: u32) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}.set-aside-{number}.{ending}"))
}

/// Whether the disk at `path` is the one that the snapshot left there, and nothing was written to it.
fn untouched(saved: &SavedDisk, path: &Path) -> bool {
    let known = image::know(path, Some(FormatName::Vhdx));
    let Ok(Known::Vhdx(info)) = known else {
        return false;
    };
    let built_on = info.parent.is_some_and(|parent| {
        let version = |guid: &vdisk::format::Guid| Some(guid.to_string()) == saved.version;
        parent.versions.iter().any(version)
    });
    built_on && !info.log.dirty && Some(info.ids.data_write.to_string()) == saved.child
}

fn put(step: &Step<'_>) -> Result<()> {
    let path = &step.path;
    let target = Target::new(path, step.aside.is_some())?;
    image::make_child(target.partial(), &step.saved.image, None)?;
    if let Some(aside) = &step.aside {
        let failed = |e| Failure::io(format!("{}: cannot be set aside", path.display()), &e);
        fs::hard_link(path, aside).map_err(failed)?;
    }
    target.finish().inspect_err(|_| {
        if let Some(aside) = &step.aside {
            // The disk has its first name still.
            let _ = fs::remove_file(aside);
        }
    })
}
