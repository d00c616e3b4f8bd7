//! `diskferry snapshot`: what a disk holds now is kept, and a new disk built on it goes on.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::commit::protect;
use super::image::{self, Known};
use super::remote::Remote;
use crate::args::{FormatName, SnapshotArgs};
use crate::control;
use crate::failure::{Failure, Result};
use crate::plan::Snapshot;
use crate::report::Report;
use crate::target::Target;

#[derive(Serialize)]
struct Taken {
    base: String,
    path: String,
    #[serde(flatten)]
    known: Option<Known>,
    size_on_disk: u64,
    /// Whether a server did it.
    online: bool,
}

pub(crate) fn run(args: &SnapshotArgs, report: Report) -> Result<()> {
    let plan = Snapshot::new(args)?;
    let remote = match &args.control {
        Some(control) => Some(Remote::find(&args.base, Some(control))?),
        None => Remote::look(&args.base)?,
    };
    match &remote {
        Some(remote) => at_server(remote, &plan)?,
        None => in_file(&plan)?,
    }
    let taken = Taken {
        base: plan.base.display().to_string(),
        path: plan.child.display().to_string(),
        // The server has it.
        known: match &remote {
            Some(_) => None,
            None => Some(image::know(&plan.child, Some(FormatName::Vhdx))?),
        },
        size_on_disk: image::size_on_disk(&plan.child)?,
        online: remote.is_some(),
    };
    report.event("snapshot", &taken, &sentence(&taken))
}

/// At the server that has it, which goes on with the child.
fn at_server(remote: &Remote, plan: &Snapshot) -> Result<()> {
    let child = std::path::absolute(&plan.child);
    let failed = |e| Failure::io(format!("{}: is no path", plan.child.display()), &e);
    let child = child.map_err(failed)?;
    let unspeakable = || Failure::usage(format!("{}: is not UTF-8", child.display()));
    let wanted = control::TakeSnapshot {
        child: child.to_str().ok_or_else(unspeakable)?.to_owned(),
        block_size: plan.block_size,
    };
    let _: control::DiskState = remote.client.post(&remote.resource("snapshot"), &wanted)?;
    Ok(())
}

/// The order matters: the base is closed cleanly, so that it needs no replay ever again; protected,
/// so that nothing that respects permissions changes it; and only then is there a child.
fn in_file(plan: &Snapshot) -> Result<()> {
    let target = Target::new(&plan.child, false)?;
    let protected = is_protected(&plan.base)?;
    let options = image::options(Some(FormatName::Vhdx), protected);
    let base = image::open_chain(&plan.base, &options, &plan.search)?;
    base.close()?;
    protect(&plan.base)?;
    image::make_child(target.partial(), &plan.base, plan.block_size)?;
    target.finish()
}

/// Whether it is a parent already.
fn is_protected(path: &Path) -> Result<bool> {
    let failed = |e| Failure::io(format!("{}: cannot be found", path.display()), &e);
    Ok(fs::metadata(path).map_err(failed)?.permissions().readonly())
}

fn sentence(taken: &Taken) -> String {
    let use_it = if taken.online {
        "is served"
    } else {
        "is to be used"
    };
    format!(
        "{} is read-only from now on; {} {use_it} in its place",
        taken.base, taken.path
    )
}
