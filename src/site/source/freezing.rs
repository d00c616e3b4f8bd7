//! A served disk is frozen: what it holds is kept under another name beside it, and a new disk built on that takes
//! its name and its place.
//!
//! So whatever names the disk by its path, as `vm.toml` does, goes on with what goes on. With a new name for the
//! new disk, as [`super::snapshot`] has it, the description of the machine would have to be changed at every
//! snapshot, and a crash in between would leave it naming a disk that must not be written any more.
//!
//! ```text
//!   hold       new requests wait, those under way end
//!   park       all is durable, the image closed cleanly
//!   share      others may read the file from now on; nobody may write it
//!   link       the file has its second name, durably
//!   child      made beside its place, built on the second name; whole and durable
//!   rename     the child takes the first name, atomically and durably
//!   protect    no permission to write the file
//!   swap       the export is the child's, what waited goes on
//! ```
//!
//! At every moment the first name is a disk with all that was acknowledged: the file until the rename, its child
//! afterwards. A crash before the rename leaves a second name too many; permission is taken only after it, for a
//! disk that nobody may write would not run. Between the rename and that the locks keep writers away, and whoever wrote
//! would be noticed by the child, which names the version. Whatever fails is taken back, and the disk goes on.

use std::fs::{self, File, Permissions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Instant;

use blockserver::export::{ExportHandle, LocalRequest};
use mirror::wire::DiskFormat;
use vdisk::chain::ParentSearch;
use vdisk::disk::ImageFormat;
use vdisk::format::Guid;

use super::{Site, SiteDisk};
use crate::args::FormatName;
use crate::commands::commit::protect;
use crate::commands::image;
use crate::control::place;
use crate::failure::{Failure, Result};
use crate::site::disk::{self, Opened};
use crate::target::Target;

/// A disk that was frozen, with what thaws it as long as nothing was written since.
pub(crate) struct Frozen {
    /// Name of the export.
    pub(crate) name: String,
    /// The disk that goes on.
    pub(crate) path: PathBuf,
    /// What was frozen.
    pub(crate) image: PathBuf,
    /// The version of its data.
    pub(crate) version: Guid,
    /// The version that the new disk has until it is written.
    pub(crate) child: Guid,
    /// Bytes of the disk.
    pub(crate) size: u64,
    permissions: Permissions,
    before: Arc<Opened>,
    after: Arc<Opened>,
}

impl Site {
    /// Refuse what cannot be frozen under the name `image`, before anything is done about it.
    pub(crate) fn may_freeze(&self, name: &str, image: &Path) -> Result<()> {
        let disk = self.disk(name)?;
        disk.stays(disk.lock().as_ref())?;
        let from = disk.opened();
        if from.read_only {
            let what = format!("`{name}` is served read-only");
            return Err(Failure::usage(what));
        }
        if from.description.format != DiskFormat::Vhdx {
            let what = format!("{}: only a VHDX can have a parent", from.path.display());
            return Err(Failure::usage(what).hint(
                "make a VHDX of it with `diskferry convert` while the machine is off, or attach it read_only",
            ));
        }
        if fs::symlink_metadata(image).is_ok() {
            let what = format!("{}: exists already", image.display());
            return Err(Failure::usage(what).hint("give the snapshot another name"));
        }
        Ok(())
    }

    /// Freeze a disk that is written by nobody else than those who use its export. `image` lies in its folder.
    pub(crate) fn freeze(&self, name: &str, image: &Path) -> Result<Frozen> {
        self.may_freeze(name, image)?;
        let disk = self.disk(name)?;
        let _alone = disk.changing();
        let moving = disk.lock();
        disk.stays(moving.as_ref())?;
        let frozen = take(&disk.export, disk.opened(), image)?;
        disk.goes_on_with(&frozen.after);
        place::also_for(image, &frozen.path);
        Ok(frozen)
    }

    /// Undo that. Nothing was written since.
    pub(crate) fn thaw(&self, frozen: &Frozen) -> Result<()> {
        let disk = self.disk(&frozen.name)?;
        let _alone = disk.changing();
        let moving = disk.lock();
        disk.stays(moving.as_ref())?;
        if !Arc::ptr_eq(&disk.opened(), &frozen.after) {
            let what = format!("`{}` is another disk by now", frozen.name);
            return Err(Failure::usage(what));
        }
        disk.export.hold_and_wait();
        let swapped = park(&disk.export).and_then(|()| swap(&disk.export, &frozen.before));
        let thawed = swapped.and_then(|()| {
            disk.goes_on_with(&frozen.before);
            // It has the file that goes on as its parent.
            frozen.after.unlock();
            let stage = Stage::Renamed(&frozen.image);
            take_back(&frozen.before, &frozen.permissions, stage)
        });
        disk.export.release();
        thawed
    }
}

impl SiteDisk {
    fn goes_on_with(&self, opened: &Arc<Opened>) {
        let mut now = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        *now = Arc::clone(opened);
    }
}

/// How far it came.
#[derive(Clone, Copy)]
enum Stage<'a> {
    /// Both names are the old disk's, or the second is nothing.
    Begun,
    Linked(&'a Path),
    /// The first name is the child's.
    Renamed(&'a Path),
}

fn take(export: &ExportHandle, from: Arc<Opened>, image: &Path) -> Result<Frozen> {
    let failed = |e| Failure::io(format!("{}: cannot be examined", from.path.display()), &e);
    let permissions = fs::metadata(&from.path).map_err(failed)?.permissions();
    export.hold_and_wait();
    let mut stage = Stage::Begun;
    let taken = park(export)
        .and_then(|()| switch(&from, image, &mut stage))
        .and_then(|(child, versions)| {
            let child = Arc::new(child);
            swap(export, &child)?;
            Ok((child, versions))
        });
    let (after, (version, child)) = match taken {
        Ok(taken) => taken,
        Err(failure) => {
            let undone = swap(export, &from).and_then(|()| take_back(&from, &permissions, stage));
            if let Err(failure) = undone {
                tracing::error!(what = failure.what, "after a disk could not be frozen");
            }
            export.release();
            return Err(failure);
        }
    };
    export.release();
    Ok(Frozen {
        name: export.name().to_owned(),
        path: after.path.clone(),
        image: image.to_owned(),
        version,
        child,
        size: export.size(),
        permissions,
        before: from,
        after,
    })
}

fn park(export: &ExportHandle) -> Result<()> {
    let parked = export.call(LocalRequest::Park { mark: None });
    parked
        .map(drop)
        .map_err(|e| Failure::io("the disk cannot be closed to be frozen", &e))
}

/// From the parked disk to an open child that has its name, and the versions of both.
fn switch<'a>(
    from: &Opened,
    image: &'a Path,
    stage: &mut Stage<'a>,
) -> Result<(Opened, (Guid, Guid))> {
    let what = |what: &str| format!("{}: {what}", from.path.display());
    let target = Target::new(&from.path, true)?;
    let shared = from.disk.share();
    shared.map_err(|e| Failure::io(what("cannot be shared with its child"), &e))?;
    let linked = fs::hard_link(&from.path, image);
    linked.map_err(|e| {
        Failure::io(format!("{}: cannot be made", image.display()), &e).hint(
            "the disk's file system must know hard links, and let this user make files beside it",
        )
    })?;
    *stage = Stage::Linked(image);
    settle(image)?;
    image::make_child(target.partial(), image, None)?;
    let versions = (version(image)?, version(target.partial())?);
    target.finish()?;
    *stage = Stage::Renamed(image);
    protect(image)?;
    let mut folders = from.search.folders.clone();
    folders.extend(from.path.parent().map(Path::to_owned));
    let search = ParentSearch {
        parent: None,
        folders,
    };
    let child = disk::open(&from.path, Some(ImageFormat::Vhdx), false, &search)?;
    Ok((child, versions))
}

/// The export is that disk's from now on; it stays held.
fn swap(export: &ExportHandle, opened: &Opened) -> Result<()> {
    let (sender, swapped) = std::sync::mpsc::channel();
    let done = move || {
        // Whoever waits has the other end.
        let _ = sender.send(());
    };
    let failed = |e| Failure::io("the new disk cannot take the old one's place", &e);
    export
        .swap(Arc::clone(&opened.disk), done)
        .map_err(failed)?;
    // A server that has stopped drops the sender.
    let _ = swapped.recv();
    Ok(())
}

/// The version of the data of a VHDX.
fn version(path: &Path) -> Result<Guid> {
    match image::know(path, Some(FormatName::Vhdx))? {
        image::Known::Vhdx(info) => Ok(info.ids.data_write),
        image::Known::Raw(_) => Err(Failure::usage(format!("{}: is no VHDX", path.display()))),
    }
}

/// The disk has its name, and is for its server alone, and may be written again.
fn take_back(from: &Opened, permissions: &Permissions, stage: Stage<'_>) -> Result<()> {
    let path = &from.path;
    let stays = |e| {
        Failure::io(
            format!("{}: cannot have its name again", path.display()),
            &e,
        )
    };
    match stage {
        Stage::Begun => {}
        Stage::Linked(image) => fs::remove_file(image).map_err(stays)?,
        // The child, which holds nothing, goes by that.
        Stage::Renamed(image) => fs::rename(image, path).map_err(stays)?,
    }
    settle(path)?;
    let writable = fs::set_permissions(path, permissions.clone())
        .map_err(|e| Failure::io(format!("{}: stays read-only", path.display()), &e));
    let deadline = Instant::now() + image::PATIENCE;
    while let Err(error) = from.disk.exclude() {
        if Instant::now() >= deadline {
            let what = format!("{}: is read by others while it is served", path.display());
            return Err(Failure::io(what, &error));
        }
        thread::sleep(std::time::Duration::from_millis(5));
    }
    writable
}

/// Make the names in a file's folder durable.
fn settle(path: &Path) -> Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let synced: io::Result<()> = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|e| Failure::io(format!("{}: cannot be made durable", folder.display()), &e))
}
