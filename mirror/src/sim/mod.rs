//! Two hosts, a bad link and crashes in one thread, from one seed.
//!
//! Must never use anything but its seed: the same seed is the same run. A failing seed is printed;
//! `DISKFERRY_SEED=<seed>` runs it alone.
//!
//! # Which faults are injected
//!
//! | part | faults |
//! |---|---|
//! | disks | operations overlap and end in any order; a power cut keeps any subset of unflushed writes, sector by sector |
//! | journal | what was not made durable is lost from any entry on; a crash between any two steps of carrying it over |
//! | records, marks | a crash before, after or between effect and answer; a write that reports failure and may have happened |
//! | link | delay, jitter, lanes overtaking each other, cuts of single lanes or all, silent death, partitions |
//! | hosts | the process or the power of either side ends at any step, and comes back |
//! | arbiter | questions and answers are late or lost |
//! | users | cut over at any time, cancel, start again; have the disk go back once it has moved |
//!
//! # What is checked
//!
//! * At every step: at most one side accepts writes, and at most one would after a restart.
//! * When a disk was offered: only the side that the arbiter named goes on with it.
//! * At every read of a client: it sees every write acknowledged before.
//! * After every power cut of the owner: everything acknowledged before a flush is there.
//! * Whenever a host crashes while the target follows: what a promotion would serve is the source's disk as a crash could
//!   have left it at the last consistent marker, nothing earlier and nothing later.
//! * When the target begins to serve: its disk equals the source's, byte for byte and durably.
//! * When both are compared while they are in use: nothing is called wrong.
//! * On the way back: the image there, which is in use, is never made anew.
//! * In the end, once the faults stop: the target owns and serves, nobody else does, and every
//!   acknowledged write is there.

mod arbiter;
mod clients;
mod clocks;
mod disk;
mod drive;
mod elsewhere;
mod group;
mod host;
mod journal;
mod kept;
mod ledger;
mod link;
mod network;
mod plan;
pub(crate) use crate::chance as rng;
mod tests;
mod turn;
mod verifying;
mod world;
