//! `diskferry rebase`: a disk is put on another parent.

use serde::Serialize;
use vdisk::merge::rebase;

use super::commit::{explain, stopped};
use super::image;
use crate::args::{ProgressMode, RebaseArgs};
use crate::failure::Result;
use crate::interrupt;
use crate::plan::Rebase;
use crate::progress::Progress;
use crate::report::Report;
use crate::size;

#[derive(Serialize)]
struct Rebased {
    path: String,
    parent: String,
    copied_bytes: u64,
}

pub(crate) fn run(args: &RebaseArgs, report: Report, mode: ProgressMode) -> Result<()> {
    let plan = Rebase::new(args)?;
    interrupt::listen();
    let size = image::know(&plan.disk, None)?.virtual_size();
    let mut progress = Progress::new(report, mode, "compare", size);
    let mut seen = 0;
    let copied = rebase(&plan.disk, &plan.search, &plan.onto, &mut |at| {
        progress.advance(at - seen, at - seen);
        seen = at;
        interrupt::check("").map_err(|_| stopped())
    });
    progress.finish();
    let copied = copied.map_err(|error| explain(error, &plan.disk))?;
    let rebased = Rebased {
        path: plan.disk.display().to_string(),
        parent: plan.onto.display().to_string(),
        copied_bytes: copied,
    };
    report.event("summary", &rebased, &sentence(&rebased))
}

fn sentence(rebased: &Rebased) -> String {
    format!(
        "{} is built on {} now; {} became its own",
        rebased.path,
        rebased.parent,
        size::show(rebased.copied_bytes)
    )
}
