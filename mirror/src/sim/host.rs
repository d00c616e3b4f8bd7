//! One host: its disk, its records, its clients' requests, and the machine that runs there.
//!
//! Keeps the rules of the tap: overlapping changes one after the other, the tap told after success
//! and before the client.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use vdisk::engine::Mark;
use vdisk::tap::{Change, WriteTap};
use vdisk::units::GuestOffset;

use super::disk::SimDisk;
use super::journal::{JournalOp, SimJournal};
use super::kept::Kept;
use crate::clock::Micros;
use crate::record::Ownership;
use crate::saved::Saved;
use crate::session::{OpId, Source, Target};
use crate::tracker::Tracker;

/// What a client wants.
#[derive(Clone, Debug)]
pub(super) enum Want {
    Write(u64, Bytes),
    Zero(u64, u64),
    Flush,
    Read(u64, u64),
}

impl Want {
    /// The range it changes.
    pub(super) fn changes(&self) -> Option<(u64, u64)> {
        match self {
            Self::Write(at, data) => Some((*at, data.len() as u64)),
            Self::Zero(at, len) => Some((*at, *len)),
            Self::Flush | Self::Read(..) => None,
        }
    }
}

/// A client's request.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) client: usize,
    pub(super) want: Want,
    /// Content of the sectors it writes.
    pub(super) tag: u64,
}

/// Who asked for an operation.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Machine(OpId),
    /// With its places in the ledger, what was acknowledged when it began, whether a tap sees it.
    Client(Request, Vec<usize>, Vec<usize>, bool),
    /// A step without a number.
    Step,
}

/// What is being done.
#[derive(Clone, Debug)]
pub(super) enum Doing {
    Read(u64, Vec<u8>),
    Write(u64, Bytes),
    Zero(u64, u64),
    Flush(u64),
    Status(u64, u64, Vec<vdisk::engine::Extent>),
    Park(Option<Mark>),
    /// Take a checkpoint.
    Checkpoint,
    /// Keep that of a session; with whether it reports success.
    Save(Option<Box<Saved>>, bool),
    /// With whether it reports success.
    Persist(Ownership, bool),
    /// What is done to the journal; with how far it got.
    Journal(JournalOp),
    /// Whether from an empty disk; whether it works.
    Open(bool, bool),
    Serve,
    /// Read of a template, with what is there.
    Template(Bytes),
}

#[derive(Clone, Debug)]
pub(super) struct Op {
    pub(super) asked: Asked,
    pub(super) doing: Doing,
    /// Effects still to come.
    pub(super) effects: u8,
}

impl Op {
    /// What it changes for a client.
    fn changes(&self) -> Option<(u64, u64)> {
        match &self.asked {
            Asked::Client(request, ..) => request.want.changes(),
            _ => None,
        }
    }
}

/// How the host treats its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Front {
    /// Refuses.
    Closed,
    Serving,
    /// Holds new requests, for that attempt; said so or not yet.
    Holding(u64, bool),
    /// Sends them to the other host.
    Forwarding,
}

/// The machine.
#[derive(Debug)]
pub(super) enum Machine {
    None,
    Source(Box<Source>),
    Target(Box<Target>),
}

#[derive(Debug)]
pub(super) struct Host {
    pub(super) up: bool,
    /// It stands still until then, if it is up.
    pub(super) stands_until: Micros,
    /// Counts restarts: what was asked before means nothing after.
    pub(super) life: u64,
    pub(super) disk: SimDisk,
    pub(super) journal: SimJournal,
    pub(super) image: bool,
    pub(super) mark: Option<Mark>,
    pub(super) record: Option<Ownership>,
    pub(super) kept: Kept,
    pub(super) front: Front,
    pub(super) machine: Machine,
    pub(super) ops: BTreeMap<u64, Op>,
    pub(super) waiting: VecDeque<Request>,
    pub(super) tap: Option<Arc<Tracker>>,
    /// Operations that must end before the tap counts as attached.
    pub(super) attaching: Option<Vec<u64>>,
    /// Reads that ask whether there is anything.
    pub(super) looking: BTreeSet<OpId>,
}

impl Host {
    pub(super) fn new(size: usize) -> Self {
        Self {
            up: true,
            stands_until: Micros(0),
            life: 0,
            disk: SimDisk::new(size),
            journal: SimJournal::default(),
            image: false,
            mark: None,
            record: None,
            kept: Kept::default(),
            front: Front::Closed,
            machine: Machine::None,
            ops: BTreeMap::new(),
            waiting: VecDeque::new(),
            tap: None,
            attaching: None,
            looking: BTreeSet::new(),
        }
    }

    /// Requests of clients under way.
    pub(super) fn serving_now(&self) -> bool {
        self.ops
            .values()
            .any(|op| matches!(op.asked, Asked::Client(..)))
    }

    /// Whether a client's write may be acknowledged here now or later without a further decision.
    pub(super) fn accepts(&self) -> bool {
        self.up
            && match self.front {
                Front::Serving => true,
                Front::Holding(_, said) => !said,
                Front::Closed | Front::Forwarding => false,
            }
    }

    /// Whether a change of that range has to wait for another.
    pub(super) fn overlaps(&self, offset: u64, len: u64) -> bool {
        self.ops.values().any(|op| match &op.asked {
            Asked::Client(request, ..) => request
                .want
                .changes()
                .is_some_and(|(a, l)| a < offset + len && offset < a + l),
            _ => false,
        })
    }

    /// An effect of an operation happens.
    pub(super) fn effect(&mut self, op: &mut Op, rng: &mut super::rng::Rng) {
        op.effects = op.effects.saturating_sub(1);
        match &mut op.doing {
            Doing::Read(offset, data) => {
                // Two halves at two moments: a write may fall between.
                let half = data.len() / 2 / 512 * 512;
                let part = if op.effects > 0 {
                    0..half
                } else {
                    half..data.len()
                };
                let at = *offset as usize;
                data[part.clone()].copy_from_slice(&self.disk.now[at + part.start..at + part.end]);
            }
            Doing::Write(offset, data) => self.disk.write(*offset, data),
            Doing::Zero(offset, len) => self.disk.write(*offset, &vec![0; *len as usize]),
            Doing::Flush(mark) => self.disk.flushed(*mark),
            Doing::Status(offset, len, extents) => {
                *extents = self.disk.status(*offset, *len, rng);
            }
            Doing::Park(mark) => {
                self.disk.flushed(u64::MAX);
                self.mark = *mark;
            }
            Doing::Persist(record, _) => self.record = Some(record.clone()),
            Doing::Save(saved, _) => self.kept.session = saved.as_deref().cloned(),
            Doing::Checkpoint => {
                self.disk.flushed(u64::MAX);
                let under_way = self.ops.values().filter_map(Op::changes);
                self.kept.checkpoint(under_way);
            }
            Doing::Open(fresh, works) => {
                if *fresh && *works {
                    self.disk.create();
                    self.image = true;
                    self.mark = Some(Mark::Incomplete);
                }
            }
            Doing::Journal(op) => self.journal.effect(op, &mut self.disk),
            Doing::Serve | Doing::Template(_) => {}
        }
    }

    /// Tell the tap of a client's change that succeeded.
    pub(super) fn tell_tap(&self, want: &Want) {
        let Some(tap) = &self.tap else { return };
        match want {
            Want::Write(at, data) => tap.changed(GuestOffset(*at), Change::Data(data.clone())),
            Want::Zero(at, len) => tap.changed(GuestOffset(*at), Change::Zeroes(*len)),
            Want::Flush | Want::Read(..) => {}
        }
    }
}
