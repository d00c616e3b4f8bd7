//! Hosts that stand still, with all their disks: time goes on meanwhile, and what comes waits.

use super::super::network::TO_TARGET;
use super::super::world::{SOURCE, TARGET};
use super::{Event, World};
use crate::clock::Micros;

impl World {
    /// A host stands still for a while.
    pub(super) fn stand_still(&mut self) {
        let side = self.rng.below(2) as usize;
        let longest = [30_000, 300_000, 1_500_000][self.rng.below(3) as usize];
        let span = Micros(self.rng.between(1_000, longest));
        // Never sooner than before: what waits until then would come after what was sent later.
        self.still_until[side] = self.still_until[side].max(self.now + span);
        self.stats.stood += 1;
    }

    /// Until when the event has to wait for a host that stands still.
    pub(super) fn waits(&self, event: &Event) -> Option<Micros> {
        let side = match event {
            Event::Deliver(_, _, way, _) if *way == TO_TARGET => TARGET,
            Event::OfGroup(..) | Event::GroupDone(..) => TARGET,
            Event::Client(_)
            | Event::ConnUp(..)
            | Event::Deliver(..)
            | Event::Attached(..)
            | Event::Held(..)
            | Event::Back(..)
            | Event::Operator => SOURCE,
            Event::Done(_, side, ..) | Event::ConnClosed(_, side, ..) | Event::Wake(_, side, _) => {
                *side
            }
            Event::Effect(..)
            | Event::GroupEffect(_)
            | Event::Fault
            | Event::Heal(_)
            | Event::Restart(_)
            | Event::Crash(..) => return None,
        };
        let until = self.still_until[side];
        (until > self.now).then_some(until)
    }
}
