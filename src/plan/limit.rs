//! How much may be asked of a disk, as it was typed.

use blockserver::throttle::Limits;

use super::bytes;
use crate::args::LimitArgs;
use crate::failure::{Failure, Result};

/// The limits that were typed; what was not is not limited.
pub(crate) fn limits(args: &LimitArgs) -> Result<Limits> {
    let size = |what, text: &Option<String>| text.as_deref().map(|text| bytes(what, text));
    let bandwidth = size("the bandwidth", &args.bandwidth).transpose()?;
    let burst = size("the burst", &args.bandwidth_burst).transpose()?;
    let limits = Limits::new((args.iops, args.iops_burst), (bandwidth, burst));
    limits.map_err(|why| Failure::usage(why.to_string()))
}
