//! The way back: once the disk has moved, the hosts change parts, and it goes back to where it came from.
//!
//! The host that handed it over sends its clients on and receives the disk into the image that it has, which is never made
//! anew; the new owner begins sessions, of which one hands it over. Clients go on all the while.
//!
//! Must never forget a request of a client, and never leave anything of the machines of the way there.

use std::sync::Arc;

use uuid::Uuid;

use super::host::{Asked, Front, Machine};
use super::plan::Aim;
use super::world::{Event, SOURCE, TARGET, World};
use crate::arbiter::Switchover;
use crate::clock::Micros;
use crate::record::State;
use crate::session::{Left, Sabotage};
use crate::tracker::Tracker;

impl World {
    /// Whether the disk goes back now, if it is to.
    pub(super) fn turns(&self) -> bool {
        let over = match &self.hosts[SOURCE].machine {
            Machine::Source(source) => source.is_over() && matches!(source.outcome(), Some(Ok(()))),
            _ => false,
        };
        let up = self.hosts.iter().all(|host| host.up);
        self.plan.aim == Aim::Back && !self.turned && over && up && self.moved()
    }

    /// The hosts change parts.
    pub(super) fn turn(&mut self) {
        self.turned = true;
        self.net.kill_all();
        // Of the new owner's changes.
        let seen = self.hosts[TARGET].tap.take();
        for host in &mut self.hosts {
            host.machine = Machine::None;
            host.ops
                .retain(|_, op| matches!(op.asked, Asked::Client(..)));
            host.tap = None;
            host.attaching = None;
            host.kept.session = None;
        }
        self.hosts.swap(SOURCE, TARGET);
        self.hosts[SOURCE].tap = seen;
        let events = std::mem::take(&mut self.events);
        self.events = events
            .into_iter()
            .filter_map(|(at, event)| Some((at, turned(event)?)))
            .collect();
        self.served = 0;
        self.tracker = None;
        self.appended_at = Micros(0);
        self.plan.config.replica.follow = true;
        self.plan.config.replica.compare = true;
        self.plan.config.handover.automatic = false;
        self.plan.config.handover.how = Switchover::Safe;
        self.plan.config.handover.arbiter = None;
        // A rule of the way back is broken on the way back.
        self.plan.sabotage = self.plan.late.take();
        self.plan.config.sabotage = self.plan.sabotage;
        if self.calm() {
            self.after(Micros(10), Event::Fault);
        }
        let span = self.rng.between(300, 1500);
        self.plan.fault_until = self.now + Micros::from_millis(span);
        self.restart(TARGET);
    }

    /// On the way back few attempts are made, and who holds requests does so for a moment only.
    pub(super) fn crash_in_the_hold(&mut self) {
        if self.turned && self.plan.crashes && !self.calm() && self.rng.percent(25) {
            let span = Micros(self.rng.below(self.plan.op_time.0));
            self.after(span, Event::Crash(SOURCE, self.plan.power));
        }
    }

    /// How a host treats its clients that receives a disk, when it has just started.
    pub(super) fn front_of_target(&self) -> Front {
        let state = self.hosts[TARGET].record.as_ref().map(|r| &r.state);
        match state {
            Some(State::Owner { .. }) => Front::Closed,
            _ if self.turned => Front::Forwarding,
            _ => Front::Closed,
        }
    }

    /// The target begins to serve: from its first write on every change is seen.
    pub(super) fn see_all(&mut self) {
        if self.plan.aim == Aim::Back && !self.turned && self.served == 1 {
            let tracker = Tracker::new(self.plan.size as u64, self.plan.config.limits.queue);
            // As the session has it that is begun before the first of them.
            tracker.advance_cursor(self.plan.size as u64);
            self.hosts[TARGET].tap = Some(Arc::new(tracker));
        }
    }

    /// What a session of a disk that goes back knows of what was left, and what has seen all that was changed since.
    pub(super) fn left(&self) -> (Option<Left>, Option<Arc<Tracker>>) {
        let owner = self.hosts[SOURCE].record.as_ref().map(|r| &r.state);
        let (true, Some(State::Owner { epoch, session })) = (self.turned, owner) else {
            return (None, None);
        };
        let session = session.unwrap_or_default();
        if self.plan.sabotage == Some(Sabotage::TakeForTheSame) {
            let session = Uuid::from_u128(session.as_u128() + 1);
            return (
                Some(Left {
                    session,
                    epoch: *epoch,
                }),
                None,
            );
        }
        let seen = self.hosts[SOURCE].tap.clone();
        let epoch = *epoch;
        (seen.as_ref().map(|_| Left { session, epoch }), seen)
    }
}

/// The event after the turn, if it still means something.
fn turned(event: Event) -> Option<Event> {
    let other = |host: usize| if host == SOURCE { TARGET } else { SOURCE };
    Some(match event {
        Event::Effect(host, life, id) => Event::Effect(other(host), life, id),
        Event::Done(host, life, id) => Event::Done(other(host), life, id),
        Event::Crash(host, power) => Event::Crash(other(host), power),
        Event::Restart(host) => Event::Restart(other(host)),
        Event::Client(_) | Event::Submit(_) | Event::Fault | Event::Heal | Event::Operator => event,
        // Of the machines that were.
        Event::ConnUp(..)
        | Event::ConnClosed(..)
        | Event::Deliver(..)
        | Event::Wake(..)
        | Event::Attached(_)
        | Event::Held(..)
        | Event::Cancel(_)
        | Event::ArbiterHears(_)
        | Event::ArbiterAnswers(..) => return None,
    })
}
