//! `diskferry resize`: another size for a disk, in its file or at the server that has it.

use std::path::Path;

use serde::Serialize;

use super::image;
use super::remote::Remote;
use crate::args::ResizeArgs;
use crate::control::{self, DiskState};
use crate::failure::{Exit, Failure, Result};
use crate::plan::NewSize;
use crate::report::Report;
use crate::{site, size};

/// What was done.
#[derive(Serialize)]
struct Resized {
    disk: String,
    previous_size: u64,
    virtual_size: u64,
    /// Whether a server did it.
    online: bool,
}

pub(crate) fn run(args: &ResizeArgs, report: Report) -> Result<()> {
    let new = NewSize::new(&args.size)?;
    let remote = match &args.control {
        Some(control) => Some(Remote::find(&args.disk, Some(control))?),
        None => Remote::look(&args.disk)?,
    };
    let online = remote.is_some();
    let (previous_size, virtual_size) = match remote {
        Some(remote) => at_server(&remote, new, args)?,
        None => in_file(&args.disk, new, args)?,
    };
    let resized = Resized {
        disk: args.disk.display().to_string(),
        previous_size,
        virtual_size,
        online,
    };
    report.result("resized", &resized, sentence)
}

fn at_server(remote: &Remote, new: NewSize, args: &ResizeArgs) -> Result<(u64, u64)> {
    let before = remote.state.virtual_size;
    let size = new.of(before)?;
    let resize = control::Resize {
        size,
        discard_data: args.discard_data,
    };
    let state: Result<DiskState> = remote.client.post(&remote.resource("resize"), &resize);
    let state = state.map_err(|failure| advised(failure, (before, size), args))?;
    Ok((before, state.virtual_size))
}

fn in_file(path: &Path, new: NewSize, args: &ResizeArgs) -> Result<(u64, u64)> {
    site::disk::refuse_moved(path)?;
    let mut disk = image::open(path, args.format, false)?;
    let before = disk.size();
    let size = new.of(before)?;
    let resized = disk.resize(size, args.discard_data);
    let now = disk.size();
    // Also a disk that keeps its size is closed in order; why it does comes first.
    let closed = disk.close();
    resized.map_err(|error| advised(error.in_file(path).into(), (before, size), args))?;
    closed?;
    Ok((before, now))
}

/// The same failure with what to do about a disk that cannot become smaller.
fn advised(failure: Failure, (before, size): (u64, u64), args: &ResizeArgs) -> Failure {
    if failure.exit == Exit::Usage && size < before && !args.discard_data {
        return failure.hint("--discard-data throws away what lies beyond the new end");
    }
    failure
}

fn sentence(resized: &Resized) -> String {
    let (now, before) = (resized.virtual_size, resized.previous_size);
    if now == before {
        return format!("{}: has {} already", resized.disk, size::show(now));
    }
    let clients = if resized.online {
        "; clients see it when they connect again"
    } else {
        ""
    };
    format!(
        "{}: {}, was {}{clients}",
        resized.disk,
        size::show(now),
        size::show(before)
    )
}
