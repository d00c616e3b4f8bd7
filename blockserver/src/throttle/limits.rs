//! Limits as somebody writes them down: in `vm.toml`, over the control socket, on a command line.
//!
//! Codec: numbers and sizes, which may be anybody's, into rates that are sound. A limit of nothing, which would
//! stop the disk, is refused, and so is a burst without a limit.

use std::fmt;

use serde::{Deserialize, Serialize};
use vdisk::size;

use super::bucket::Rate;

/// What may be asked of an export. What is not said is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Limits {
    /// Requests.
    pub iops: Option<Rate>,
    /// Bytes that are read and written.
    pub bandwidth: Option<Rate>,
}

/// Why limits cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLimits(String);

impl fmt::Display for BadLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadLimits {}

/// As it is written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iops: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iops_burst: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bandwidth: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bandwidth_burst: Option<Bytes>,
}

/// A number of bytes, or a size as people write it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a number of bytes, or a size such as \"100M\", is expected"
)]
enum Bytes {
    Number(u64),
    Size(String),
}

impl Limits {
    /// So many requests and bytes a second, and how many of each at once after a pause: by default what comes in a
    /// tenth of a second.
    pub fn new(
        iops: (Option<u64>, Option<u64>),
        bandwidth: (Option<u64>, Option<u64>),
    ) -> Result<Self, BadLimits> {
        Ok(Self {
            iops: rate("iops", iops)?,
            bandwidth: rate("bandwidth", bandwidth)?,
        })
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

fn rate(
    name: &str,
    (per_second, burst): (Option<u64>, Option<u64>),
) -> Result<Option<Rate>, BadLimits> {
    let bad = |what: String| Err(BadLimits(what));
    let Some(per_second) = per_second else {
        return match burst {
            Some(_) => bad(format!("{name}_burst: is nothing without {name}")),
            None => Ok(None),
        };
    };
    let burst = burst.unwrap_or_else(|| Rate::usual_burst(per_second));
    let most = Rate::MOST;
    match Rate::new(per_second, burst) {
        Some(rate) => Ok(Some(rate)),
        None if per_second == 0 => bad(format!(
            "{name}: 0 would stop the disk; what is left out is not limited"
        )),
        None if burst == 0 => bad(format!("{name}_burst: 0 would stop the disk")),
        None => bad(format!("{name} and {name}_burst: 1 to {most}")),
    }
}

fn bytes(name: &str, written: Option<Bytes>) -> Result<Option<u64>, BadLimits> {
    match written {
        None => Ok(None),
        Some(Bytes::Number(number)) => Ok(Some(number)),
        Some(Bytes::Size(text)) => match size::parse(&text) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(why) => Err(BadLimits(format!("{name} `{text}`: {why}"))),
        },
    }
}

impl TryFrom<Written> for Limits {
    type Error = BadLimits;

    fn try_from(written: Written) -> Result<Self, BadLimits> {
        let bandwidth = bytes("bandwidth", written.bandwidth)?;
        let bandwidth_burst = bytes("bandwidth_burst", written.bandwidth_burst)?;
        Self::new(
            (written.iops, written.iops_burst),
            (bandwidth, bandwidth_burst),
        )
    }
}

impl From<Limits> for Written {
    fn from(limits: Limits) -> Self {
        let (iops, bandwidth) = (limits.iops, limits.bandwidth);
        Self {
            iops: iops.map(Rate::per_second),
            iops_burst: iops.map(Rate::burst),
            bandwidth: bandwidth.map(|rate| Bytes::Number(rate.per_second())),
            bandwidth_burst: bandwidth.map(|rate| Bytes::Number(rate.burst())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Limits, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in [
            "{}",
            r#"{"iops":2000,"iops_burst":200}"#,
            r#"{"bandwidth":1048576,"bandwidth_burst":1}"#,
            r#"{"iops":1,"iops_burst":9,"bandwidth":7,"bandwidth_burst":8}"#,
        ] {
            let limits = read(text).expect(text);
            assert_eq!(serde_json::to_string(&limits).expect("plain numbers"), text);
            assert_eq!(limits.is_none(), text == "{}");
        }
    }

    #[test]
    fn a_burst_is_what_comes_in_a_tenth_of_a_second_if_nothing_is_said() {
        let limits = read(r#"{"iops":5,"bandwidth":"100M"}"#).expect("sound");
        assert_eq!(limits.iops, Rate::new(5, 1));
        assert_eq!(limits.bandwidth, Rate::new(100 << 20, 10 << 20));
    }

    #[test]
    fn what_would_stop_a_disk_or_means_nothing_is_refused_with_its_name() {
        for (text, named) in [
            (r#"{"iops":0}"#, "iops: 0"),
            (r#"{"bandwidth":"0"}"#, "bandwidth: 0"),
            (r#"{"iops":1,"iops_burst":0}"#, "iops_burst: 0"),
            (r#"{"iops_burst":5}"#, "without iops"),
            (r#"{"bandwidth":"much"}"#, "much"),
            (r#"{"bandwidth":1.5}"#, "100M"),
            (r#"{"bandwidth":-1}"#, "100M"),
            (r#"{"bandwidth":"16E"}"#, "more than 64 bits"),
            (r#"{"iops":18446744073709551615}"#, "1 to"),
            (r#"{"iops":-1}"#, "invalid value"),
            (r#"{"bps":1}"#, "bps"),
        ] {
            let why = read(text).expect_err(text);
            assert!(why.contains(named), "{named} in: {why}");
        }
    }
}
