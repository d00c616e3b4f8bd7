//! `diskferry compact`: a disk's file is made as short as it can be, here or at the server that has it.

use serde::Serialize;
use vdisk::engine::Compacted;

use super::image;
use super::remote::Remote;
use crate::args::{CompactArgs, ProgressMode};
use crate::control;
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::plan;
use crate::progress::Progress;
use crate::report::Report;
use crate::{site, size};

/// Bytes moved between two looks at whether to go on.
const STEP: u64 = 256 << 20;

/// What was done.
#[derive(Serialize)]
struct Outcome {
    disk: String,
    previous_file_len: u64,
    file_len: u64,
    moved_bytes: u64,
    dropped_bytes: u64,
    /// Whether a server did it.
    online: bool,
}

pub(crate) fn run(args: &CompactArgs, report: Report, mode: ProgressMode) -> Result<()> {
    interrupt::listen();
    let remote = match &args.control {
        Some(control) => Some(Remote::find(&args.disk, Some(control))?),
        None => Remote::look(&args.disk)?,
    };
    let before = length(args)?;
    let mut progress = Progress::new(report, mode, "compact", before);
    let result = match &remote {
        Some(remote) => at_server(remote, args, &mut progress),
        None => in_file(args, &mut progress),
    };
    progress.finish();
    let compacted = result?;
    let outcome = Outcome {
        disk: args.disk.display().to_string(),
        previous_file_len: before,
        file_len: compacted.end,
        moved_bytes: compacted.moved,
        dropped_bytes: compacted.dropped,
        online: remote.is_some(),
    };
    report.event("summary", &outcome, &sentence(&outcome))
}

fn length(args: &CompactArgs) -> Result<u64> {
    let found = std::fs::metadata(&args.disk);
    let failed = |e| Failure::io(format!("{}: cannot be examined", args.disk.display()), &e);
    Ok(found.map_err(failed)?.len())
}

fn at_server(remote: &Remote, args: &CompactArgs, progress: &mut Progress) -> Result<Compacted> {
    let compact = control::Compact {
        defragment: args.defragment,
        budget: STEP,
    };
    to_the_end(args, progress, || {
        let state: control::CompactState =
            remote.client.post(&remote.resource("compact"), &compact)?;
        Ok(Compacted {
            moved: state.moved_bytes,
            dropped: state.dropped_bytes,
            end: state.file_len,
            done: state.done,
        })
    })
}

fn in_file(args: &CompactArgs, progress: &mut Progress) -> Result<Compacted> {
    site::disk::refuse_moved(&args.disk)?;
    let search = plan::search(&args.chain);
    let mut options = image::options(None, false);
    options.same_content = true;
    let mut disk = image::open_chain(&args.disk, &options, &search)?;
    let result = to_the_end(args, progress, || {
        let compacted = disk.compact(args.defragment, STEP);
        Ok(compacted.map_err(|e| e.in_file(&args.disk))?)
    });
    let closed = disk.close();
    let compacted = result?;
    closed?;
    Ok(compacted)
}

/// One step after the other until nothing is left to do.
fn to_the_end(
    args: &CompactArgs,
    progress: &mut Progress,
    mut step: impl FnMut() -> Result<Compacted>,
) -> Result<Compacted> {
    let mut seen = 0;
    loop {
        let how_far = step()?;
        let now = how_far.moved + how_far.dropped;
        progress.advance(now.saturating_sub(seen), now.saturating_sub(seen));
        seen = now;
        if how_far.done {
            return Ok(how_far);
        }
        let state = format!(
            "{} reads as before; the same command goes on",
            args.disk.display()
        );
        interrupt::check(&state)?;
    }
}

fn sentence(outcome: &Outcome) -> String {
    format!(
        "{}: {} now, was {} ({} moved, {} of zeros dropped)",
        outcome.disk,
        size::show(outcome.file_len),
        size::show(outcome.previous_file_len),
        size::show(outcome.moved_bytes),
        size::show(outcome.dropped_bytes)
    )
}
