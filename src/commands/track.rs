//! `diskferry track`, `checkpoint` and `changed`: what is noted of a disk's changes.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use vdisk::chain::ParentSearch;
use vdisk::disk::random_bits;
use vdisk::format::track::CheckpointName;
use vdisk::storage::FileStorage;
use vdisk::track::{self, Changed, CheckpointStatus, Since, TrackStatus};

use super::image;
use super::remote::Remote;
use crate::args::{
    ChangedArgs, CheckpointAddArgs, CheckpointRemoveArgs, CheckpointVerb, TrackOnArgs, TrackVerb,
};
use crate::control;
use crate::failure::{Exit, Failure, Result};
use crate::plan::only_images;
use crate::report::{self, Report};
use crate::{site, size};

#[derive(Serialize)]
struct Told {
    path: String,
    tracking: bool,
    #[serde(flatten)]
    status: Option<TrackStatus>,
}

#[derive(Serialize)]
struct Moment<'a> {
    path: String,
    name: &'a str,
    /// Whether a server did it.
    online: bool,
}

#[derive(Serialize)]
struct Extent {
    offset: u64,
    length: u64,
}

pub(crate) fn run(verb: &TrackVerb, report: Report) -> Result<()> {
    match verb {
        TrackVerb::On(args) => on(args, report),
        TrackVerb::Off(args) => off(&args.disk, report),
        TrackVerb::Status(args) => report.result("tracking", &told(&args.disk)?, people),
    }
}

pub(crate) fn checkpoint(verb: &CheckpointVerb, report: Report) -> Result<()> {
    match verb {
        CheckpointVerb::Add(args) => add(args, report),
        CheckpointVerb::List(args) => list(&args.disk, report),
        CheckpointVerb::Remove(args) => remove(args, report),
    }
}

fn on(args: &TrackOnArgs, report: Report) -> Result<()> {
    let granularity = args.granularity.as_deref().map(size::parse).transpose();
    let granularity = granularity.map_err(|e| Failure::usage(e.to_string()))?;
    let too_large = || Failure::usage("a granule has at most 1M");
    let granularity = granularity.map(|bytes| u32::try_from(bytes).map_err(|_| too_large()));
    let granularity = granularity.transpose()?;
    changing(&args.disk, |storage| {
        track::enable(storage, granularity, &mut random_bits).map(drop)
    })?;
    report.result("tracking", &told(&args.disk)?, people)
}

fn off(disk: &Path, report: Report) -> Result<()> {
    changing(disk, |storage| track::disable(storage, &mut random_bits))?;
    report.result("tracking", &told(disk)?, people)
}

/// Does something to an image that nobody has open.
fn changing(disk: &Path, change: impl FnOnce(&mut FileStorage) -> vdisk::Result<()>) -> Result<()> {
    only_images(disk)?;
    site::disk::refuse_moved(disk)?;
    // A folder is told apart before it is opened for writing.
    drop(image::open_storage(disk)?);
    let mut storage = image::patiently(|| FileStorage::open(disk, true))?;
    Ok(change(&mut storage).map_err(|error| error.in_file(disk))?)
}

fn told(disk: &Path) -> Result<Told> {
    only_images(disk)?;
    let mut storage = image::open_storage(disk)?;
    let status = track::status(&mut storage).map_err(|error| error.in_file(disk))?;
    Ok(Told {
        path: disk.display().to_string(),
        tracking: status.is_some(),
        status,
    })
}

fn people(told: &Told) -> String {
    let Some(status) = &told.status else {
        return format!("{}: changes are not tracked", told.path);
    };
    let mut text = format!(
        "{}: changes are tracked in granules of {}; {}",
        told.path,
        size::show(status.granularity.into()),
        match status.state {
            "foreign" => "another program wrote to the disk: everything counts as changed",
            "interrupted" => "the last user was cut off: more may be listed than changed",
            _ => "complete",
        }
    );
    for checkpoint in &status.checkpoints {
        let _ = write!(text, "\n    {}", sentence(checkpoint));
    }
    text
}

fn sentence(checkpoint: &CheckpointStatus) -> String {
    let lost = if checkpoint.known {
        ""
    } else {
        ", what changed since is not known"
    };
    format!(
        "{}: of {} (seconds since 1970: {}){lost}",
        checkpoint.name,
        size::show(checkpoint.size),
        checkpoint.time
    )
}

fn add(args: &CheckpointAddArgs, report: Report) -> Result<()> {
    let name = CheckpointName::new(&args.name)?;
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    let time = time.map_or(0, |since| since.as_secs());
    let remote = match &args.control {
        Some(control) => Some(Remote::find(&args.disk, Some(control))?),
        None => Remote::look(&args.disk)?,
    };
    if let Some(remote) = &remote {
        let checkpoint = control::Checkpoint {
            name: args.name.clone(),
            time,
        };
        let _: control::DiskState = remote
            .client
            .post(&remote.resource("checkpoints"), &checkpoint)?;
    } else {
        only_images(&args.disk)?;
        site::disk::refuse_moved(&args.disk)?;
        let mut options = image::options(None, false);
        options.same_content = true;
        let search = ParentSearch::default();
        let mut disk = image::open_chain(&args.disk, &options, &search)?;
        let taken = disk.checkpoint(name, time);
        let closed = disk.close();
        taken.map_err(|error| error.in_file(&args.disk))?;
        closed?;
    }
    let moment = Moment {
        path: args.disk.display().to_string(),
        name: &args.name,
        online: remote.is_some(),
    };
    report.result("checkpoint", &moment, |moment| {
        format!("{}: checkpoint {}", moment.path, moment.name)
    })
}

fn list(disk: &Path, report: Report) -> Result<()> {
    let told = told(disk)?;
    let Some(status) = &told.status else {
        let what = format!("{}: changes are not tracked", told.path);
        let hint = "turn that on: diskferry track on DISK";
        return Err(Failure::new(Exit::Unsupported, what).hint(hint));
    };
    for checkpoint in &status.checkpoints {
        report.result("checkpoint", checkpoint, sentence)?;
    }
    Ok(())
}

fn remove(args: &CheckpointRemoveArgs, report: Report) -> Result<()> {
    changing(&args.disk, |storage| {
        track::remove_checkpoint(storage, &args.name, &mut random_bits)
    })?;
    let moment = Moment {
        path: args.disk.display().to_string(),
        name: &args.name,
        online: false,
    };
    report.result("checkpoint-removed", &moment, |moment| {
        format!("{}: {} is forgotten", moment.path, moment.name)
    })
}

pub(crate) fn changed(args: &ChangedArgs, report: Report) -> Result<()> {
    only_images(&args.disk)?;
    let mut storage = image::open_storage(&args.disk)?;
    let since = Since {
        checkpoint: &args.since,
        until: args.until.as_deref(),
    };
    if !report.is_json() {
        report::print("         offset         length")?;
    }
    let mut stopped = Ok(());
    let listed = track::changed(&mut storage, since, &mut |offset, length| {
        stopped = report.result("extent", &Extent { offset, length }, |extent| {
            format!("{:>15} {:>14}", extent.offset, extent.length)
        });
        match &stopped {
            Ok(()) => Ok(()),
            Err(_) => Err(vdisk::Error::invalid("nobody reads what is listed")),
        }
    });
    stopped?;
    let listed = listed.map_err(|error| error.in_file(&args.disk))?;
    report.result("summary", &listed, total)
}

fn total(listed: &Changed) -> String {
    let how = match (listed.known, listed.rough) {
        (false, _) => "; what changed is not known, so all of it is listed",
        (true, true) => "; the last user was cut off, so more may be listed than changed",
        (true, false) => "",
    };
    format!(
        "{} extents, {} of {}{how}",
        listed.extents,
        size::show(listed.bytes),
        size::show(listed.virtual_size)
    )
}
