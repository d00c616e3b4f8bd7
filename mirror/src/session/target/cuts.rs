//! A disk of a group: which cuts it has, and up to which of them it may be carried over.
//!
//! A disk is *joined* when its record says so: then nothing is in it that is later than the cut which the group's record
//! names, and it is carried over only that far. It joins when it is told that the group's record names a cut that its
//! journal has and nothing later was carried over, and leaves before it is handed over, which carries over what is later.
//! Must never be joined with anything in the disk that is later than the group's record.

use std::collections::VecDeque;

use uuid::Uuid;

use super::{Group, Message, Micros, State, Target, TargetAction, Upto};
use crate::group::MOST_CUTS;
use crate::record::Membership;
use crate::wire::{Begin, Start};

#[derive(Debug, Default)]
pub(super) struct Cuts {
    /// The group, as the source at hand says.
    group: Option<Group>,
    /// Cuts that the journal has and that the group was told of, the oldest first.
    reached: VecDeque<u64>,
    /// The cut at which the disk begins to follow, and through how many disks it goes.
    turning: Option<(u64, u16)>,
    /// The source has asked for the disk to be handed over: no cut counts until it greets anew.
    leaving: bool,
}

impl Cuts {
    pub(super) fn group(&self) -> Option<Group> {
        self.group
    }

    /// What comes from now on is of that group.
    pub(super) fn begin(&mut self, group: Option<Group>) {
        self.group = group;
        self.turning = None;
        self.leaving = false;
    }

    /// A marker came that goes through so many disks: the source places none while it hands the disk over.
    pub(super) fn arrived(&mut self, disks: u16) {
        self.leaving &= disks == 0;
    }

    /// The disk is at that marker, and will follow from there.
    pub(super) fn turn(&mut self, seq: u64, disks: u16) {
        self.turning = (disks > 0).then_some((seq, disks));
    }

    pub(super) fn turned(&mut self) -> Option<(u64, u16)> {
        self.turning.take()
    }

    pub(super) fn membership(&self, joined: bool) -> Option<Membership> {
        let group = self.group?;
        Some(Membership {
            id: group.id,
            joined,
        })
    }
}

impl Target {
    fn membership(&self) -> Option<Membership> {
        match self.switch.state() {
            Some(State::Following { group, .. }) => *group,
            _ => None,
        }
    }

    /// Whether the disk is at the moment that its group's record names.
    pub(super) fn is_joined(&self) -> bool {
        self.membership().is_some_and(|group| group.joined)
    }

    /// What a disk that goes on to follow has to do with the group then.
    pub(super) fn membership_of(&self, begin: Begin) -> Option<Membership> {
        let id = begin.group?.id;
        let joined = self.is_joined();
        Some(Membership { id, joined })
    }

    /// How far what is in the journal may be carried over, of a disk that is opened.
    pub(super) fn safe_to_carry(&self) -> Upto {
        let Some(State::Following { session, .. }) = self.switch.state() else {
            return Upto::Sealed;
        };
        #[cfg(test)]
        if self.broken(crate::session::Sabotage::CarryPastTheCut) {
            return Upto::Sealed;
        }
        match self.config.cut {
            _ if !self.is_joined() => Upto::Sealed,
            Some((of, cut)) if of == *session => Upto::Cut(cut),
            // The disk is at the moment of an earlier session.
            _ => Upto::Nothing,
        }
    }

    /// A cut is durable in the journal, or the disk is at it: the group has to know.
    pub(super) fn reached_cut(&mut self, cut: u64, disks: u16) {
        let (Some(group), Some(State::Following { session, .. })) =
            (self.markers.cuts.group, self.switch.state())
        else {
            return;
        };
        if self.markers.cuts.leaving {
            return;
        }
        let session = *session;
        #[cfg(test)]
        let joined = self.is_joined();
        let reached = &mut self.markers.cuts.reached;
        if reached.len() >= MOST_CUTS {
            reached.pop_front();
        }
        reached.push_back(cut);
        #[cfg(test)]
        if self.broken(crate::session::Sabotage::CarryUnrecorded) && joined {
            self.markers.release = Some(Upto::Sealed);
        }
        self.actions.push_back(TargetAction::Reached {
            group,
            session,
            cut,
            disks,
        });
    }

    /// The group's record names that cut.
    pub(super) fn on_cut(&mut self, session: Uuid, cut: u64) {
        let follows = matches!(self.switch.state(), Some(State::Following { session: of, .. }) if *of == session);
        let reached = &mut self.markers.cuts.reached;
        if !follows || !reached.contains(&cut) {
            // It has left, or its journal is another one.
            return;
        }
        reached.retain(|other| *other > cut);
        self.config.cut = Some((session, cut));
        self.markers.release = Some(Upto::Cut(cut));
        #[cfg(test)]
        if self.broken(crate::session::Sabotage::CarryPastTheCut) {
            self.markers.release = Some(Upto::Sealed);
        }
    }

    /// Whether what may be carried over may be so now. A disk of a group has to have joined it first.
    pub(super) fn may_carry_over(&mut self) -> bool {
        if self.markers.release.is_none() {
            return false;
        }
        if self.membership().is_none_or(|group| group.joined) {
            return true;
        }
        self.write_membership(true);
        false
    }

    fn write_membership(&mut self, joined: bool) {
        let record = self
            .switch
            .record()
            .filter(|_| !self.switch.busy())
            .cloned();
        let Some(mut record) = record else { return };
        if let State::Following {
            group: Some(group), ..
        } = &mut record.state
        {
            group.joined = joined;
            self.persist(record.disk, record.state);
        }
    }

    /// The source asked whether that attempt may begin. What is carried over from now on is this disk's own.
    pub(super) fn prepare(&mut self, attempt: u64) {
        self.leave_cuts();
        self.markers.cuts.leaving = true;
        self.markers.prepare(attempt);
    }

    /// What the group was told of this disk's journal does not hold any more.
    pub(super) fn leave_cuts(&mut self) {
        self.markers.cuts.reached.clear();
        self.markers.cuts.turning = None;
        self.markers
            .release
            .take_if(|upto| matches!(upto, Upto::Cut(_)));
        if let Some(group) = self.membership() {
            self.actions.push_back(TargetAction::Leave(group.id));
        }
    }

    /// Whether the disk, which is being handed over, is still joined.
    pub(super) fn must_leave(&self) -> bool {
        #[cfg(test)]
        if self.broken(crate::session::Sabotage::StayJoined) {
            return false;
        }
        self.is_joined()
    }

    /// Say that an attempt may begin, once this disk has left its group.
    pub(super) fn pump_leaving(&mut self, now: Micros) {
        if !self.markers.is_preparing() {
            return;
        }
        if self.must_leave() {
            self.write_membership(false);
        } else if !self.switch.busy()
            && let Some(attempt) = self.markers.take_ready()
        {
            self.send(now, Message::Ready { attempt });
        }
    }

    /// Whether the group has to settle what it says of this disk before the journal is dropped: a record that is being
    /// written may name a cut that only the journal has.
    pub(super) fn has_to_settle(&self, begin: Begin) -> bool {
        self.is_joined() && begin.start != Start::GoOn
    }

    /// Whether the source goes on with a disk as one of another group, which none that keeps the rules does.
    pub(super) fn is_of_another_group(&self, begin: Begin) -> bool {
        let follows = matches!(self.switch.state(), Some(State::Following { .. }));
        let id = begin.group.map(|group| group.id);
        follows && begin.start == Start::GoOn && self.membership().map(|group| group.id) != id
    }
}

#[cfg(test)]
mod tests;
