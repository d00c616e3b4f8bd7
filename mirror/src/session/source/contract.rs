//! What the session was asked to keep to, by the figures of this source.

use super::{Micros, Source, SourceAction};
use crate::contract::{Seen, Wish};

impl Source {
    /// Slow clients down as far as it takes, or no more.
    pub(super) fn pump_contract(&mut self, now: Micros) {
        if !self.pace.agreed {
            self.pace.agreed = true;
            let terms = self.config.terms;
            self.pace.contract.change(Wish {
                deadline: terms.within.map(|within| now + within),
                max_slowdown: terms.max_slowdown,
            });
        }
        let over = self.end.outcome.is_some() || self.switch.decided();
        let changed = if over {
            self.pace.contract.release()
        } else {
            self.pace.contract.look(now, self.seen())
        };
        if changed {
            let brake = self.pace.contract.brake();
            self.actions.push_back(SourceAction::Brake(brake));
        }
    }

    fn seen(&self) -> Seen {
        let figures = self.tracker.figures();
        Seen {
            left: figures.dirty + self.copy.flying() + figures.held + self.not_asked_about(),
            done: self.pace.covered.total(),
            written: figures.written,
            added: figures.added,
            connected: self.link.is_up(),
        }
    }

    /// What is probably allocated where nothing was asked yet: as much of it as elsewhere.
    fn not_asked_about(&self) -> u64 {
        let (found, scanned) = (self.copy.found(), self.copy.scanned());
        let rest = self.config.description.size.saturating_sub(scanned);
        let guess = u128::from(found) * u128::from(rest) / u128::from(scanned.max(1));
        u64::try_from(guess).unwrap_or(u64::MAX).min(rest)
    }
}
