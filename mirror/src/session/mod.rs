//! The migration session: two machines, the source's and the target's.
//!
//! Neither does I/O nor reads a clock. The contract of both: call `handle(now, event)` for whatever
//! happened, then `poll_action()` until it is empty and carry the actions out in order before the
//! next event, and call `handle(now, Tick)` no later than `poll_timeout()`. Specified in
//! `docs/mirror-protocol.md`.
//!
//! # Phases of the source, what holds in each, what a crash of either side in it leaves
//!
//! ```text
//!  Connecting ──► Copying ◄──► Synced ──► Switching ──► Released ──► Forwarding
//! ```
//!
//! | phase | invariant | source crashes | target crashes |
//! |---|---|---|---|
//! | Connecting | source owns and serves; target has nothing that counts | source serves again; the session is over | nothing to lose |
//! | Copying | source owns and serves; every granule is clean at the target, or dirty, or in a chunk or record that is not yet durable there | source serves again and goes on with what it kept; target stays refused | source sends again what was not durable |
//! | Synced | as Copying, and nothing is dirty | the same | the same |
//! | Switching | requests are held; the source may still go back | source serves again: no grant was sent | source waits, then gives up and serves |
//! | Offered | as Switching, but the source goes back only if the arbiter lets it | it finds its offer and asks the arbiter | the source asks the arbiter; the target does when it is back, if it has everything |
//! | Deciding | the deciding record may be durable | its record says which of the two | source waits for the record, then grants |
//! | Released | the source never serves again | it finds its record and repeats the grant | target finds `Prepared` and waits, or `Owner` and serves |
//! | Forwarding | the target owns and serves | it finds its record, asks where the target is, forwards | target finds `Owner` and serves |
//!
//! # Why lanes may overtake each other
//!
//! Each byte at the target has a version: the number of the record that wrote it, or the base of
//! the chunk that did. A record with number `s` writes only bytes whose version is below `s`; a chunk
//! with base `b` writes only bytes whose version is at most `b`. A chunk sees every change up to
//! its base, so either order ends with the later content. Versions need to be remembered only while
//! something older can still arrive; see the module `target`.
//!
//! # When a chunk is done with
//!
//! A chunk is forgotten by the source when it is durable at the target *and* every record up to its
//! base is. The second half matters: after a crash of the target those records are sent again, and
//! would write older content over the chunk's.

mod copy;
pub mod foreign;
mod link;
mod progress;
mod scan;
mod source;
mod stream;
mod target;
mod verify;

pub use progress::{Progress, Stage};
pub use source::{
    Command, Handover, Keep, Left, Replica, Source, SourceAction, SourceConfig, SourceEvent, Terms,
};
pub use target::{Admission, Target, TargetAction, TargetConfig, TargetEvent, Upto};
pub use verify::{Verified, VerifyStage};

/// A connection, named by who opened it (source) or accepted it (target's driver). Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// An operation on the disk, named by the machine that asked for it. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// A rule that a test breaks on purpose, to see that the simulation notices.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// The source grants before its deciding record is durable.
    GrantBeforeRecord,
    /// The source forgets chunks without waiting for the records up to their base.
    ForgetChunksEarly,
    /// The source does not send again what was on the way when the link broke.
    ForgetChunksOnTheWay,
    /// The source takes the number of a chunk after its read instead of before.
    LateBase,
    /// The source gives up although its deciding record may be durable.
    GiveUpTooLate,
    /// The target writes chunks over records that came later.
    ChunksOverRecords,
    /// The target writes records over chunks that came later.
    RecordsOverChunks,
    /// The target says durable before its flush is done.
    DurableBeforeFlush,
    /// The target serves as soon as it is prepared.
    ServeUngranted,
    /// The source tells the target that it may claim the disk before its offer is durable.
    OfferBeforeRecord,
    /// The source takes back what it offered without asking the arbiter.
    ReclaimUnasked,
    /// The target takes what it was offered without asking the arbiter.
    ClaimUnasked,
    /// The source calls a marker consistent although a chunk may hold later changes.
    ConsistentTooEarly,
    /// The source calls a marker consistent although changes before it were left out for later ones.
    ConsistentInAGap,
    /// The source sends chunks while a consistent marker is on the way.
    ChunksOvertakeMarkers,
    /// The target lets what comes after a consistent marker into its journal before it is sealed.
    SealTooLate,
    /// The target writes into a disk that follows, past the journal.
    PastTheJournal,
    /// The target goes on with what an abandoned session left instead of emptying the disk.
    KeepOldDisk,
    /// What is kept of a session leaves out what is on the way.
    KeepOnlyTheDirty,
    /// A session that comes back takes no account of what changed since its checkpoint.
    ForgetWhatChanged,
    /// The disks of a group that come back count their changes from the start again.
    CountAnew,
    /// They go on without having it written down in which life of the group they do.
    LifeUnkept,
    /// What changes while one of them waits for the others is not seen.
    WatchTooLate,
    /// The source lets a cut stand although chunks are missing, or hold what is later.
    CutTooEarly,
    /// The target carries over what a disk of a group has sealed before the group's record says so.
    CarryUnrecorded,
    /// The target carries over all that is sealed of a disk of a group, not what the group's record says.
    CarryPastTheCut,
    /// The target calls a cut a moment of the group when one disk has it.
    CutOfOne,
    /// The target goes on with a disk that is being handed over without having left the group.
    StayJoined,
    /// The source does not tell a target that it compares with what is zero.
    LeaveZeroesOut,
    /// The target takes a block of a template without looking at its hash.
    TakeUnlike,
    /// The target writes what a template has over records that came later.
    FoundOverRecords,
    /// The new owner takes what was left behind for what it has, although its record says another, and it was changed unseen.
    TakeForTheSame,
}
