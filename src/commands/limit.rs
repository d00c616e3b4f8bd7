//! `diskferry limit`: how much may be asked of a disk that is in use.

use blockserver::throttle::{Limits, Rate};
use serde::Serialize;

use super::remote::Remote;
use crate::args::LimitDiskArgs;
use crate::control::{DiskState, Limited};
use crate::failure::Result;
use crate::plan;
use crate::report::Report;
use crate::size;

/// What holds now.
#[derive(Serialize)]
struct Holds {
    disk: String,
    #[serde(flatten)]
    limited: Limited,
}

pub(crate) fn run(args: &LimitDiskArgs, report: Report) -> Result<()> {
    let wanted = plan::limits(&args.limits)?;
    let remote = Remote::find(&args.disk, args.control.as_deref())?;
    let limited = if wanted.is_none() && !args.none {
        remote.state.limited
    } else {
        let state: DiskState = remote.client.post(&remote.resource("limits"), &wanted)?;
        state.limited
    };
    let holds = Holds {
        disk: args.disk.display().to_string(),
        limited,
    };
    report.result("limits", &holds, |holds| {
        format!("{}: {}", holds.disk, in_words(&holds.limited))
    })
}

fn in_words(limited: &Limited) -> String {
    let Limits { iops, bandwidth } = limited.limits;
    let mut said = Vec::new();
    let burst = |rate: Rate, show: &dyn Fn(u64) -> String| {
        format!(
            "{} a second, {} at once",
            show(rate.per_second()),
            show(rate.burst())
        )
    };
    said.extend(iops.map(|rate| burst(rate, &|number| format!("{number} requests"))));
    said.extend(bandwidth.map(|rate| burst(rate, &size::show)));
    if said.is_empty() {
        said.push("not limited".to_owned());
    }
    let waited = limited.throttled;
    if waited.requests > 0 {
        said.push(format!(
            "{} requests have waited, {} ms each on average",
            waited.requests,
            waited.nanoseconds / waited.requests / 1_000_000
        ));
    }
    said.join("; ")
}
