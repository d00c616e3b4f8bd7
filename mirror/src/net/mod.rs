//! The driver of the sessions: sockets, threads, clocks and the disk for the two machines.
//!
//! Carries out what [`crate::session`] asks for and tells it what happened. Must never decide: what
//! is sent, when a link is given up, who owns the disk is all said by the machines. What it adds is
//! bounded: frames by the codec, what waits to be sent by the machines' windows, what was received
//! and not yet handled by 64 messages.
//!
//! | module | what |
//! |---|---|
//! | [`port`] | what is needed of the disk and the site, as traits |
//! | [`source`] | drives one source session, on a thread of its own, also one to a server that is not ours |
//! | [`target`] | listens, and drives one target machine for each disk, on one thread |
//! | [`arbiter`] | asks a third place who goes on with a disk |
//! | `journal` | the files of a journal |
//! | `offer` | asks a target whether it would take a machine |
//! | `promote` | makes a disk that follows a lost one this host's own |
//! | `lane` | one connection: frames in, frames out |
//! | `socket` | addresses and socket options |

pub mod arbiter;
mod journal;
mod lane;
mod offer;
pub mod port;
mod promote;
mod room;
mod socket;
pub mod source;
mod stream;
pub mod target;
pub mod tls;

pub use offer::offer;
pub use port::{
    CheckpointDone, DiskPort, Done, ReadDone, ServedDisk, Signal, StatusDone, TargetHost, Template,
};
pub use promote::{forget_group, promote, promoted_together};
pub use socket::SiteAddress;
pub use source::{
    ForeignHeard, ForeignLines, ForeignServer, Hear, SourceDriver, SourceHandle, SourceStatus,
};
pub use target::{TargetDriver, TargetHandle, TargetListener, TargetStatus, WatchedTarget};

use std::time::Instant;

use chrono::{Datelike as _, Local, Timelike as _};

use crate::clock::Micros;
use crate::timetable::WeekMinute;

/// The minute of the week by the host's clock, where it is.
fn local_minute() -> WeekMinute {
    let now = Local::now();
    let day = u8::try_from(now.weekday().num_days_from_monday()).unwrap_or_default();
    let minute = u16::try_from(now.hour() * 60 + now.minute()).unwrap_or_default();
    WeekMinute::new(day, minute)
}

/// The clock of one driver, in the machines' unit.
#[derive(Clone, Copy, Debug)]
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    /// Now. Never near zero, which machines take for "long ago".
    fn now(&self) -> Micros {
        let passed = u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX);
        Micros::from_secs(60) + Micros(passed)
    }

    /// How long it is until `at`.
    fn until(&self, at: Micros) -> std::time::Duration {
        std::time::Duration::from_micros(at.since(self.now()).0)
    }
}
