//! `diskferry compare`: whether two disks hold the same.

use serde::Serialize;

use crate::args::{CompareArgs, ProgressMode};
use crate::copy::compare::{Found, disks};
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::plan::Compare;
use crate::progress::Progress;
use crate::report::Report;
use crate::size;
use crate::source;

#[derive(Serialize)]
struct Compared {
    disk: String,
    other: String,
    equal: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_difference: Option<u64>,
    virtual_size: u64,
    other_virtual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    seconds: f64,
}

pub(crate) fn run(args: &CompareArgs, report: Report, mode: ProgressMode) -> Result<()> {
    let plan = Compare::new(args)?;
    interrupt::listen();
    let one = source::open(&plan.disk, plan.jobs + 1)?;
    let other = source::open(&plan.other, plan.jobs + 1)?;
    let mut progress = Progress::new(report, mode, "compare", one.size.max(other.size));
    let found = disks(one.handles, other.handles, &mut progress);
    progress.finish();
    let found = found?;
    for identity in [one.identity, other.identity].iter().flatten() {
        identity.still()?;
    }
    let (first_difference, digest) = match found {
        Found::Equal(digest) => (None, Some(digest)),
        Found::DifferAt(at) => (Some(at), None),
    };
    let compared = Compared {
        disk: plan.disk.name.to_string(),
        other: plan.other.name.to_string(),
        equal: first_difference.is_none(),
        first_difference,
        virtual_size: one.size,
        other_virtual_size: other.size,
        digest,
        seconds: progress.elapsed().as_secs_f64(),
    };
    if let Some(at) = first_difference {
        if report.is_json() {
            Report::line("summary", &compared)?;
        }
        return Err(different(&compared.disk, &compared.other, at));
    }
    report.event("summary", &compared, &sentence(&compared))
}

/// Two disks that should hold the same do not.
pub(super) fn different(one: &str, other: &str, at: u64) -> Failure {
    let what = format!("{one} and {other} differ, first at byte {at} ({at:#x})");
    Failure::new(Exit::Mismatch, what)
}

fn sentence(compared: &Compared) -> String {
    let longer = compared.virtual_size.abs_diff(compared.other_virtual_size);
    let rest = match longer {
        0 => String::new(),
        bytes => format!(", and {} more of zeros in one of them", size::exact(bytes)),
    };
    format!(
        "{} and {} hold the same {}{rest}; BLAKE3 {}",
        compared.disk,
        compared.other,
        size::show(compared.virtual_size.min(compared.other_virtual_size)),
        compared.digest.as_deref().unwrap_or_default()
    )
}
