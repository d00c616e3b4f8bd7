//! From the grant to a served disk: record, mark, service.
//!
//! Must never serve before the `Owner` record is durable. Each step may be done again after a crash.

use super::claim::Claim;
use super::{Message, Micros, State, Target, TargetAction};
use crate::switchover::TargetSwitch;

/// How long after a failure a step is tried again.
const AGAIN: Micros = Micros::from_millis(500);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Step {
    /// Does not own the disk.
    #[default]
    None,
    /// The `Owner` record is being written.
    Recording,
    /// It is durable: open the image.
    Open,
    Opening,
    /// Take the incomplete mark out of the image.
    Unmark,
    Unmarking,
    /// Serve.
    Serve,
    Starting,
    /// Served at that address.
    Served(String),
}

#[derive(Debug, Default)]
pub(super) struct Takeover {
    step: Step,
    not_before: Micros,
    pub(super) claim: Claim,
}

impl Takeover {
    /// A disk that was granted before the start is taken over without asking.
    pub(super) fn at_start(switch: &TargetSwitch) -> Self {
        let step = match switch.state() {
            Some(State::Owner { .. }) => Step::Open,
            _ => Step::None,
        };
        Self {
            step,
            not_before: Micros(0),
            claim: Claim::default(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.step, Step::None | Step::Served(_))
    }

    pub(super) fn is_opening(&self) -> bool {
        self.step == Step::Opening
    }

    pub(super) fn recorded(&mut self) {
        if self.step == Step::Recording {
            self.step = Step::Open;
        }
    }

    fn next(&mut self, now: Micros, ok: bool, done: Step, again: Step) {
        self.step = if ok { done } else { again };
        if !ok {
            self.not_before = now + AGAIN;
        }
    }
}

impl Target {
    pub(super) fn on_grant(&mut self, now: Micros, attempt: u64, epoch: u64) {
        if self.switch.busy() {
            // The source repeats it.
            return;
        }
        if self
            .switch
            .owned_epoch()
            .is_some_and(|owned| owned >= epoch)
        {
            self.say_running(now);
            return;
        }
        let Some((_, hello)) = self.lanes.control.clone() else {
            return;
        };
        // Only the attempt it is prepared for: another one may lack writes.
        if self.switch.prepared_for(hello.session) == Some((attempt, epoch)) {
            self.take_over(hello.session);
        }
    }

    /// The disk is this host's, as what it is prepared for in that session.
    pub(super) fn take_over(&mut self, session: uuid::Uuid) {
        let prepared = self.switch.prepared_for(session);
        if let (Some((_, epoch)), Some(record)) = (prepared, self.switch.record()) {
            let disk = record.disk;
            let session = Some(session);
            self.takeover.step = Step::Recording;
            self.persist(disk, State::Owner { epoch, session });
        }
    }

    fn say_running(&mut self, now: Micros) {
        if let (Step::Served(address), Some(epoch)) =
            (self.takeover.step.clone(), self.switch.owned_epoch())
        {
            self.send(now, Message::Running { epoch, address });
        }
    }

    pub(super) fn pump_takeover(&mut self, now: Micros) {
        if now < self.takeover.not_before {
            return;
        }
        match self.takeover.step {
            Step::Open if self.setup.is_open() => {
                self.takeover.step = Step::Unmarking;
                self.actions.push_back(TargetAction::Park(None));
            }
            Step::Open => {
                self.takeover.step = Step::Opening;
                self.actions.push_back(TargetAction::Open {
                    description: None,
                    fresh: false,
                });
            }
            Step::Unmark => {
                self.takeover.step = Step::Unmarking;
                self.actions.push_back(TargetAction::Park(None));
            }
            Step::Serve => {
                self.takeover.step = Step::Starting;
                self.actions.push_back(TargetAction::Serve);
            }
            _ => {}
        }
    }

    pub(super) fn on_opened_for_takeover(&mut self, now: Micros, ok: bool) {
        if ok
            && let Some(State::Owner {
                session: Some(session),
                ..
            }) = self.switch.state()
        {
            let session = *session;
            self.setup.opened_for_takeover(session);
        }
        self.takeover.next(now, ok, Step::Unmark, Step::Open);
    }

    pub(super) fn on_parked(&mut self, now: Micros, ok: bool) {
        if self.takeover.step == Step::Unmarking {
            self.takeover.next(now, ok, Step::Serve, Step::Unmark);
        }
    }

    pub(super) fn on_serving(&mut self, now: Micros, result: std::io::Result<String>) {
        if self.takeover.step != Step::Starting {
            return;
        }
        if let Ok(address) = result {
            self.takeover.step = Step::Served(address);
            self.say_running(now);
        } else {
            self.takeover.step = Step::Serve;
            self.takeover.not_before = now + AGAIN;
        }
    }
}
