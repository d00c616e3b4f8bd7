//! `diskferry flatten`: a disk becomes one of its own, in its file.

use serde::Serialize;
use vdisk::merge::flatten;

use super::commit::{explain, protect, stopped, unprotect};
use super::image;
use crate::args::{FlattenArgs, ProgressMode};
use crate::failure::Result;
use crate::plan::Flatten;
use crate::progress::Progress;
use crate::report::Report;
use crate::{interrupt, size};

#[derive(Serialize)]
struct Flat {
    path: String,
    copied_bytes: u64,
    /// Whether it was built on another disk until now.
    had_parent: bool,
}

pub(crate) fn run(args: &FlattenArgs, report: Report, mode: ProgressMode) -> Result<()> {
    let plan = Flatten::new(args)?;
    interrupt::listen();
    let size = image::know(&plan.disk, None)?.virtual_size();
    // A disk that others are built on is protected; what it holds stays what it is.
    let protected = unprotect(&plan.disk)?;
    let mut progress = Progress::new(report, mode, "flatten", size);
    let mut seen = 0;
    let flattened = image::patiently(|| {
        flatten(&plan.disk, &plan.search, &mut |at| {
            let further = at.saturating_sub(seen);
            progress.advance(further, further);
            seen += further;
            interrupt::check("").map_err(|_| stopped())
        })
    });
    progress.finish();
    if protected {
        protect(&plan.disk)?;
    }
    let flattened = flattened.map_err(|failure| match interrupt::check("") {
        Ok(()) => failure,
        Err(_) => explain(stopped(), &plan.disk),
    })?;
    let flat = Flat {
        path: plan.disk.display().to_string(),
        copied_bytes: flattened.copied,
        had_parent: flattened.had_parent,
    };
    report.event("summary", &flat, &sentence(&flat))
}

fn sentence(flat: &Flat) -> String {
    if !flat.had_parent {
        return format!("{} is a disk of its own already", flat.path);
    }
    let copied = size::show(flat.copied_bytes);
    format!(
        "{} is a disk of its own now; {copied} became its own",
        flat.path
    )
}
