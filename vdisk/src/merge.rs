//! Merging a differencing disk into the disk it is built on, and putting it on another one
//! (MS-VHDX 2.6.2.6).
//!
//! Writing a parent makes it another version, which its children refuse. So the order is:
//!
//! ```text
//!   child:  a second accepted version of the parent, fresh and not the parent's yet   (its log)
//!   parent: a session under that version; what the child holds of its own is written  (its log)
//!   parent: closed cleanly; what the child says of the disk takes the place of what it says   (its log)
//!   child:  the parent's version is the only one that is accepted                     (its log)
//! ```
//!
//! A crash anywhere leaves a child that reads as before: what has been merged already is what the child
//! itself holds. Merging again takes the version that was announced and goes over everything once more.
//! Driver: opens files and moves bytes; the engines decide where.

mod flatten;
mod rebase;

pub use self::flatten::{Flattened, flatten};
pub use self::rebase::rebase;

use std::fs;
use std::path::{Path, PathBuf};

use crate::chain::{ParentSearch, locator_of, open_chain};
use crate::disk::{Disk, OpenOptions, open_child_engine_with, random_bits};
use crate::engine::Extent;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Guid, ParentLocator};
use crate::info::info;
use crate::metadata::{of_disk, replace_of_disk};
use crate::open::set_locator;
use crate::storage::FileStorage;

/// Bytes moved at once.
const PIECE: u64 = 1 << 20;
/// How much of the child is asked about at once.
const WINDOW: u64 = 1 << 40;

/// What a merge did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The disk that holds everything now.
    pub parent: PathBuf,
    /// Bytes that were written to it.
    pub written: u64,
    /// Bytes that became zero in it.
    pub zeroed: u64,
}

/// Disks in `folder` that accept the version `parent` of the disk beneath them, but for `child`.
///
/// What cannot be read is passed over: it is no disk that anybody could open.
pub fn built_on(folder: &Path, parent: Guid, child: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::io("cannot be listed", error).in_file(folder);
    let child = child.canonicalize().unwrap_or_else(|_| child.to_owned());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        // A pipe of such a name would be waited for.
        if !matches!(ending, Some("vhdx" | "avhdx"))
            || !path.is_file()
            || path.canonicalize().ok().as_ref() == Some(&child)
        {
            continue;
        }
        let told = FileStorage::open(&path, false).and_then(|mut storage| info(&mut storage));
        if told.is_ok_and(|told| told.parent.is_some_and(|of| of.versions.contains(&parent))) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The path of the disk that the one at `path` is built on, and its version.
pub fn parent_of(path: &Path, search: &ParentSearch) -> Result<(PathBuf, Guid)> {
    let reading = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let mut chain = open_chain(path, &reading, search)?;
    let Some(parent) = chain.parents.first_mut() else {
        return Err(Error::invalid("is not built on another disk").in_file(path));
    };
    let found = parent.storage.path().to_owned();
    let told = info(&mut parent.storage).map_err(|error| error.in_file(&found))?;
    Ok((found, told.ids.data_write))
}

/// Merge the disk at `path` into its parent. Both must not be in use, and the parent be writable.
///
/// `progress` is told how far into the disk it has come; an error from it ends the merge, and the same
/// call goes on later. The parent gets the disk's size. Other disks built on it are lost by this: see
/// [`built_on`]. Fails as opening the two does.
pub fn commit(
    path: &Path,
    search: &ParentSearch,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Merged> {
    let (parent_path, version) = parent_of(path, search)?;
    let mut storage = FileStorage::open(path, true)?;
    let reading = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let in_child = |error: Error| error.in_file(path);
    let mut locator = locator_of(&mut storage).map_err(in_child)?;
    let announced = announce(&mut storage, &mut locator, version).map_err(in_child)?;
    let writing = OpenOptions {
        data_write: Some(announced),
        ..OpenOptions::default()
    };
    let beneath = ParentSearch {
        parent: None,
        folders: search.folders.clone(),
    };
    let parent = Disk::open_with(&parent_path, &writing, &beneath)?;
    unchanged(&parent, version, &parent_path)?;
    let (engine, _) =
        open_child_engine_with(&mut storage, &reading, &mut random_bits, |options| options)
            .map_err(in_child)?;
    let child = Disk::new(Box::new(storage), engine).alone();
    let (written, zeroed) = copy(child, parent, progress)?;
    let mut storage = FileStorage::open(path, true)?;
    let items = of_disk(&mut storage).map_err(in_child)?;
    replace_of_disk(
        &mut FileStorage::open(&parent_path, true)?,
        &items,
        (&[version, announced], announced),
        &mut random_bits,
    )
    .map_err(|error| error.in_file(&parent_path))?;
    let told = info(&mut FileStorage::open(&parent_path, false)?)
        .map_err(|error| error.in_file(&parent_path))?;
    locator.set_linkage(told.ids.data_write);
    set_locator(&mut storage, &locator, &mut random_bits).map_err(in_child)?;
    Ok(Merged {
        parent: parent_path,
        written,
        zeroed,
    })
}

/// Refuse a disk that another program changed before it was locked here.
fn unchanged(disk: &Disk, version: Guid, path: &Path) -> Result<()> {
    if disk.version() == version {
        return Ok(());
    }
    let what = "was changed by another program just now; look at it before trying again";
    Err(Error::new(ErrorKind::Locked, what).in_file(path))
}

/// Have the child accept the version that the parent is about to get; what an earlier merge announced is
/// kept, since the parent may have it already.
fn announce(storage: &mut FileStorage, locator: &mut ParentLocator, version: Guid) -> Result<Guid> {
    let accepted = locator.linkages()?;
    if !accepted.contains(&version) {
        return Err(Error::corrupt(
            "the parent was changed after this disk was made from it",
        ));
    }
    if let Some(announced) = accepted.get(1) {
        return Ok(*announced);
    }
    let fresh = Guid::from_random(random_bits());
    locator.add_linkage(fresh);
    set_locator(storage, locator, &mut random_bits)?;
    Ok(fresh)
}

/// Write what the child holds of its own to the parent and close that; how much was written and zeroed.
///
/// The parent gets the child's size: first if it is the larger one, last if it is the smaller one, so that the
/// child reads the same at every moment.
fn copy(
    mut child: Disk,
    mut parent: Disk,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<(u64, u64)> {
    if child.size() > parent.size() {
        parent.resize(child.size(), false)?;
    }
    let (mut at, mut written, mut zeroed) = (0, 0, 0);
    let mut piece = vec![0; PIECE as usize];
    while at < child.size() {
        let window = WINDOW.min(child.size() - at);
        for Extent {
            len,
            allocated,
            zero,
        } in child.status(at, window)?
        {
            if zero {
                parent.zero(at, len)?;
                zeroed += len;
            } else if allocated {
                let mut from = at;
                while from < at + len {
                    let now = PIECE.min(at + len - from) as usize;
                    child.read_at(from, &mut piece[..now])?;
                    parent.write_at(from, &piece[..now])?;
                    from += now as u64;
                    progress(from)?;
                }
                written += len;
            }
            at += len;
            progress(at)?;
        }
    }
    if child.size() < parent.size() {
        parent.resize(child.size(), true)?;
    }
    parent.close()?;
    Ok((written, zeroed))
}
