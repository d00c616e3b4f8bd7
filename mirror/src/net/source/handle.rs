//! What the rest of a program sees of a session that runs on its own thread.

use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::Order;
use crate::arbiter::Switchover;
use crate::clock::Micros;
use crate::error::{Error, ErrorKind, Result};
use crate::history::Report;
use crate::joint::Seen;
use crate::net::local_minute;
use crate::picture::Picture;
use crate::session::{Command, Progress, SourceEvent, Terms};
use crate::switchover::Phase;
use crate::timetable::Timetable;

/// What is known of a session at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    /// The disk's name at the target.
    pub name: String,
    /// The target's address for migration sessions.
    pub to: String,
    /// The session.
    pub session: Uuid,
    /// Who decides in a fast switchover, if there may be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arbiter: Option<String>,
    /// What a target of this kind cannot promise, if it is not one of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_promised: Option<&'static str>,
    /// The disks of its group that are not back yet after a crash, by where they were: it waits for them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub awaits: Vec<String>,
    /// The machine's figures.
    #[serde(flatten)]
    pub progress: Progress,
    /// Bytes written to sockets, everything counted.
    pub sent: u64,
    /// Microseconds since the session started.
    pub elapsed: u64,
    /// Bytes a second that clients wrote lately.
    pub dirty_rate: u64,
    /// Microseconds ago, at the most, the disk was what the target has of it; `None` before it was in step.
    pub behind: Option<u64>,
    /// What it comes to so far.
    pub report: Report,
    /// Whether it is over: the target runs and requests go there, or the disk stays here.
    pub ended: bool,
    /// Why the disk did not move, once that is so.
    pub error: Option<String>,
}

/// A session that runs. Clones mean the same session; dropping them does not end it.
#[derive(Clone, Debug)]
pub struct SourceHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) orders: mpsc::UnboundedSender<Order>,
}

impl SourceHandle {
    /// What is known of it now.
    #[must_use]
    pub fn status(&self) -> SourceStatus {
        self.shared.lock().status.clone()
    }

    /// Switch over as soon as the estimated pause is at most `max_pause`, or the configured one; `how` if not as
    /// configured. A fast switchover without an arbiter is a safe one.
    pub fn cutover(&self, max_pause: Option<Duration>, how: Option<Switchover>) {
        let max_pause =
            max_pause.map(|span| Micros(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)));
        self.command(Command::Cutover { max_pause, how });
    }

    /// End the session; the disk stays here. Without effect once it is handed over.
    pub fn cancel(&self) {
        self.command(Command::Cancel);
    }

    /// All that moves with it is bound: see [`crate::joint`].
    pub fn decide(&self) {
        self.command(Command::Decide);
    }

    /// What moves with it stays here: take back what was done, and end.
    pub fn undo(&self) {
        self.command(Command::Undo);
    }

    /// What [`crate::joint`] has to know of it. It is near if at most `near` bytes are left.
    #[must_use]
    pub fn seen(&self, near: u64) -> Seen {
        let state = self.shared.lock();
        let progress = &state.status.progress;
        let left = progress.remaining.saturating_add(progress.unacknowledged);
        Seen {
            near: progress.connected && progress.scanned >= progress.size && left <= near,
            phase: state.phase,
            failed: state.status.error.is_some() || progress.given_up > 0,
            over: state.status.ended || state.stopped,
        }
    }

    /// What of the disk is where, in at most `cells` cells; once the session has ended, as it was then. Waits for the
    /// session's thread.
    #[must_use]
    pub fn picture(&self, cells: usize) -> Picture {
        let (draw, drawn) = channel();
        let _ = self.orders.send(Order::Draw(cells, draw));
        let live = drawn.recv();
        live.unwrap_or_else(|_| self.shared.lock().last.clone().in_cells(cells))
    }

    /// Find out whether the target has what this host has, in the background: see [`Progress::verify`].
    pub fn verify(&self) {
        self.command(Command::Verify);
    }

    /// Copy at most so many bytes a second.
    pub fn set_rates(&self, rates: Timetable) {
        self.command(Command::SetRates(rates, local_minute()));
    }

    /// Keep to that from now on, and to nothing that was asked for before.
    pub fn set_terms(&self, terms: Terms) {
        self.command(Command::SetTerms(terms));
    }

    /// Let go of the session where it stands, as if the process had died: nothing is said to the
    /// target, held requests stay held, the tap stays on. For a program that ends.
    pub fn stop(&self) {
        let _ = self.orders.send(Order::Stop);
        let mut state = self.shared.lock();
        while !state.stopped {
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wait until every change of the disk is seen, or the session has ended.
    pub(super) fn wait_for_tap(&self) {
        let mut state = self.shared.lock();
        while !state.tapped && !state.stopped {
            let waited = self.shared.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wait until it is over. `Ok` when the target runs and requests are forwarded.
    pub fn wait(&self) -> Result<SourceStatus> {
        let mut state = self.shared.lock();
        while !state.stopped {
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.result()
    }

    /// As [`SourceHandle::wait`], at most for `span`; `None` when it is not over then.
    pub fn wait_for(&self, span: Duration) -> Option<Result<SourceStatus>> {
        let until = Instant::now() + span;
        let mut state = self.shared.lock();
        while !state.stopped {
            let left = until.checked_duration_since(Instant::now())?;
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(state.result())
    }

    fn command(&self, command: Command) {
        let _ = self
            .orders
            .send(Order::Event(SourceEvent::Command(command)));
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<SharedState>,
    pub(super) changed: Condvar,
}

#[derive(Debug)]
pub(super) struct SharedState {
    pub(super) status: SourceStatus,
    pub(super) failed: Option<ErrorKind>,
    pub(super) phase: Phase,
    /// Every change of the disk is seen.
    pub(super) tapped: bool,
    /// The thread does nothing more.
    pub(super) stopped: bool,
    /// The disk as the machine left it.
    pub(super) last: Picture,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, SharedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedState {
    fn result(&self) -> Result<SourceStatus> {
        match (&self.status.error, self.failed) {
            (Some(what), Some(kind)) => Err(Error::new(kind, what.clone())),
            _ if self.status.ended => Ok(self.status.clone()),
            _ => Err(Error::new(
                ErrorKind::Cancelled,
                "the session was let go of before its end",
            )),
        }
    }
}

/// Whatever happens to the thread, nobody waits for it for ever.
pub(super) struct SayStopped(pub(super) Arc<Shared>);

impl Drop for SayStopped {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_all();
    }
}
