//! What the source does because time has passed.

use super::{Micros, Phase, Source, SourceAction};

/// In so much time what was written often counts half.
const FADE_EVERY: Micros = Micros::from_secs(4);

impl Source {
    /// Silence, held requests, stuck lanes.
    pub(super) fn watch_the_clock(&mut self, now: Micros) {
        if self.link.is_dead(now) {
            self.end.trouble = Some("the target has fallen silent".into());
            self.lose_link(now);
        }
        for conn in self.link.stuck_lanes(now) {
            self.actions.push_back(SourceAction::Close(conn));
            self.link.lane_down(conn, now);
            self.lane_lost(conn);
        }
        if now.since(self.pace.faded_at) >= FADE_EVERY {
            self.pace.faded_at = now;
            self.tracker.fade();
        }
        let waited = self
            .local
            .held_since
            .is_some_and(|t| now.since(t) > self.config.handover.give_up_after);
        #[cfg(test)]
        if waited && self.broken(crate::session::Sabotage::GiveUpTooLate) && self.switch.decided() {
            self.local.held_since = None;
            self.actions.push_back(SourceAction::Release);
        }
        if waited && !self.switch.committed() && self.switch.phase() != Phase::Reclaiming {
            self.end.trouble = Some("the switchover took too long and was given up".into());
            self.give_up(now);
        }
    }
}
