//! How much may be asked of a disk, as it was typed.

use blockserver::throttle::Limits;
use mirror::timetable::Timetable;

use super::bytes;
use crate::args::LimitArgs;
use crate::failure::{Failure, Result};

/// Bytes a second for a copy, by the time of day where that was typed.
pub(crate) fn rates(text: &str) -> Result<Timetable> {
    let rates = text.parse::<Timetable>();
    rates.map_err(|why| {
        Failure::usage(why.to_string())
            .hint("rates look like 20M, none, or 20M,mon-fri@08:00-18:00=5M")
    })
}

/// The limits that were typed; what was not is not limited.
pub(crate) fn limits(args: &LimitArgs) -> Result<Limits> {
    let size = |what, text: &Option<String>| text.as_deref().map(|text| bytes(what, text));
    let bandwidth = size("the bandwidth", &args.bandwidth).transpose()?;
    let burst = size("the burst", &args.bandwidth_burst).transpose()?;
    let limits = Limits::new((args.iops, args.iops_burst), (bandwidth, burst));
    limits.map_err(|why| Failure::usage(why.to_string()))
}
