//! A journal with a volatile end, and what it makes of a disk.
//!
//! Must never keep more of a power cut than a file would: what was made durable, and any part of the rest from its
//! beginning.

use uuid::Uuid;

use super::disk::SimDisk;
use super::rng::Rng;
use crate::session::Upto;
use crate::wire::Content;

#[derive(Clone, Debug)]
enum Entry {
    Change(u64, Content),
    /// With the last number before it; whether it seals.
    Mark(u64, bool),
}

/// The journal of the disk that a host follows with.
#[derive(Clone, Debug, Default)]
pub(super) struct SimJournal {
    entries: Vec<Entry>,
    /// So many of them are durable.
    durable: usize,
    /// So many were carried over, and are no more in it.
    gone: usize,
    /// The session and the number at which the disk itself is as the source's was, if that is known.
    pub(super) at: Option<(Uuid, u64)>,
    /// The session whose changes it is for.
    session: Uuid,
}

/// What is done to it.
#[derive(Clone, Debug)]
pub(super) enum JournalOp {
    /// For that session, and where the disk is then, as far as that is known.
    Start(Uuid, Option<(Uuid, u64)>),
    Append(u64, Content),
    /// A marker, and how many entries there had ever been once it was written: those it makes durable.
    Mark(u64, bool, usize),
    /// Up to there, which is an entry and the number it ends at once it is begun; of that so much was written.
    Apply(Upto, Option<(usize, u64)>, usize),
}

impl JournalOp {
    /// Whether its first step puts something at the end, or begins anew.
    pub(super) fn appends(&self) -> bool {
        !matches!(self, Self::Apply(..))
    }

    /// In how many steps it happens.
    pub(super) fn steps(&self) -> u8 {
        match self {
            Self::Apply(..) => 4,
            Self::Mark(..) => 2,
            Self::Start(..) | Self::Append(..) => 1,
        }
    }
}

impl SimJournal {
    /// A step of an operation happens.
    pub(super) fn effect(&mut self, op: &mut JournalOp, disk: &mut SimDisk) {
        match op {
            JournalOp::Start(session, at) => {
                *self = Self {
                    at: *at,
                    session: *session,
                    ..Self::default()
                }
            }
            JournalOp::Append(offset, content) => {
                self.entries.push(Entry::Change(*offset, content.clone()));
            }
            JournalOp::Mark(seq, sealed, upto @ 0) => {
                self.entries.push(Entry::Mark(*seq, *sealed));
                *upto = self.gone + self.entries.len();
            }
            JournalOp::Mark(_, _, upto) => {
                self.durable = self.durable.max(upto.saturating_sub(self.gone));
            }
            JournalOp::Apply(upto, end, step) => {
                *step += 1;
                if *step == 1 {
                    // A marker that is still being made durable seals nothing yet.
                    *end = sealed(&self.entries[..self.durable], *upto);
                }
                self.apply(*end, *step, disk);
            }
        }
    }

    /// The session of what it holds.
    pub(super) fn holds_of(&self) -> Option<Uuid> {
        (!self.entries.is_empty()).then_some(self.session)
    }

    fn apply(&mut self, end: Option<(usize, u64)>, step: usize, disk: &mut SimDisk) {
        let Some((end, seq)) = end else {
            return;
        };
        match step {
            1 | 2 => {
                let some = if step == 1 { 0..end / 2 } else { end / 2..end };
                for entry in self.entries.get(some).into_iter().flatten() {
                    write(entry, |at, data| disk.write(at, data));
                }
            }
            3 => disk.flushed(u64::MAX),
            _ => {
                self.entries.drain(..end);
                self.durable = self.durable.saturating_sub(end);
                self.gone += end;
                self.at = Some((self.session, seq));
            }
        }
    }

    /// The process ends: who opens it again takes it up to its last marker.
    pub(super) fn cut_off(&mut self) {
        let last = self
            .entries
            .iter()
            .rposition(|entry| matches!(entry, Entry::Mark(..)));
        self.entries.truncate(last.map_or(0, |at| at + 1));
        self.durable = self.entries.len();
    }

    /// The power goes.
    pub(super) fn power_cut(&mut self, rng: &mut Rng) {
        let rest = self.entries.len().saturating_sub(self.durable);
        let kept = self.durable + rng.below(rest as u64 + 1) as usize;
        self.entries.truncate(kept);
        self.cut_off();
    }

    /// What a promotion up to there would make of a disk with this content, and the session and number it would be at.
    pub(super) fn promoted(&self, content: &[u8], upto: Upto) -> (Vec<u8>, Option<(Uuid, u64)>) {
        let mut content = content.to_vec();
        let Some((end, seq)) = sealed(&self.entries, upto) else {
            return (content, self.at);
        };
        for entry in self.entries.iter().take(end) {
            write(entry, |at, data| {
                let at = at as usize;
                content[at..at + data.len()].copy_from_slice(data);
            });
        }
        (content, Some((self.session, seq)))
    }
}

/// Where the part of these ends that is sealed, and the number it ends at.
fn sealed(entries: &[Entry], upto: Upto) -> Option<(usize, u64)> {
    let marks = entries.iter().enumerate();
    let mut seals = marks.filter_map(|(at, entry)| match (entry, upto) {
        (Entry::Mark(seq, true), Upto::Sealed) => Some((at + 1, *seq)),
        (Entry::Mark(seq, true), Upto::Cut(cut)) if *seq == cut => Some((at + 1, *seq)),
        _ => None,
    });
    seals.next_back()
}

fn write(entry: &Entry, mut to: impl FnMut(u64, &[u8])) {
    match entry {
        Entry::Change(at, Content::Data(data)) => to(*at, data),
        Entry::Change(at, Content::Zeroes(len)) => to(*at, &vec![0; *len as usize]),
        Entry::Mark(..) => {}
    }
}
