//! What each host takes for the time, and hosts that stand still.
//!
//! A host's clock began at any time and goes too fast or too slow. A host that stands still, as a process that was stopped
//! or a machine that is being moved, finds later that time went on and that much has come. Its disk goes on meanwhile. Must
//! never show a machine the world's own time.

use super::network::TO_TARGET;
use super::rng::Rng;
use super::world::{Event, SOURCE, TARGET, World};
use crate::clock::Micros;

/// A host's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostClock {
    begins: u64,
    /// How far it goes in a thousand.
    per_mille: u64,
}

impl HostClock {
    pub(super) fn by_chance(rng: &mut Rng) -> Self {
        let per_mille = match rng.below(4) {
            0 => 1000,
            1 | 2 => rng.between(990, 1010),
            _ => rng.between(800, 1250),
        };
        let begins = rng.below(10_000_000);
        Self { begins, per_mille }
    }

    /// What it shows at that time of the world.
    pub(super) fn shows(self, now: Micros) -> Micros {
        Micros(self.begins + now.0 * self.per_mille / 1000)
    }

    /// When it first shows that or more.
    pub(super) fn when(self, shown: Micros) -> Micros {
        let since = shown.0.saturating_sub(self.begins);
        Micros((since * 1000).div_ceil(self.per_mille))
    }
}

impl World {
    /// What the clock of that host shows.
    pub(super) fn clock(&self, host: usize) -> Micros {
        self.plan.clocks[host].shows(self.now)
    }

    /// A host stands still for a while.
    pub(super) fn stand_still(&mut self) {
        let host = self.rng.below(2) as usize;
        let longest = [30_000, 300_000, 1_500_000][self.rng.below(3) as usize];
        let span = Micros(self.rng.between(1_000, longest));
        // Never sooner than before: what waits until then would come after what was sent later.
        let until = &mut self.hosts[host].stands_until;
        *until = (*until).max(self.now + span);
        self.stats.stood += 1;
    }

    /// Until when the event has to wait for a host that stands still.
    pub(super) fn waits(&self, event: &Event) -> Option<Micros> {
        let still = |host: usize| {
            let until = self.hosts[host].stands_until;
            (until > self.now).then_some(until)
        };
        match event {
            Event::Client(_) | Event::Submit(_) => self.route().and_then(still),
            Event::Deliver(_, way, _) if *way == TO_TARGET => still(TARGET),
            Event::Attached(_)
            | Event::Held(..)
            | Event::Cancel(_)
            | Event::ConnUp(..)
            | Event::Operator
            | Event::Deliver(..) => still(SOURCE),
            Event::Done(host, ..)
            | Event::ConnClosed(host, ..)
            | Event::Wake(host, _)
            | Event::ArbiterAnswers(host, ..) => still(*host),
            Event::Effect(..)
            | Event::ArbiterHears(_)
            | Event::Fault
            | Event::Heal
            | Event::Crash(..)
            | Event::Restart(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_read_no_earlier_than_it_shows_what_was_waited_for() {
        let mut rng = Rng::new(1);
        for _ in 0..1000 {
            let clock = HostClock::by_chance(&mut rng);
            let shown = clock.shows(Micros(rng.below(1 << 30)));
            let when = clock.when(shown);
            assert_eq!(clock.shows(when), shown, "{clock:?}");
            assert!(clock.shows(Micros(when.0.saturating_sub(1))) < shown || when.0 == 0);
        }
    }
}
