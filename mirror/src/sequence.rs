//! The numbers of changes: one sequence for all disks of a group, and the cuts through it.
//!
//! A change takes its number after it succeeded and before its client hears of it. So a change that was begun after
//! another one was acknowledged, on whichever disk of the group, has the higher number, and *what has a number up to N*
//! is a state that a power cut of the machine could have left. A *cut* is such an N. It is asked for when every disk could
//! place a consistent marker; each then places one at exactly N, or lets the cut go by.
//!
//! A cut has a number of its own, given out under the same lock as those of changes. Who has seen a change with a higher
//! number therefore sees the cut when he asks. Must never ask for a cut while the last one is still being placed, and never
//! once a disk of the group is not mirrored any more without having been handed over.
//!
//! Disks that go on together after a crash of their source come back one by one, and begin a new *life* together: when the
//! last one is there it is known which, and nobody says anything to its target before each of them has written that down.
//! So no number of a cut comes twice, whichever of the disks loses what it kept.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::group::of_lineages;
use crate::saved::{Kin, Together};
use crate::wire::Group;

/// Whether a disk goes along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stands {
    /// It is not back yet, or not begun with.
    #[default]
    Awaited,
    Here,
    /// It has written down which life of the group this is.
    Ready,
    /// It was handed over: nothing changes here any more.
    Gone,
}

/// What is known of one disk.
#[derive(Clone, Copy, Debug, Default)]
struct Member {
    stands: Stands,
    /// It could place a consistent marker now.
    able: bool,
    /// The last cut it has placed, or let go by.
    dealt: u64,
    /// The last cut that is durable at its target.
    durable: u64,
}

impl Member {
    fn is_gone(&self) -> bool {
        self.stands == Stands::Gone
    }
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    cut: u64,
    /// The life that begins when all are here.
    life: u64,
    members: Vec<Member>,
    /// Whom the last cut went through is not who is there.
    other_members: bool,
    ended: bool,
}

/// The numbers given out so far, for one disk or for a group of disks.
#[derive(Debug, Default)]
pub struct Sequence {
    inner: Mutex<Inner>,
}

impl Sequence {
    /// For a group of so many disks, which go by their places from 0.
    #[must_use]
    pub fn of(disks: usize) -> Self {
        let inner = Inner {
            members: vec![Member::default(); disks],
            ..Inner::default()
        };
        Self {
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way through a change of the state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last number given out.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.lock().last
    }

    /// The number of a change that has just succeeded, and the last cut that was asked for before that.
    pub(crate) fn next(&self) -> (u64, u64) {
        let mut inner = self.lock();
        inner.last += 1;
        (inner.last, inner.cut)
    }

    /// Numbers go on from there, if they are not beyond it.
    pub(crate) fn count_from(&self, seq: u64) {
        let mut inner = self.lock();
        inner.last = inner.last.max(seq);
    }
}

/// One disk's place in a group.
#[derive(Clone, Debug)]
pub struct Place {
    /// The group, and the name of what its disks count by.
    pub group: Group,
    /// What they count by.
    pub sequence: Arc<Sequence>,
    /// Which of them this is.
    pub place: usize,
    /// Which disks they are, in the order of their places.
    pub together: Arc<Together>,
}

impl Place {
    /// The places of a group of these disks, in that order, which count by a new sequence of that name.
    #[must_use]
    pub fn all(disks: Vec<Kin>, name: Uuid) -> Vec<Self> {
        let together = Together {
            id: of_lineages(disks.iter().map(|kin| kin.disk).collect()),
            start: name,
            all: disks.iter().map(|kin| kin.disk).collect(),
            disks,
        };
        Self::again(together, name)
    }

    /// The places of a group that goes on, and counts by a new sequence of that name.
    #[must_use]
    pub fn again(together: Together, name: Uuid) -> Vec<Self> {
        let count = together.disks.len();
        let sequence = Arc::new(Sequence::of(count));
        let group = Group {
            id: together.id,
            sequence: name,
        };
        let together = Arc::new(together);
        let place = |place| Self {
            group,
            sequence: Arc::clone(&sequence),
            place,
            together: Arc::clone(&together),
        };
        (0..count).map(place).collect()
    }

    /// This disk is there, and was in that life before, if it goes on.
    pub(crate) fn arrive(&self, before: Option<u64>) {
        let mut inner = self.sequence.lock();
        inner.life = inner.life.max(before.map_or(0, |life| life + 1));
        if let Some(member) = inner.members.get_mut(self.place)
            && member.stands == Stands::Awaited
        {
            member.stands = Stands::Here;
        }
    }

    /// Which life this is, once nobody is awaited any more.
    pub(crate) fn life(&self) -> Option<u64> {
        let inner = self.sequence.lock();
        let mut stand = inner.members.iter().map(|member| member.stands);
        stand
            .all(|stands| stands != Stands::Awaited)
            .then_some(inner.life)
    }

    /// Whether nobody has come back: the disks were just started.
    pub(crate) fn is_first_life(&self) -> bool {
        self.life() == Some(0)
    }

    /// This disk has written down which life this is.
    pub(crate) fn make_ready(&self) {
        self.with(|member| {
            if member.stands == Stands::Here {
                member.stands = Stands::Ready;
            }
        });
    }

    /// Whether this disk has to do so: not one that was handed over, which counts on as it did.
    pub(crate) fn needs_life(&self) -> bool {
        self.with(|member| matches!(member.stands, Stands::Awaited | Stands::Here)) == Some(true)
    }

    /// Whether every disk has: they may go on.
    pub(crate) fn is_open(&self) -> bool {
        let inner = self.sequence.lock();
        let mut here = inner.members.iter().filter(|member| !member.is_gone());
        here.all(|member| member.stands == Stands::Ready)
    }

    /// Those for which the others wait: where they were when they were started.
    #[must_use]
    pub fn awaited(&self) -> Vec<String> {
        self.those(|member| member.stands == Stands::Awaited)
            .into_iter()
            .map(|kin| kin.path)
            .collect()
    }

    /// The group as it is kept: without disks that were handed over.
    pub(crate) fn kept(&self) -> Together {
        Together {
            disks: self.those(|member| !member.is_gone()),
            ..self.together.as_ref().clone()
        }
    }

    fn those(&self, are: impl Fn(&Member) -> bool) -> Vec<Kin> {
        let inner = self.sequence.lock();
        let disks = self.together.disks.iter().zip(&inner.members);
        disks
            .filter(|(_, member)| are(member))
            .map(|(kin, _)| kin.clone())
            .collect()
    }

    fn with<T>(&self, act: impl FnOnce(&mut Member) -> T) -> Option<T> {
        self.sequence.lock().members.get_mut(self.place).map(act)
    }

    /// The cut that this disk has to deal with before it sends what has a higher number.
    pub(crate) fn pending(&self) -> Option<u64> {
        let inner = self.sequence.lock();
        let dealt = inner.members.get(self.place)?.dealt;
        (inner.cut > dealt).then_some(inner.cut)
    }

    /// The cut was placed here, or lets this disk out.
    pub(crate) fn dealt_with(&self, cut: u64) {
        self.with(|member| member.dealt = member.dealt.max(cut));
    }

    /// Whatever is asked for lets this disk out: its stream begins anew, and its target has to hear of a cut again.
    pub(crate) fn begin_anew(&self) {
        let cut = self.sequence.lock().cut;
        self.with(|member| {
            *member = Member {
                dealt: cut,
                stands: member.stands,
                ..Member::default()
            }
        });
    }

    /// That cut is durable at this disk's target.
    pub(crate) fn durable(&self, cut: u64) {
        self.with(|member| member.durable = member.durable.max(cut));
    }

    /// Whether this disk could place a consistent marker now.
    pub(crate) fn set_able(&self, able: bool) {
        self.with(|member| member.able = able);
    }

    /// Ask for a cut, if every disk could place it and there is something new. Whether one was asked for.
    pub(crate) fn propose(&self) -> bool {
        let mut inner = self.sequence.lock();
        let cut = inner.cut;
        let mut here = inner.members.iter().filter(|member| !member.is_gone());
        let ready = here
            .clone()
            .all(|member| member.able && member.dealt == cut);
        let lacks = here.any(|member| member.durable < cut.max(1));
        let news = inner.last > cut || lacks || inner.other_members;
        if !ready || !news || inner.ended {
            return false;
        }
        inner.last += 1;
        inner.cut = inner.last;
        inner.other_members = false;
        true
    }

    /// How many disks a cut goes through now.
    pub(crate) fn disks(&self) -> u16 {
        let inner = self.sequence.lock();
        let here = inner.members.iter().filter(|member| !member.is_gone());
        u16::try_from(here.count()).unwrap_or(u16::MAX)
    }

    /// This disk was handed over: cuts go through the others from now on.
    pub fn leave(&self) {
        let before = self.with(|member| std::mem::replace(&mut member.stands, Stands::Gone));
        if before.is_some_and(|before| before != Stands::Gone) {
            self.sequence.lock().other_members = true;
        }
    }

    /// This disk is mirrored no more: the group has no moments any more. Nothing of one that was handed over.
    pub fn end(&self) {
        let mut inner = self.sequence.lock();
        let has_left = inner.members.get(self.place).is_some_and(Member::is_gone);
        inner.ended |= !has_left;
    }

    /// Whether this disk was handed over.
    #[must_use]
    pub fn has_left(&self) -> bool {
        let inner = self.sequence.lock();
        inner.members.get(self.place).is_some_and(Member::is_gone)
    }

    /// Whether one of the disks is mirrored no more, without having been handed over.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.sequence.lock().ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(disks: u128) -> Vec<Place> {
        let kin = |disk| Kin {
            disk: Uuid::from_u128(disk),
            name: format!("{disk}.vhdx"),
            path: format!("/disks/{disk}.vhdx"),
        };
        Place::all((0..disks).map(kin).collect(), Uuid::from_u128(2))
    }

    #[test]
    fn a_cut_is_asked_for_when_all_can_place_it_and_there_is_something_new() {
        let disks = places(2);
        disks[0].set_able(true);
        assert!(!disks[0].propose(), "the other one cannot");
        disks[1].set_able(true);
        assert!(disks[0].propose());
        assert_eq!((disks[0].pending(), disks[1].pending()), (Some(1), Some(1)));
        disks[0].dealt_with(1);
        assert!(!disks[0].propose(), "it is still being placed");
        disks[1].dealt_with(1);
        assert!(disks[0].propose(), "nobody has it durably");
        let cut = disks[0].pending().expect("a cut");
        for disk in &disks {
            disk.dealt_with(cut);
            disk.durable(cut);
        }
        assert!(!disks[0].propose(), "nothing is new");
        let (number, _) = disks[0].sequence.next();
        assert!(number > cut && disks[1].propose());
        assert!(disks[0].pending() > Some(number));
    }

    #[test]
    fn who_was_handed_over_is_waited_for_no_more_and_who_ended_otherwise_ends_the_cuts() {
        let disks = places(2);
        disks[0].set_able(true);
        disks[1].leave();
        assert_eq!(disks[0].disks(), 1);
        assert!(disks[0].propose());
        let cut = disks[0].pending().expect("a cut");
        disks[0].dealt_with(cut);
        // It came back by another way, and has no part in it.
        disks[1].end();
        assert!(!disks[0].has_ended());
        disks[0].end();
        assert!(!disks[0].propose() && disks[1].has_ended());
    }

    #[test]
    fn a_life_begins_when_all_are_back_after_every_life_that_was_and_opens_when_all_have_it() {
        let disks = places(3);
        disks[0].arrive(Some(4));
        disks[1].leave();
        assert_eq!(disks[0].awaited(), ["/disks/2.vhdx"]);
        assert_eq!((disks[0].life(), disks[0].is_open()), (None, false));
        // It comes without anything that it kept.
        disks[2].arrive(None);
        assert_eq!(disks[2].life(), Some(5));
        disks[0].make_ready();
        // A lost link takes nothing of that back.
        disks[0].begin_anew();
        assert!(!disks[0].needs_life() && !disks[0].is_open());
        disks[2].make_ready();
        assert!(disks[0].is_open());
        let kept = disks[0].kept().disks;
        assert_eq!(kept.len(), 2, "{kept:?}");
    }
}
