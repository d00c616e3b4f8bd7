//! Moving a virtual disk to another host while it is in use.
//!
//! | floor | modules | may not |
//! |---|---|---|
//! | driver | [`net`], [`files`] | hold policy |
//! | machine | [`session`], [`switchover`], [`arbiter`], [`joint`], [`group`], [`sequence`], [`tracker`], [`pacing`], [`timetable`], [`evacuation`] | do I/O, read a clock, take randomness, block |
//! | codec | [`wire`], [`record`], [`journal`], [`saved`], [`way_back`] | anything but bytes to checked types and back |
//!
//! The protocol, its phases, the order of the switchover and what a crash in each of them leaves
//! are written down in `docs/mirror-protocol.md`.
#![forbid(unsafe_code)]

pub mod arbiter;
mod chance;
pub mod clock;
pub mod contract;
pub mod dirty;
pub mod error;
pub mod evacuation;
pub mod files;
pub mod group;
mod heat;
pub mod history;
pub mod joint;
pub mod journal;
pub mod net;
pub mod pacing;
pub mod picture;
pub mod record;
pub mod saved;
#[cfg(test)]
mod seeds;
pub mod sequence;
pub mod session;
#[cfg(test)]
mod sim;
pub mod switchover;
pub mod timetable;
pub mod tracker;
pub mod way_back;
pub mod wire;

pub use clock::Micros;
pub use error::{Error, ErrorKind, Result};

/// The unit in which changes are remembered once they are no longer kept one by one: 4 KiB.
///
/// Coarser units multiply random writes (a 64 KiB unit makes 16 times the traffic of 4 KiB writes).
pub const GRANULE: u64 = 4096;
