//! From a running machine to the folder of a snapshot.
//!
//! ```text
//!   checks, folder, description; memory that still comes in is waited for
//!   ── pause ─────────────────────────────────────────────────────────────
//!   processors stand still, then devices: a device that completes a request writes into memory
//!   state │ memory │ disks, one after the other: nobody writes them, so it is one instant
//!   manifest, and the folder has its name
//!   ── goes on, or ends ──────────────────────────────────────────────────
//! ```
//!
//! Disks come last, since they are what has to be undone. Whatever fails is undone, and the machine goes on as
//! before. A crash leaves a folder that nobody takes for a snapshot, and disks with all that they held.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmm::Machine;
use vmm::description::{Description, Disk};

use super::folder::Made;
use super::manifest::{Manifest, SavedDisk, SavedNetwork};
use crate::commands::image::{self, Known};
use crate::commands::run::cannot;
use crate::failure::{Failure, Result};
use crate::plan;
use crate::site::source::Site;
use crate::site::source::freezing::Frozen;

/// A snapshot to be taken of a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    /// Absolute path of a folder that does not exist yet.
    pub(crate) into: PathBuf,
    /// Whether the machine ends with it.
    #[serde(default)]
    pub(crate) stop: bool,
}

/// A snapshot that was taken. Times in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Taken {
    pub(crate) snapshot: PathBuf,
    pub(crate) id: Uuid,
    /// How long the guest stood still.
    pub(crate) pause_ms: f64,
    /// Of that: until processors and devices stood still and their state was written.
    pub(crate) state_ms: f64,
    /// Of that: writing memory.
    pub(crate) memory_ms: f64,
    /// Of that: the disks, and the folder's name.
    pub(crate) disks_ms: f64,
    /// Bytes of memory that were written; the rest is zero.
    pub(crate) memory_bytes: u64,
    pub(crate) state_bytes: u64,
    pub(crate) disks: Vec<TakenDisk>,
    /// Whether the machine ended with it.
    pub(crate) stopped: bool,
}

/// A disk at the moment of a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TakenDisk {
    pub(crate) name: String,
    /// What holds it as it was.
    pub(crate) image: PathBuf,
}

/// A machine as a snapshot needs it.
pub(crate) struct Subject<'a> {
    /// The file that describes it.
    pub(crate) described: &'a Path,
    pub(crate) vm: &'a Description,
    pub(crate) site: &'a Site,
    pub(crate) machine: &'a Machine,
    pub(crate) networks: Vec<SavedNetwork>,
    /// Whether it is to run afterwards.
    pub(crate) runs: bool,
}

/// Take a snapshot.
pub(crate) fn take(subject: &Subject<'_>, wanted: &Wanted) -> Result<Taken> {
    if !wanted.into.is_absolute() {
        let what = format!("`{}` is not an absolute path", wanted.into.display());
        return Err(Failure::usage(what));
    }
    let images = images(subject, &wanted.into)?;
    let folder = Made::begin(&wanted.into)?;
    folder.describe(subject.described)?;
    subject.machine.memory().wait().map_err(|e| cannot(&e))?;
    let id = Uuid::new_v4();
    let began = Instant::now();
    subject.machine.pause();
    if let Some(end) = subject.machine.exit() {
        let what = format!("{}: {end}", subject.described.display());
        return Err(Failure::usage(what));
    }
    let _queues = subject.machine.stop_devices();
    let mut frozen = Vec::new();
    let saved = save(subject, (&folder, id, began), (&images, &mut frozen));
    let saved = saved.and_then(|(manifest, taken)| {
        folder.finish(&manifest)?;
        Ok(taken)
    });
    let saved = saved.inspect_err(|_| thaw(subject.site, &frozen));
    let stops = wanted.stop && saved.is_ok();
    if !stops && subject.machine.exit().is_none() {
        subject.machine.resume_devices();
        if subject.runs {
            subject.machine.resume();
        }
    }
    let mut taken = saved?;
    let pause_ms = millis(began);
    taken.snapshot.clone_from(&wanted.into);
    taken.disks_ms = rounded(pause_ms - taken.state_ms - taken.memory_ms);
    taken.pause_ms = pause_ms;
    taken.stopped = stops;
    Ok(taken)
}

fn millis(since: Instant) -> f64 {
    rounded(since.elapsed().as_secs_f64() * 1e3)
}

fn rounded(millis: f64) -> f64 {
    (millis * 1e3).round() / 1e3
}

/// What each disk that is written will be kept as: beside it, with the snapshot's name in its own. Refuses
/// disks that cannot be.
fn images<'a>(subject: &Subject<'a>, into: &Path) -> Result<Vec<(&'a Disk, PathBuf)>> {
    let name = into.file_name().and_then(|name| name.to_str());
    let unspeakable = || Failure::usage(format!("{}: its name is not UTF-8", into.display()));
    let name = name.ok_or_else(unspeakable)?;
    let mut images = Vec::new();
    for disk in &subject.vm.disks {
        let found = std::fs::canonicalize(&disk.path);
        let path = found
            .map_err(|e| Failure::io(format!("{}: cannot be found", disk.path.display()), &e))?;
        if disk.read_only {
            images.push((disk, path));
            continue;
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        let image = path.with_file_name(format!("{stem}.{name}.{ending}"));
        subject.site.may_freeze(&disk.name, &image)?;
        images.push((disk, image));
    }
    Ok(images)
}

/// What is done while the machine stands still.
fn save(
    subject: &Subject<'_>,
    (folder, id, began): (&Made, Uuid, Instant),
    (images, frozen): (&[(&Disk, PathBuf)], &mut Vec<Frozen>),
) -> Result<(Manifest, Taken)> {
    let state = subject.machine.save().map_err(|e| cannot(&e))?.encode();
    folder.state(&state)?;
    let state_ms = millis(began);
    let memory = Instant::now();
    let written = subject
        .machine
        .memory()
        .save(&folder.memory(), *id.as_bytes());
    let written = written.map_err(|e| cannot(&e))?;
    let memory_ms = millis(memory);
    let mut disks = Vec::new();
    for (disk, image) in images {
        disks.push(if disk.read_only {
            read_only(disk, image)?
        } else {
            let kept = subject.site.freeze(&disk.name, image)?;
            let saved = SavedDisk {
                name: disk.name.clone(),
                path: kept.path.clone(),
                queues: disk.queues,
                size: kept.size,
                image: kept.image.clone(),
                version: Some(kept.version.to_string()),
                child: Some(kept.child.to_string()),
            };
            frozen.push(kept);
            saved
        });
    }
    let taken = Taken {
        snapshot: PathBuf::new(),
        id,
        pause_ms: 0.0,
        state_ms,
        memory_ms,
        disks_ms: 0.0,
        memory_bytes: written.memory_bytes,
        state_bytes: state.len() as u64,
        disks: disks
            .iter()
            .map(|disk| TakenDisk {
                name: disk.name.clone(),
                image: disk.image.clone(),
            })
            .collect(),
        stopped: false,
    };
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    let time = time.map_or(0, |since| since.as_secs());
    let about = (subject.described, subject.vm);
    let attached = (disks, subject.networks.clone());
    Ok((Manifest::new(about, (id, time), &state, attached), taken))
}

/// A disk that the machine does not write: it is named, and its version remembered.
pub(crate) fn read_only(disk: &Disk, path: &Path) -> Result<SavedDisk> {
    let known = image::know(path, disk.format.map(plan::format_name))?;
    let version = match &known {
        Known::Vhdx(info) => Some(info.ids.data_write.to_string()),
        Known::Raw(_) => None,
    };
    Ok(SavedDisk {
        name: disk.name.clone(),
        path: path.to_owned(),
        queues: disk.queues,
        size: known.virtual_size(),
        image: path.to_owned(),
        version,
        child: None,
    })
}

/// Undo what was done to disks; the last first.
fn thaw(site: &Site, frozen: &[Frozen]) {
    for disk in frozen.iter().rev() {
        if let Err(failure) = site.thaw(disk) {
            tracing::error!(
                disk = disk.name,
                image = %disk.image.display(),
                what = failure.what,
                "goes on as a disk built on what was frozen"
            );
        }
    }
}
