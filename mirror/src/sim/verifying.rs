//! A user who wants to know whether both sides have the same, at any time.
//!
//! Must never ask for it in a way that the program could not.

use super::host::Machine;
use super::world::{SOURCE, World};
use crate::session::{Command, SourceEvent, Stage};

impl World {
    /// Ask for it now and then, and look at what it says.
    pub(super) fn verify(&mut self) {
        let Machine::Source(source) = &self.hosts[SOURCE].machine else {
            return;
        };
        let progress = source.progress();
        let figures = progress.verify.unwrap_or_default();
        self.stats.verified += figures.compared.saturating_sub(self.stats.compared);
        self.stats.compared = figures.compared;
        if figures.wrong > 0 {
            self.failure(&format!("what nobody wrote is different: {figures:?}"));
        }
        let chance = if progress.stage == Stage::Synced {
            10
        } else {
            1
        };
        if self.rng.percent(chance) {
            self.stats.compared = 0;
            self.source_event(SourceEvent::Command(Command::Verify));
        }
    }
}
