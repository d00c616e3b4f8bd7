//! The words in which the source and its driver talk.

use bytes::Bytes;
use uuid::Uuid;
use vdisk::engine::{Extent, Mark};

use crate::arbiter::{ArbiterName, Ballot, Side, Switchover};
use crate::clock::Micros;
use crate::pacing::Limits;
use crate::record::Ownership;
use crate::saved::Saved;
use crate::sequence::Place;
use crate::session::{ConnId, OpId};
use crate::switchover::Part;
use crate::timetable::{Timetable, WeekMinute};
use crate::wire::{DiskDescription, Message};

/// What a session is to do.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// The session, unique for ever: a fresh one for every start.
    pub session: Uuid,
    /// The target's address for migration sessions; it goes into the deciding record.
    pub to: String,
    /// What goes there instead, when the target will not be found at that address again: its path,
    /// if it is on this host.
    pub recorded: Option<String>,
    /// The disk.
    pub description: DiskDescription,
    /// Who decides.
    pub part: Part,
    /// How hard to work.
    pub limits: Limits,
    /// Bytes a second for the bulk copy, of chunks before they are packed and of hashes.
    pub rates: Timetable,
    /// When and how to switch over.
    pub handover: Handover,
    /// What it has to keep to.
    pub terms: Terms,
    /// What the target makes of what it has.
    pub replica: Replica,
    /// Keep what is needed to go on with the session after a crash of this process or this host.
    pub keep: Keep,
    /// The rule that a test breaks.
    #[cfg(test)]
    pub(crate) sabotage: Option<crate::session::Sabotage>,
}

impl SourceConfig {
    /// A session with the usual limits.
    #[must_use]
    pub fn new(session: Uuid, to: String, description: DiskDescription) -> Self {
        Self {
            session,
            to,
            recorded: None,
            description,
            part: Part::Alone,
            limits: Limits::default(),
            rates: Timetable::default(),
            handover: Handover::default(),
            terms: Terms::default(),
            replica: Replica {
                follow: false,
                compare: true,
                way_back: None,
                left: None,
                group: None,
            },
            keep: Keep::Nothing,
            #[cfg(test)]
            sabotage: None,
        }
    }
}

/// What a session has to keep to: [`crate::contract`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The target is to be in step so long after the session begins.
    pub within: Option<Micros>,
    /// The same moment in seconds of UNIX, for a session that goes on after a crash.
    pub until: Option<u64>,
    /// By how many of a hundred clients' writes may be slowed down for it; `None` for as far as it takes.
    pub max_slowdown: Option<u8>,
}

/// When and how to switch over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Without being asked, once the pause would be short enough.
    pub automatic: bool,
    /// The longest estimated pause with which to begin a switchover.
    pub max_pause: Micros,
    /// How long requests are held before an attempt is given up.
    pub give_up_after: Micros,
    /// How, if nothing else is asked for.
    pub how: Switchover,
    /// Who decides in a fast switchover.
    pub arbiter: Option<ArbiterName>,
}

impl Default for Handover {
    fn default() -> Self {
        Self {
            automatic: false,
            max_pause: Micros::from_millis(300),
            give_up_after: Micros::from_secs(10),
            how: Switchover::Safe,
            arbiter: None,
        }
    }
}

/// What the target's disk is to be beside a copy in the making, and this host's once it has handed it over.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Have the target follow from one consistent moment to the next: it writes each byte twice, and is of use if this
    /// host is lost.
    pub follow: bool,
    /// Go on from what the target has of the disk, by comparing all of it, rather than from an empty disk.
    pub compare: bool,
    /// Where and for how many seconds this host will wait for the disk once the target owns it.
    pub way_back: Option<(String, u64)>,
    /// The target left the disk to this host so, and all that is changed since is shown to the tracker: whoever says this
    /// lets nobody change the disk before the tap is on. The rest need not be compared, if the target says the same.
    pub left: Option<Left>,
    /// The disks that follow together with this one, and its place among them.
    pub group: Option<Place>,
}

/// How a disk came to the host that owns it, as its record has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// The session that moved it.
    pub session: Uuid,
    /// The epoch that it was granted.
    pub epoch: u64,
}

/// Whether a session goes on after a crash of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It does not.
    Nothing,
    /// It does. If the target is found to have nothing of it, it goes on under this name.
    Session {
        /// As unique as the session.
        spare: Uuid,
    },
}

/// What the user wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Switch over as soon as the estimated pause is at most `max_pause`, or the configured one.
    Cutover {
        /// The longest estimated pause.
        max_pause: Option<Micros>,
        /// How, if not as the session was told.
        how: Option<Switchover>,
    },
    /// End the session; the disk stays here.
    Cancel,
    /// Find out whether the target has what this host has, while both are in use.
    Verify,
    /// All that moves together is bound: decide, or be handed over with it.
    Decide,
    /// What moves together stays here: take back all that was done, and end the session.
    Undo,
    /// Copy at most so many bytes a second, beginning at that minute.
    SetRates(Timetable, WeekMinute),
    /// Keep to that from now on, and to nothing that was asked for before.
    SetTerms(Terms),
}

/// What happened.
#[derive(Debug)]
pub enum SourceEvent {
    /// Time passed, or the tracker called its waker.
    Tick,
    /// Another minute has begun by the host's clock.
    Minute(WeekMinute),
    /// A connection asked for is there.
    Connected(ConnId),
    /// A connection ended or could not be made.
    Closed(ConnId, String),
    /// A message came.
    Message(ConnId, Message),
    /// What came is no message.
    Malformed(ConnId, crate::wire::DecodeError),
    /// The tap is on and every change that began before it has completed.
    Attached(std::io::Result<()>),
    /// A read ended.
    Read(OpId, std::io::Result<Bytes>),
    /// A question about allocation ended.
    Status(OpId, std::io::Result<Vec<Extent>>),
    /// No request is in flight, new ones wait. For the [`SourceAction::Hold`] of that attempt.
    Held(u64),
    /// The image is parked as asked, or could not be.
    Parked(std::io::Result<()>),
    /// The record is durable; on failure it may or may not be.
    Persisted(std::io::Result<()>),
    /// Whether the arbiter is there, for that attempt.
    Reached(u64, std::io::Result<()>),
    /// What the arbiter says of that, or that it cannot be asked.
    Decided(Ballot, std::io::Result<Side>),
    /// From a moment on, which has this name, it is known what changes on the disk; `None` if that cannot be known.
    Checkpointed(Option<String>),
    /// The session is kept as asked, or is not.
    Saved(std::io::Result<()>),
    /// The user wants something.
    Command(Command),
}

/// What to do.
#[derive(Debug)]
pub enum SourceAction {
    /// Open a connection for lane 0 (ordered) or a bulk lane.
    Connect(ConnId, u16),
    /// Close it; nothing more is heard of it.
    Close(ConnId),
    /// Send a message.
    Send(ConnId, Message),
    /// Put the tap on the disk.
    AttachTap,
    /// Take it off.
    DetachTap,
    /// Read from the disk.
    Read(OpId, u64, u32),
    /// Ask what is allocated: offset, length.
    Status(OpId, u64, u64),
    /// Hold new requests and let those in flight finish.
    Hold(u64),
    /// Let held requests go on here.
    Release,
    /// Flush, close the image cleanly and leave this mark in it.
    Park(Option<Mark>),
    /// Make this the disk's durable ownership record.
    Persist(Ownership),
    /// Find out whether that arbiter is there, and is the one so named.
    Reach {
        /// For which attempt.
        attempt: u64,
        /// The arbiter.
        arbiter: ArbiterName,
    },
    /// Ask that arbiter for the disk, as the source.
    Reclaim {
        /// The arbiter.
        arbiter: ArbiterName,
        /// About what.
        ballot: Ballot,
    },
    /// Let clients write at most so many bytes a second; `None` for as many as they like.
    Brake(Option<u64>),
    /// Make durable what was acknowledged, and note what changes from then on, also over a crash.
    Checkpoint,
    /// Keep this of the session, durably, in place of what was kept; `None` for nothing.
    Save(Option<Box<Saved>>),
    /// Requests will probably go to that address: connect.
    Expect(String),
    /// The disk is handed over: send held requests to that address, where they wait for the target to take over.
    ForwardAhead(String),
    /// Send held and all later requests to the new owner's address.
    Forward(String),
}
