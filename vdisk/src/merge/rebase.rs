//! Putting a differencing disk on another parent, so that it reads as before.
//!
//! ```text
//!   child:  wherever the new parent holds something else than the old one, what the child reads there
//!           becomes its own; closed
//!   child:  its locator names the new parent                                                (its log)
//! ```
//!
//! A crash anywhere leaves a child that reads as before over the old parent, or over the new one; rebasing
//! again goes on. What the disk holds never changes, so its version stays, and disks built on it are
//! not disturbed.

use std::path::Path;

use super::{PIECE, WINDOW, unchanged};
use crate::chain::{ParentSearch, relative_path};
use crate::disk::{Disk, OpenOptions, random_bits};
use crate::engine::Extent;
use crate::error::{Error, Result};
use crate::info::info;
use crate::open::set_locator;
use crate::storage::{FileStorage, Storage as _};

/// Contents are compared in runs of this many bytes.
const GRAIN: usize = 4096;

/// Put the disk at `path` on the disk at `onto`; how many bytes became its own by that. Neither may be
/// in use for writing; the disk's present parent is found as `search` says.
///
/// Where `onto` is the version that the disk is built on, as when its parent has only moved, nothing is
/// copied and the present parent is not looked for. `progress` is as for [`commit`](super::commit). Fails with `InvalidArgument` when sectors differ,
/// and as opening the disks does.
pub fn rebase(
    path: &Path,
    search: &ParentSearch,
    onto: &Path,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).canonicalize();
    let folder = folder.map_err(|error| Error::io("cannot be found", error).in_file(path))?;
    let told = |path: &Path| {
        let mut storage = FileStorage::open(path, false)?;
        info(&mut storage).map_err(|error| error.in_file(path))
    };
    let (of_child, of_parent) = (told(path)?, told(onto)?);
    let built = of_child
        .parent
        .ok_or_else(|| Error::invalid("is not built on another disk").in_file(path))?;
    if of_child.logical_sector != of_parent.logical_sector {
        return Err(Error::invalid(format!(
            "has sectors of {} bytes and {} of {}",
            of_child.logical_sector,
            onto.display(),
            of_parent.logical_sector
        ))
        .in_file(path));
    }
    // Else a power cut could bring back an older content of it under the same version.
    FileStorage::open(onto, false)?
        .flush()
        .map_err(|error| Error::io("cannot be made durable", error).in_file(onto))?;
    let same = built.versions.contains(&of_parent.ids.data_write);
    let mut copied = 0;
    if !same {
        let writing = OpenOptions {
            data_write: Some(of_child.ids.data_write),
            ..OpenOptions::default()
        };
        let reading = OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        };
        let beneath = ParentSearch {
            parent: None,
            folders: search.folders.clone(),
        };
        let mut parent = Disk::open_with(onto, &reading, &beneath)?;
        let mut child = Disk::open_with(path, &writing, search)?;
        unchanged(&parent, of_parent.ids.data_write, onto)?;
        unchanged(&child, of_child.ids.data_write, path)?;
        copied = keep_what_differs(&mut child, &mut parent, progress)?;
        child.close()?;
    }
    let mut storage = FileStorage::open(path, true)?;
    let mut locator =
        crate::chain::locator_of(&mut storage).map_err(|error| error.in_file(path))?;
    locator.set_linkage(of_parent.ids.data_write);
    locator.set_relative_path(&relative_path(&folder, onto)?);
    set_locator(&mut storage, &locator, &mut random_bits).map_err(|error| error.in_file(path))?;
    Ok(copied)
}

/// Make the child's own what it reads from its parent and would read otherwise from `other`.
fn keep_what_differs(
    child: &mut Disk,
    other: &mut Disk,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let (mut at, mut copied) = (0, 0);
    while at < child.size() {
        let window = WINDOW.min(child.size() - at);
        for Extent {
            len,
            allocated,
            zero,
        } in child.own_status(at, window)?
        {
            if !allocated && !zero {
                copied += keep_range(child, other, (at, len), progress)?;
            }
            at += len;
            progress(at)?;
        }
    }
    Ok(copied)
}

/// The same for a range that is wholly the parent's.
fn keep_range(
    child: &mut Disk,
    other: &mut Disk,
    (mut at, len): (u64, u64),
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let (end, mut copied) = (at + len, 0);
    let mut pieces = [vec![0; PIECE as usize], vec![0; PIECE as usize]];
    while at < end {
        let zeros = zero_run(child, at, end)?.min(zero_run(other, at, end)?);
        if zeros > 0 {
            at += zeros;
            continue;
        }
        let now = (PIECE - at % PIECE).min(end - at) as usize;
        let [mine, others] = &mut pieces;
        let (mine, others) = (&mut mine[..now], &mut others[..now]);
        child.read_at(at, mine)?;
        other.read_or_zero(at, others)?;
        let runs = mine.chunks(GRAIN).zip(others.chunks(GRAIN));
        for (place, (mine, others)) in (at..).step_by(GRAIN).zip(runs) {
            if mine != others {
                if mine.iter().all(|byte| *byte == 0) {
                    child.zero(place, mine.len() as u64)?;
                } else {
                    child.write_at(place, mine)?;
                }
                copied += mine.len() as u64;
            }
        }
        at += now as u64;
        progress(at)?;
    }
    Ok(copied)
}

/// How many bytes from `at`, at most up to `end`, certainly read as zero.
fn zero_run(disk: &mut Disk, at: u64, end: u64) -> Result<u64> {
    if at >= disk.size() {
        return Ok(end - at);
    }
    let extents = disk.status(at, end.min(disk.size()) - at)?;
    let zeros = extents.iter().take_while(|extent| extent.zero);
    Ok(zeros.map(|extent| extent.len).sum())
}
