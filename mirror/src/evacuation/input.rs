//! What an evacuation is described by, as a file holds it: machines, links, targets and a deadline.
//!
//! Codec: numbers with or without units become numbers in one unit. What they mean together is looked at in
//! [`mod@super::check`]. Every field is described in `docs/evacuation.md`.

use std::fmt;

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use vdisk::size;

/// A number, or a text that means one, as it was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Figure {
    /// In the field's unit.
    Number(f64),
    /// With its unit.
    Text(String),
}

impl Figure {
    /// Bytes: a number, or a size such as `500G`.
    #[must_use]
    pub fn bytes(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            #[expect(
                clippy::cast_precision_loss,
                reason = "a size is planned with, not addressed with"
            )]
            Self::Text(text) => size::parse(text).ok().map(|bytes| bytes as f64),
        }
    }

    /// Bytes a second: a number, a size such as `100M`, or bits with a decimal prefix such as `1Gbit`.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        let Self::Text(text) = self else {
            return self.bytes();
        };
        let Some(bits) = text.strip_suffix("bit") else {
            return self.bytes();
        };
        let prefixes = [("k", 1e3), ("K", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)];
        let found = prefixes
            .iter()
            .find_map(|(prefix, scale)| Some((bits.strip_suffix(prefix)?, *scale)));
        let (number, scale) = found.unwrap_or((bits, 1.0));
        let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let number: f64 = number.parse().ok().filter(|_| plain)?;
        Some(number * scale / 8.0)
    }

    /// Seconds: a number, or as in `90s`, `30m`, `4h` or `2d`.
    #[must_use]
    pub fn seconds(&self) -> Option<f64> {
        let text = match self {
            Self::Number(number) => return Some(*number),
            Self::Text(text) => text,
        };
        let units = [("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86400.0)];
        let (number, unit) = units
            .iter()
            .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)))?;
        let number: u32 = number.parse().ok()?;
        Some(f64::from(number) * unit)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => write!(f, "`{}`", text.escape_default()),
        }
    }
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => serializer.serialize_f64(*number),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for Figure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Figure;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or a text such as \"500G\", \"1Gbit\" or \"4h\"")
            }

            fn visit_u64<E>(self, number: u64) -> Result<Figure, E> {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "a size is planned with, not addressed with"
                )]
                Ok(Figure::Number(number as f64))
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Figure, E> {
                Err(E::custom(format!("{number} is less than nothing")))
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Figure, E> {
                if number.is_finite() {
                    return Ok(Figure::Number(number));
                }
                Err(E::custom("no finite number"))
            }

            fn visit_str<E>(self, text: &str) -> Result<Figure, E> {
                Ok(Figure::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Minutes since midnight, UTC; up to 24:00.
    pub minutes: u16,
}

impl Clock {
    fn parse(text: &str) -> Option<Self> {
        let (hours, minutes) = text.split_once(':')?;
        let two = |part: &str| {
            let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse::<u16>().ok()).flatten()
        };
        let (hours, minutes) = (two(hours)?, two(minutes)?);
        let total = hours * 60 + minutes;
        (minutes < 60 && total <= 24 * 60).then_some(Self { minutes: total })
    }
}

impl Serialize for Clock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = format!("{:02}:{:02}", self.minutes / 60, self.minutes % 60);
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Clock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || D::Error::custom(format!("`{}` is no time of day", text.escape_default()));
        Self::parse(&text).ok_or_else(wrong)
    }
}

/// All of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evacuation {
    /// Until when machines have to have moved: a time from now, or `2026-11-27T18:00:00Z`.
    pub deadline: Figure,
    /// Lines between sites.
    pub links: Vec<Link>,
    /// Sites that machines may go to.
    pub targets: Vec<Target>,
    /// Hosts whose disks can only be read so fast.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
    /// What is to be moved.
    pub machines: Vec<Machine>,
    /// What seeds would be brought on.
    #[serde(default)]
    pub drive: Drive,
}

/// A line from one site to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// What it is called.
    pub name: String,
    /// The site where machines are.
    pub from: String,
    /// The target that it leads to.
    pub to: String,
    /// Bytes a second.
    pub bandwidth: Figure,
    /// Round trip in milliseconds.
    #[serde(default)]
    pub rtt_ms: f64,
    /// Of packets, from 0 to below 1.
    #[serde(default)]
    pub loss: f64,
    /// Whether the source's kernel has BBR.
    #[serde(default)]
    pub bbr: bool,
    /// Of the bandwidth, what may be used, above 0 to 1.
    #[serde(default = "one")]
    pub share: f64,
    /// Times of day at which another share may be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hours: Vec<Hours>,
    /// By how much the bandwidth usually is off, as a share of it.
    #[serde(default = "tenth")]
    pub varies: f64,
    /// How often a day it is lost; for the simulation alone.
    #[serde(default)]
    pub breaks_per_day: f64,
    /// For how many seconds then.
    #[serde(default = "minute")]
    pub break_s: f64,
}

/// From one time of day to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hours {
    /// The first minute.
    pub from: Clock,
    /// The first one after it; before `from` means on the next day.
    pub to: Clock,
    /// What may be used then, 0 to 1.
    pub share: f64,
}

/// Where machines may go.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// What the site is called.
    pub site: String,
    /// Bytes that are free there.
    pub free: Figure,
    /// Bytes a second that it can write; as fast as they come if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<Figure>,
    /// Where its `diskferry receive` listens, as in `tls:HOST:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Let disks go there unencrypted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain: bool,
}

/// A host that machines run on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// What it is called.
    pub name: String,
    /// Bytes a second that can be read, hashed and packed there for moves.
    pub read: Figure,
}

/// What moves.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// What it is called.
    pub name: String,
    /// Where it is.
    pub site: String,
    /// Which host it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Where it may go; anywhere a link leads, if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// Those with a higher one come first.
    #[serde(default)]
    pub priority: i32,
    /// What it counts among those of its priority.
    #[serde(default = "one")]
    pub weight: f64,
    /// Machines that have to have switched over before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// Machines that say the same switch over together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<String>,
    /// Bytes a second that are written to its disks.
    #[serde(default = "none")]
    pub writes: Figure,
    /// Bytes that have to travel for each byte written.
    #[serde(default = "one")]
    pub amplification: f64,
    /// Bytes of disk that one byte on the wire brings.
    #[serde(default = "one")]
    pub gain: f64,
    /// Bytes a second that can be read of its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<Figure>,
    /// By how much its figures usually are off, as a share of them.
    #[serde(default = "quarter")]
    pub varies: f64,
    /// What it has.
    pub disks: Vec<Disk>,
}

/// A disk of a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The image, as it was given to `diskferry serve`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The control socket of its server, `unix:PATH`; found by the image if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
    /// Bytes that are allocated.
    pub allocated: Figure,
    /// Bytes of them that the target has, of a seed or an earlier move.
    #[serde(default = "none")]
    pub at_target: Figure,
    /// Bytes that it takes at the target; what is allocated if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<Figure>,
}

/// What a seed is brought on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Bytes of one.
    pub volume: Figure,
    /// Bytes a second that can be written to it.
    pub write: Figure,
}

impl Default for Drive {
    fn default() -> Self {
        Self {
            volume: Figure::Number(1e12),
            write: Figure::Number(150e6),
        }
    }
}

impl Evacuation {
    /// Of a file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

fn one() -> f64 {
    1.0
}

fn tenth() -> f64 {
    0.1
}

fn quarter() -> f64 {
    0.25
}

fn minute() -> f64 {
    60.0
}

fn none() -> Figure {
    Figure::Number(0.0)
}
