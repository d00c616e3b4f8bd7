//! How much may be asked of a disk, as it was typed.

use blockserver::throttle::Limits;

use super::bytes;
use crate::args::LimitArgs;
use crate::failure::{Failure, Result};

/// Bytes a second for a copy; at least what one read takes in a second or so.
pub(crate) fn rate(text: &str) -> Result<u64> {
    let rate = bytes("the rate", text)?;
    if rate < 4096 {
        let what = format!("the rate of {rate} bytes a second is less than 4 KiB");
        return Err(Failure::usage(what));
    }
    Ok(rate)
}

/// The limits that were typed; what was not is not limited.
pub(crate) fn limits(args: &LimitArgs) -> Result<Limits> {
    let size = |what, text: &Option<String>| text.as_deref().map(|text| bytes(what, text));
    let bandwidth = size("the bandwidth", &args.bandwidth).transpose()?;
    let burst = size("the burst", &args.bandwidth_burst).transpose()?;
    let limits = Limits::new((args.iops, args.iops_burst), (bandwidth, burst));
    limits.map_err(|why| Failure::usage(why.to_string()))
}
