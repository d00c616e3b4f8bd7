//! `diskferry snapshot`: what a disk holds now is kept, and a new disk built on it goes on.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::commit::protect;
use super::image::{self, Known};
use crate::args::{FormatName, SnapshotArgs};
use crate::failure::{Failure, Result};
use crate::plan::Snapshot;
use crate::report::Report;
use crate::target::Target;

#[derive(Serialize)]
struct Taken {
    base: String,
    path: String,
    #[serde(flatten)]
    known: Known,
    size_on_disk: u64,
}

/// The order matters: the base is closed cleanly, so that it needs no replay ever again; protected,
/// so that nothing that respects permissions changes it; and only then is there a child.
pub(crate) fn run(args: &SnapshotArgs, report: Report) -> Result<()> {
    let plan = Snapshot::new(args)?;
    let target = Target::new(&plan.child, false)?;
    let protected = is_protected(&plan.base)?;
    let options = image::options(Some(FormatName::Vhdx), protected);
    let base = image::open_chain(&plan.base, &options, &plan.search)?;
    base.close()?;
    protect(&plan.base)?;
    image::make_child(target.partial(), &plan.base, plan.block_size)?;
    target.finish()?;
    let taken = Taken {
        base: plan.base.display().to_string(),
        path: plan.child.display().to_string(),
        known: image::know(&plan.child, Some(FormatName::Vhdx))?,
        size_on_disk: image::size_on_disk(&plan.child)?,
    };
    report.event("snapshot", &taken, &sentence(&taken))
}

/// Whether it is a parent already.
fn is_protected(path: &Path) -> Result<bool> {
    let failed = |e| Failure::io(format!("{}: cannot be found", path.display()), &e);
    Ok(fs::metadata(path).map_err(failed)?.permissions().readonly())
}

fn sentence(taken: &Taken) -> String {
    format!(
        "{} is read-only from now on; use {} in its place",
        taken.base, taken.path
    )
}
