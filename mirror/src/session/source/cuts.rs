//! Cuts through the disks of a group, as the source of one of them places them.
//!
//! Must never send anything with a number beyond a cut before the cut was placed or let go by, and never place one that is
//! not consistent. What a cut is: [`crate::sequence`].

use super::{ConnId, Error, ErrorKind, Message, Micros, Phase, Source};
use crate::sequence::Place;

impl Source {
    /// The cut that this disk has to deal with.
    pub(super) fn pending_cut(&self) -> Option<u64> {
        self.config.replica.group.as_ref().and_then(Place::pending)
    }

    /// What was on the way is sent again: no cut is in it.
    pub(super) fn cuts_begin_anew(&self) {
        if let Some(group) = &self.config.replica.group {
            group.begin_anew();
        }
    }

    pub(super) fn cut_is_durable(&self) {
        if let (Some(group), Some(cut)) = (&self.config.replica.group, self.stream.durable_cut()) {
            group.durable(cut);
        }
    }

    /// Whether a consistent marker could be placed. Not while the disk is being handed over: it goes its own way then.
    fn can_cut(&self) -> bool {
        self.config.replica.follow
            && self.switch.phase() == Phase::Owner
            && self.end.outcome.is_none()
            && self.nothing_left()
    }

    /// Say whether a cut could be placed, ask for one if it is time, and place the one that is asked for; whether one was
    /// dealt with.
    pub(super) fn pump_cut(&mut self, now: Micros, conn: ConnId, floor: u64) -> bool {
        let Some(group) = self.config.replica.group.clone() else {
            return false;
        };
        let able = self.can_cut();
        group.set_able(able);
        if able && self.stream.cut_due(now, self.config.limits.marker_every) {
            group.propose();
        }
        let Some(cut) = group.pending() else {
            return false;
        };
        // Asked once the number is known: what is changed from here on has a higher one.
        let able = self.can_cut();
        let earlier = self
            .stream
            .front(&self.tracker)
            .is_some_and(|seq| seq <= cut);
        if able && earlier {
            // What is before it waits for room.
            return false;
        }
        let settled = self.copy.saw() <= cut;
        #[cfg(test)]
        let (able, settled) = if self.broken(crate::session::Sabotage::CutTooEarly) {
            (!earlier, true)
        } else {
            (able, settled)
        };
        let placed = (able && settled).then_some(cut);
        let disks = group.disks();
        group.dealt_with(cut);
        if placed.is_some() {
            let mut marker = self.stream.marker(now, &self.tracker, (cut, floor));
            marker.consistent = true;
            marker.disks = disks;
            self.stream.sent_consistent();
            self.send(now, conn, Message::Marker(marker));
        }
        self.stream.dealt_with_cut(now, placed);
        true
    }

    /// The group goes on without a disk that was handed over, and not at all without one that is mirrored no more.
    pub(super) fn pump_group(&mut self, now: Micros) {
        let Some(group) = &self.config.replica.group else {
            return;
        };
        let up = self.link.is_up() && self.local.attached;
        if !up || self.switch.phase() != Phase::Owner {
            group.set_able(false);
        }
        match &self.end.outcome {
            _ if self.switch.decided() => group.leave(),
            Some(Ok(())) => group.leave(),
            Some(Err(_)) => group.end(),
            None if group.has_ended() => {
                let what = "another disk of its group is mirrored no more, so this one has no moments in common with it";
                self.fail(now, Error::new(ErrorKind::GroupEnded, what));
            }
            None => {}
        }
    }
}
