//! The control socket of a running `serve` or `receive`: HTTP with JSON bodies over a unix socket.
//!
//! The resources are described in `docs/control-api.yaml`. [`service`] is the server's side,
//! [`machine`] what a `run` has besides, [`client`] the side of the verbs that talk to it, [`place`] where a disk's socket is found.

pub(crate) mod client;
pub(crate) mod machine;
pub(crate) mod place;
mod refused;
pub(crate) mod service;

use blockserver::export::Throttled;
use blockserver::throttle::Limits;
use mirror::arbiter::Switchover;
use mirror::picture::Picture;
use mirror::timetable::Timetable;
use serde::{Deserialize, Serialize};

use crate::failure::Result;
use crate::metrics::Observed;

/// A disk as its server sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DiskState {
    /// Name of the export.
    pub(crate) name: String,
    /// The image.
    pub(crate) path: String,
    /// Bytes of the disk.
    pub(crate) virtual_size: u64,
    #[serde(flatten)]
    pub(crate) limited: Limited,
    /// The newest migration of this disk, if there was one since the server started.
    pub(crate) mirror: Option<serde_json::Value>,
}

/// How much may be asked of a disk.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Limited {
    /// What is limited.
    pub(crate) limits: Limits,
    /// What has waited for its turn.
    pub(crate) throttled: Throttled,
}

/// What to do when a mirror is in step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cutover {
    /// Switch over at once.
    #[default]
    Automatic,
    /// Stay in step until told.
    Manual,
}

/// A migration to be begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StartMirror {
    /// `tls:HOST:PORT` or `tcp:HOST:PORT` of a `receive`, or an absolute path on this host.
    pub(crate) to: String,
    /// When to switch over.
    #[serde(default)]
    pub(crate) cutover: Cutover,
    /// The longest estimated pause with which to switch over, in milliseconds.
    #[serde(default)]
    pub(crate) max_pause_ms: Option<u64>,
    /// Begin from an empty disk, whatever the target has of it.
    #[serde(default)]
    pub(crate) fresh: bool,
    /// Let the disk cross a network unencrypted.
    #[serde(default)]
    pub(crate) plain: bool,
    /// Bytes a second for the copy.
    #[serde(default)]
    pub(crate) rate: Timetable,
    // What an older program does not know is said only where it is wanted.
    /// Seconds from now in which the target is to be in step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deadline_s: Option<u64>,
    /// By how many of a hundred clients' writes may be slowed down for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_slowdown: Option<u8>,
    /// How to switch over.
    #[serde(default, skip_serializing_if = "Switchover::is_safe")]
    pub(crate) switchover: Switchover,
    /// Where the arbiter is that decides in a fast switchover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) arbiter: Option<String>,
    /// Move to an NBD server although it has no flush.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) without_flush: bool,
    /// Where this server waits for the disk to come back once it has moved: `tls:HOST:PORT` or `tcp:HOST:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) way_back: Option<String>,
    /// For how many seconds; a day if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) way_back_for_s: Option<u64>,
    /// Other disks of this server, by their names, that are mirrored together with this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) together_with: Vec<String>,
}

/// A switchover that is wanted now.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CutoverNow {
    /// How, if not as the migration was begun.
    #[serde(default)]
    pub(crate) switchover: Option<Switchover>,
}

/// How fast a move may copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MirrorRate {
    /// Bytes a second.
    pub(crate) rate: Timetable,
}

/// When a move is to be in step, from now on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MirrorDeadline {
    /// Seconds from now; none if there is to be no deadline.
    pub(crate) deadline_s: Option<u64>,
    /// By how many of a hundred clients' writes may be slowed down for it.
    #[serde(default)]
    pub(crate) max_slowdown: Option<u8>,
}

/// Another size for a disk.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resize {
    /// The new size in bytes.
    pub(crate) size: u64,
    /// Whether data beyond the new end may be thrown away.
    #[serde(default)]
    pub(crate) discard_data: bool,
}

/// A step of making a disk's file shorter.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Compact {
    /// Whether blocks shall also come to lie in the order of the disk.
    #[serde(default)]
    pub(crate) defragment: bool,
    /// About so many bytes are moved by this step.
    pub(crate) budget: u64,
}

/// A moment to be remembered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Checkpoint {
    /// What it is called.
    pub(crate) name: String,
    /// Seconds since 1970.
    pub(crate) time: u64,
}

/// A snapshot to be taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TakeSnapshot {
    /// Absolute path of the new disk.
    pub(crate) child: String,
    /// Bytes of its blocks.
    #[serde(default)]
    pub(crate) block_size: Option<u32>,
}

/// How far that is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct CompactState {
    /// Bytes moved since it began.
    pub(crate) moved_bytes: u64,
    /// Bytes of zeros dropped.
    pub(crate) dropped_bytes: u64,
    /// The length that the file needs now; when it is done, the length of the file.
    pub(crate) file_len: u64,
    /// Whether nothing is left to do.
    pub(crate) done: bool,
}

/// How finely a disk is to be drawn.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Draw {
    /// Cells, at the most; never more than [`MOST_CELLS`](mirror::picture::MOST_CELLS).
    #[serde(default = "Draw::usual")]
    pub(crate) cells: usize,
}

impl Draw {
    fn usual() -> usize {
        1024
    }
}

/// What can be asked of a running server. Calls may block for as long as a disk operation takes.
pub(crate) trait Control: Send + Sync + 'static {
    /// All disks.
    fn disks(&self) -> Vec<DiskState>;
    /// Give a disk another size; its state afterwards.
    fn resize(&self, disk: &str, resize: Resize) -> Result<DiskState>;
    /// Limit what may be asked of a disk; its state afterwards.
    fn limit(&self, disk: &str, limits: Limits) -> Result<DiskState>;
    /// Take one step of making a disk's file shorter.
    fn compact(&self, disk: &str, compact: Compact) -> Result<CompactState>;
    /// Take a checkpoint; the disk's state.
    fn checkpoint(&self, disk: &str, checkpoint: &Checkpoint) -> Result<DiskState>;
    /// Keep what a disk holds now, and go on in a new one; its state afterwards.
    fn snapshot(&self, disk: &str, snapshot: &TakeSnapshot) -> Result<DiskState>;
    /// Begin a migration; its state.
    fn start_mirror(&self, disk: &str, start: &StartMirror) -> Result<serde_json::Value>;
    /// How the newest migration stands.
    fn mirror(&self, disk: &str) -> Result<serde_json::Value>;
    /// What of the disk is where for its newest migration, in at most `cells` cells.
    fn picture(&self, disk: &str, cells: usize) -> Result<Picture>;
    /// What Prometheus is told.
    fn observe(&self) -> Observed;
    /// Switch over as soon as the mirror is in step.
    fn cutover(&self, disk: &str, now: CutoverNow) -> Result<serde_json::Value>;
    /// Hand the disk back to where it came from.
    fn rollback(&self, disk: &str) -> Result<serde_json::Value>;
    /// End the migration; the source stays the owner.
    fn cancel(&self, disk: &str) -> Result<serde_json::Value>;

    /// Find out whether the target has what this host has, in the background; what is known of that is in the answer.
    fn verify(&self, disk: &str) -> Result<serde_json::Value>;
    /// Copy at most so many bytes a second from now on.
    fn rate(&self, disk: &str, rate: MirrorRate) -> Result<serde_json::Value>;
    /// Be in step by then.
    fn deadline(&self, disk: &str, deadline: MirrorDeadline) -> Result<serde_json::Value>;
}
