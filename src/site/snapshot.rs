//! A snapshot of a disk that is served: its file becomes the read-only parent of a new one, which takes its
//! place under the clients, who see a pause and nothing else.
//!
//! ```text
//!   hold       new requests wait, those under way end
//!   park       all is durable, the image closed cleanly
//!   share      others may read the file from now on; nobody may write it
//!   protect    no permission to write it
//!   child      made beside its place, whole and durable; gets its name; is opened over the file
//!   swap       the export is the child's, what waited goes on
//! ```
//!
//! A crash before the child has its name leaves the disk as it was, closed, perhaps read-only; after that, disk
//! and child. Whatever fails before the swap is taken back, and the disk goes on. It must never let a change
//! into the parent once the child names its version.

use std::fs::{self, Permissions};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use blockserver::export::{Disk, ExportHandle, LocalRequest};
use vdisk::chain::ParentSearch;
use vdisk::disk::ImageFormat;

use super::disk::{self, Opened};
use crate::commands::commit::protect;
use crate::commands::image;
use crate::failure::{Failure, Result};
use crate::target::Target;

/// What is to be made.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The new disk, by an absolute path.
    pub(super) child: PathBuf,
    /// Bytes of its blocks.
    pub(super) block_size: Option<u32>,
}

/// Make the snapshot of the disk that `export` serves from `from`; what is served from now on.
pub(super) fn take(export: &ExportHandle, from: &Opened, wanted: &Wanted) -> Result<Opened> {
    let target = Target::new(&wanted.child, false)?;
    let permissions = fs::metadata(&from.path).map(|found| found.permissions());
    let failed = |e| Failure::io(format!("{}: cannot be examined", from.path.display()), &e);
    let permissions = permissions.map_err(failed)?;
    export.hold_and_wait();
    let mut named = None;
    let taken = park(export)
        .and_then(|()| switch(from, wanted, (target, &mut named)))
        .and_then(|taken| swap(export, taken));
    taken.inspect_err(|_| {
        if let Err(failure) = take_back(from, (permissions, named)) {
            tracing::error!(what = failure.what, "after a snapshot that failed");
        }
        export.release();
    })
}

fn park(export: &ExportHandle) -> Result<()> {
    let parked = export.call(LocalRequest::Park { mark: None });
    let failed = |e| Failure::io("the disk cannot be closed for a snapshot", &e);
    parked.map(drop).map_err(failed)
}

/// From the parked disk to an open child over it. `named` is the child's path once that is the child's: what
/// had the name before is somebody else's.
fn switch<'a>(
    from: &Opened,
    wanted: &'a Wanted,
    (target, named): (Target, &mut Option<&'a Path>),
) -> Result<Opened> {
    share(&from.disk, &from.path)?;
    protect(&from.path)?;
    image::make_child(target.partial(), &from.path, wanted.block_size)?;
    target.finish()?;
    *named = Some(&wanted.child);
    open(from, &wanted.child)
}

/// The export is the child's from now on.
fn swap(export: &ExportHandle, taken: Opened) -> Result<Opened> {
    let released = export.clone();
    let swapped = export.swap(taken.disk.clone(), move || released.release());
    let failed = |e| Failure::io("the new disk cannot take the old one's place", &e);
    swapped.map(|()| taken).map_err(failed)
}

/// The child, with its parents where they were found before, or in the folder of its own.
fn open(from: &Opened, child: &Path) -> Result<Opened> {
    let mut folders = from.search.folders.clone();
    for path in [from.path.as_path(), child] {
        folders.extend(path.parent().map(Path::to_owned));
    }
    let search = ParentSearch {
        parent: None,
        folders,
    };
    disk::open(child, Some(ImageFormat::Vhdx), false, &search)
}

/// Let others read the file.
fn share(disk: &Disk, path: &Path) -> Result<()> {
    let what = || format!("{}: cannot be shared with its child", path.display());
    disk.share().map_err(|error| Failure::io(what(), &error))
}

/// The child goes, and the disk is for its server alone and may be written again.
fn take_back(from: &Opened, (permissions, named): (Permissions, Option<&Path>)) -> Result<()> {
    if let Some(child) = named {
        // It may be gone already.
        let _ = fs::remove_file(child);
    }
    let path = from.path.display();
    let stays = |e| Failure::io(format!("{path}: stays read-only"), &e);
    let writable = fs::set_permissions(&from.path, permissions).map_err(stays);
    let deadline = Instant::now() + image::PATIENCE;
    while let Err(error) = from.disk.exclude() {
        if Instant::now() >= deadline {
            let what = format!("{path}: is read by others while it is served");
            return Err(Failure::io(what, &error));
        }
        thread::sleep(Duration::from_millis(5));
    }
    writable
}
