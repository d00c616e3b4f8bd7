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
pub(super) struct Resized {
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
    let resized = match &remote {
        Some(remote) => Resized::at_server(remote, new, args.discard_data)?,
        None => in_file(&args.disk, new, args)?,
    };
    let resized = Resized {
        disk: args.disk.display().to_string(),
        ..resized
    };
    let clients = if resized.online {
        "; clients see it when they connect again"
    } else {
        ""
    };
    report.result("resized", &resized, |resized| resized.sentence(clients))
}

impl Resized {
    /// Give a disk another size where it is served; it is called as it is there.
    pub(super) fn at_server(remote: &Remote, new: NewSize, discard_data: bool) -> Result<Self> {
        let before = remote.state.virtual_size;
        let size = new.of(before)?;
        let resize = control::Resize { size, discard_data };
        let state: Result<DiskState> = remote.client.post(&remote.resource("resize"), &resize);
        let state = state.map_err(|failure| advised(failure, (before, size), discard_data))?;
        Ok(Self {
            disk: remote.state.name.clone(),
            previous_size: before,
            virtual_size: state.virtual_size,
            online: true,
        })
    }

    /// What was done, with what follows from it.
    pub(super) fn sentence(&self, more: &str) -> String {
        let (now, before) = (
            size::show(self.virtual_size),
            size::show(self.previous_size),
        );
        if self.virtual_size == self.previous_size {
            return format!("{}: has {now} already", self.disk);
        }
        format!("{}: {now}, was {before}{more}", self.disk)
    }
}

fn in_file(path: &Path, new: NewSize, args: &ResizeArgs) -> Result<Resized> {
    site::disk::refuse_moved(path)?;
    let mut disk = image::open(path, args.format, false)?;
    let before = disk.size();
    let size = new.of(before)?;
    let resized = disk.resize(size, args.discard_data);
    let now = disk.size();
    // Also a disk that keeps its size is closed in order; why it does comes first.
    let closed = disk.close();
    resized.map_err(|error| {
        advised(
            error.in_file(path).into(),
            (before, size),
            args.discard_data,
        )
    })?;
    closed?;
    Ok(Resized {
        disk: path.display().to_string(),
        previous_size: before,
        virtual_size: now,
        online: false,
    })
}

/// The same failure with what to do about a disk that cannot become smaller.
fn advised(failure: Failure, (before, size): (u64, u64), discard_data: bool) -> Failure {
    if failure.exit == Exit::Usage && size < before && !discard_data {
        return failure.hint("--discard-data throws away what lies beyond the new end");
    }
    failure
}
