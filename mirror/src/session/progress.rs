//! What a session tells people about itself.
//!
//! Must never be used to decide anything.

use serde::Serialize;

use super::verify::Verified;
use crate::contract::Estimate;

/// Where a session stands, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Reaching the other host.
    Connecting,
    /// Copying what is allocated and what changed since.
    Copying,
    /// The target follows; only new writes travel.
    Synced,
    /// Switching over: requests are held.
    Switching,
    /// All is there, and others decide.
    Bound,
    /// Handed over: waiting for the target to run.
    Released,
    /// The target runs; requests are forwarded.
    Forwarding,
    /// Over, without a move.
    Ended,
}

/// Figures of a session at one moment. Bytes, bytes a second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Where it stands.
    pub stage: Stage,
    /// Whether the other host is reached now.
    pub connected: bool,
    /// Size of the disk.
    pub size: u64,
    /// How far the disk was asked for what is allocated.
    pub scanned: u64,
    /// Allocated bytes found so far.
    pub found: u64,
    /// Bytes that the disk said are not allocated, or zero, so far.
    pub holes: u64,
    /// Bytes of chunks that are durable at the target, those counted twice that were sent twice.
    pub copied: u64,
    /// Bytes that the target was found to have already, by comparing.
    pub same: u64,
    /// Bytes of new writes that are durable at the target.
    pub streamed: u64,
    /// Bytes that were read of the disk to be copied or compared, those counted twice that were read twice.
    pub read: u64,
    /// Of those, bytes that were zero: only their number travels.
    pub zero: u64,
    /// Bytes that clients wrote since the session began.
    pub written: u64,
    /// Bytes dirty or on the way.
    pub remaining: u64,
    /// Bytes of new writes not yet durable at the target.
    pub unacknowledged: u64,
    /// Changes that went to the bitmap because the queue was full.
    pub fallen_back: u64,
    /// Bytes of new writes that were written over while they waited, and so were not sent.
    pub left_out: u64,
    /// Bytes a second that became durable at the target lately.
    pub rate: u64,
    /// Bytes a second to which the copy is held now.
    pub limit: Option<u64>,
    /// Seconds until the target is in step, most likely; `None` if that is not known, or it never will be.
    pub seconds_remaining: Option<u64>,
    /// The same, and how sure that is.
    pub estimate: Option<Estimate>,
    /// Bytes a second to which clients' writes are held for the deadline.
    pub brake: Option<u64>,
    /// What was asked for and cannot be.
    pub unmet: Option<String>,
    /// How often the link was lost.
    pub reconnects: u64,
    /// Attempts to switch over that were given up.
    pub given_up: u64,
    /// How long requests were held at the switchover, in microseconds, up to the target's word that
    /// it runs.
    pub pause: Option<u64>,
    /// Whether the target was found to have the same, if that was asked.
    pub verify: Option<Verified>,
    /// Why the last connection or the session ended.
    pub trouble: Option<String>,
    /// The last number that a change took, and the one up to which all are durable at the target: see
    /// [`crate::history`].
    #[serde(skip)]
    pub numbers: (u64, u64),
}
