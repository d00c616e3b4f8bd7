//! What is kept of a session so that it goes on after a crash of the source.
//!
//! A moment has a name from which on the disk's change tracking knows what changes (a checkpoint). What changed before
//! it is durable here, so a crash takes none of it back. Of that the target has all but *the rest*: what is dirty, what
//! is on the way, what was not asked about. The rest only shrinks; a file that says more of it than is true is right as
//! well. So after a crash this disk and the target's differ at most in the rest that was kept last, and in what changed
//! since the checkpoint, whatever either has lost since.
//!
//! Disks of a group go on together, so each of them keeps who the others are, and before its session says anything in which
//! life of the group it does.
//!
//! Must never keep less of the rest than there is, and never keep anything of a session that is over.

use uuid::Uuid;

use super::{Keep, Micros, Phase, Source, SourceAction, SourceConfig};
use crate::saved::{MOST_PARTS, Saved, Wishes, put_together};
use crate::sequence::Place;

/// Where the keeping stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    /// Nothing is kept yet, or nothing is to be.
    #[default]
    None,
    /// It is being written in which life of its group the session is, before anything else.
    Beginning,
    /// A checkpoint is being taken.
    Checkpointing,
    /// What is kept is up to date, or will be.
    Kept,
    /// It is being written.
    Saving,
    /// What was kept is being taken away: the session is over.
    Removing,
    /// Nothing is kept any more.
    Over,
}

#[derive(Debug, Default)]
pub(super) struct Keeping {
    step: Step,
    checkpoint: Option<String>,
    life: u64,
    /// When the rest was kept last.
    saved_at: Option<Micros>,
    /// It has come back, and this is what it is called if the target has nothing of it.
    spare: Option<Uuid>,
}

impl Keeping {
    /// That of a session that has just come back.
    pub(super) fn back(saved: &Saved, keep: &Keep) -> Self {
        Self {
            step: Step::Kept,
            checkpoint: saved.checkpoint.clone(),
            life: saved.life,
            saved_at: None,
            spare: match keep {
                Keep::Session { spare } => Some(*spare),
                Keep::Nothing => None,
            },
        }
    }

    /// Whether it has come back and goes on from what it was.
    pub(super) fn is_back(&self) -> bool {
        self.spare.is_some()
    }

    /// It does not go on from what it was; its name then.
    pub(super) fn forget_the_past(&mut self) -> Option<Uuid> {
        self.spare.take()
    }

    /// Whether nothing is kept of a session that is over, as far as this can be seen to.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.step, Step::None | Step::Over)
    }
}

impl SourceConfig {
    fn keeps(&self) -> bool {
        self.keep != Keep::Nothing
    }
}

impl Source {
    /// Whether every change has to be seen before the target is greeted.
    pub(super) fn is_watched_from_the_start(&self) -> bool {
        #[cfg(test)]
        if self.broken(crate::session::Sabotage::WatchTooLate) && !self.may_go_on() {
            return false;
        }
        self.keeping.is_back() || self.config.replica.left.is_some()
    }

    /// Whether the target may be greeted: all disks of the group are there, and each has its life written down.
    pub(super) fn may_go_on(&self) -> bool {
        let group = self.config.replica.group.as_ref();
        group.is_none_or(Place::is_open)
    }

    /// The disks of its group for which it waits before it says anything: where they were when they were started.
    #[must_use]
    pub fn awaits(&self) -> Vec<String> {
        let waits = !self.may_go_on() && self.end.outcome.is_none();
        let group = self.config.replica.group.as_ref().filter(|_| waits);
        group.map(Place::awaited).unwrap_or_default()
    }

    /// Whatever is counted goes on from there.
    pub(super) fn begin_life(&mut self, life: u64) {
        self.keeping.life = life;
        self.link.count_from(life << 32);
        self.switch.attempts_are_over(life << 32);
        #[cfg(test)]
        if self.broken(crate::session::Sabotage::CountAnew) {
            return;
        }
        self.tracker.count_from(life << 40);
    }

    /// A disk of a group has it written down in which life of it this is, once that is known.
    fn pump_life(&mut self, now: Micros) {
        let group = self.config.replica.group.as_ref();
        let Some(group) = group.filter(|group| group.needs_life()).cloned() else {
            return;
        };
        let waits = matches!(self.keeping.step, Step::None | Step::Kept);
        let Some(life) = group.life().filter(|_| waits && self.is_due(now)) else {
            return;
        };
        self.begin_life(life);
        if !self.config.keeps() {
            group.make_ready();
            return;
        }
        #[cfg(test)]
        if self.broken(crate::session::Sabotage::LifeUnkept) {
            self.keeping.life = life.saturating_sub(1);
        }
        self.keeping.step = Step::Beginning;
        self.keep(now);
    }

    /// Keep what is to be kept, if it is time.
    pub(super) fn pump_keeping(&mut self, now: Micros) {
        if self.end.outcome.is_some() {
            self.keep_nothing();
            return;
        }
        self.pump_life(now);
        if !self.config.keeps() || !self.local.attached {
            return;
        }
        match self.keeping.step {
            Step::None if self.end.begun => {
                self.keeping.step = Step::Checkpointing;
                self.actions.push_back(SourceAction::Checkpoint);
            }
            Step::Kept if self.is_due(now) && self.may_keep() => {
                self.keeping.step = Step::Saving;
                self.keep(now);
            }
            _ => {}
        }
    }

    fn keep(&mut self, now: Micros) {
        self.keeping.saved_at = Some(now);
        let saved = Some(Box::new(self.saved()));
        self.actions.push_back(SourceAction::Save(saved));
    }

    fn is_due(&self, now: Micros) -> bool {
        let every = self.config.limits.save_every;
        let saved_at = self.keeping.saved_at;
        saved_at.is_none_or(|saved_at| now.since(saved_at) >= every)
    }

    /// Not in the middle of a switchover, of which other records speak.
    fn may_keep(&self) -> bool {
        self.end.begun && matches!(self.switch.phase(), Phase::Owner | Phase::Preparing)
    }

    fn keep_nothing(&mut self) {
        match self.keeping.step {
            Step::None if !self.config.keeps() => self.keeping.step = Step::Over,
            Step::None | Step::Kept => {
                self.keeping.step = Step::Removing;
                self.actions.push_back(SourceAction::Save(None));
            }
            // When that has ended.
            Step::Beginning | Step::Checkpointing | Step::Saving | Step::Removing | Step::Over => {}
        }
    }

    pub(super) fn on_checkpointed(&mut self, name: Option<String>) {
        if self.keeping.step == Step::Checkpointing {
            self.keeping.checkpoint = name;
            self.keeping.step = Step::Kept;
        }
    }

    pub(super) fn on_saved(&mut self, result: std::io::Result<()>) {
        let written = result.is_ok();
        if let Err(e) = result {
            self.end.trouble = Some(format!(
                "what is kept of the session cannot be written: {e}"
            ));
        }
        let begins = self.keeping.step == Step::Beginning;
        if let Some(group) = self.config.replica.group.as_ref()
            && begins
            // What was never kept does not come back, so none of its numbers is given out again.
            && (written || group.is_first_life())
        {
            group.make_ready();
            // The rest is kept anew when it is smaller.
            self.keeping.saved_at = None;
        }
        self.keeping.step = match self.keeping.step {
            Step::Beginning if self.keeping.is_back() => Step::Kept,
            Step::Beginning => Step::None,
            Step::Saving => Step::Kept,
            Step::Removing => Step::Over,
            step => step,
        };
    }

    fn saved(&self) -> Saved {
        let description = &self.config.description;
        Saved {
            session: self.config.session,
            disk: self.switch.disk(),
            epoch: self.switch.next_epoch().saturating_sub(1),
            life: self.keeping.life,
            size: description.size,
            wishes: Wishes {
                to: self.config.to.clone(),
                name: description.name.clone(),
                automatic: self.config.handover.automatic,
                follow: self.config.replica.follow,
                max_pause: self.config.handover.max_pause.0,
                rate: self.config.rates.clone(),
                switchover: self.config.handover.how,
                arbiter: self.config.handover.arbiter.clone(),
                deadline: self.config.terms.until,
                max_slowdown: self.config.terms.max_slowdown,
            },
            checkpoint: self.keeping.checkpoint.clone(),
            rest: self.rest(),
            group: self.config.replica.group.as_ref().map(Place::kept),
        }
    }

    /// All that the target may not have durably.
    fn rest(&self) -> Vec<(u64, u64)> {
        let mut parts = self.tracker.outline(MOST_PARTS);
        #[cfg(test)]
        let all = !self.broken(crate::session::Sabotage::KeepOnlyTheDirty);
        #[cfg(not(test))]
        let all = true;
        if all {
            parts.extend(self.copy.rest());
            parts.extend(self.stream.rest());
        }
        let size = self.config.description.size;
        // The last granule may end beyond the disk.
        let within = parts.iter_mut().filter(|(offset, _)| *offset < size);
        within.for_each(|(offset, len)| *len = (*len).min(size - *offset));
        parts.retain(|(offset, _)| *offset < size);
        put_together(parts, MOST_PARTS)
    }
}
