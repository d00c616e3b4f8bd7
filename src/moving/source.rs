//! Drives a move at the source: sessions, the machine's pause, orders. Decides nothing: [`mirror::joint`] does.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mirror::joint::{Event, Joint, Order, Seen, Step};
use mirror::net::{SourceDriver, SourceHandle, offer};
use mirror::record::{Lead, Ownership, State};
use mirror::session::SourceConfig;
use mirror::switchover::Part;
use mirror::wire::{DiskDescription, DiskFormat};
use mirror::{Error, ErrorKind};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmm::description::Description;
use vmm::snapshot::HostFacts;

use super::given::Given;
use super::passport::Passport;
use super::{STATE, reached, recorded, volume};
use crate::failure::{Exit, Failure, Result};
use crate::saved::manifest::Manifest;
use crate::site::source::Site;
use crate::site::source::joining::PATIENCE;

/// How often sessions are looked at while the machine runs, and while it does not.
const LOOK: Duration = Duration::from_millis(50);
const LOOK_CLOSELY: Duration = Duration::from_micros(500);
/// So long nothing moves while the machine stands still before it goes on here.
const STUCK: Duration = Duration::from_secs(15);
/// A disk is as good as there when so little is left, or what takes so long.
const NEAR_BYTES: u64 = 4 << 20;
const NEAR_MILLIS: u64 = 300;

/// Where to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MoveTo {
    /// `tls:HOST:PORT` or `tcp:HOST:PORT` of a `run --receive`.
    pub(crate) to: String,
    /// Let the machine cross a network unencrypted.
    #[serde(default)]
    pub(crate) plain: bool,
}

/// How a move stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MoveState {
    pub(crate) to: String,
    /// `copying`, `stopping`, `binding`, `deciding`, `granting`, `moved`, `undoing` or `stays`.
    pub(crate) step: String,
    /// Whether there is no way back.
    pub(crate) committed: bool,
    /// Bytes that were found on disks and in memory, that are durable at the target, and that are left.
    pub(crate) found: u64,
    pub(crate) copied: u64,
    pub(crate) remaining: u64,
    /// Bytes that went over the network.
    pub(crate) sent: u64,
    /// What keeps it from going on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trouble: Option<String>,
}

/// A move that was made. Times in milliseconds; the parts follow each other and add up to the pause.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Moved {
    pub(crate) to: String,
    pub(crate) id: Uuid,
    /// How long the guest stood still, until the target had said that it runs.
    pub(crate) pause_ms: f64,
    /// Until processors and devices stood still and their state was there.
    pub(crate) state_ms: f64,
    /// Until the target had state and memory.
    pub(crate) memory_ms: f64,
    /// Until it had the last of the disks too, durably, and they were bound.
    pub(crate) disks_ms: f64,
    /// Until it was decided.
    pub(crate) switch_ms: f64,
    /// Until the machine ran at the target.
    pub(crate) start_ms: f64,
    /// How long disks were copied before, while it ran.
    pub(crate) copy_ms: f64,
    pub(crate) state_bytes: u64,
    /// Bytes of state and memory that there are; the rest is zero.
    pub(crate) memory_bytes: u64,
    /// Bytes that went over the network for disks.
    pub(crate) disk_bytes: u64,
    /// The same for all.
    pub(crate) sent_bytes: u64,
}

/// What a machine is asked while it is moved.
pub(crate) trait Subject {
    /// Have processors and devices stand still.
    fn stop(&self) -> Result<Still>;
    /// All is here as before: let it go on, if it ran.
    fn go_on(&self);
}

/// A machine that stands still.
pub(crate) struct Still {
    /// When that began.
    pub(crate) since: Instant,
    /// Of its processors and devices.
    pub(crate) state: Vec<u8>,
    /// The file behind its memory.
    pub(crate) memory: Arc<std::fs::File>,
}

/// A machine as a move needs it.
pub(crate) struct Machine<'a> {
    /// The file that describes it, itself.
    pub(crate) described: &'a Path,
    pub(crate) vm: &'a Description,
    pub(crate) given: &'a HostFacts,
    /// What it is, but its state.
    pub(crate) manifest: &'a dyn Fn(Uuid, &[u8]) -> Result<Manifest>,
    pub(crate) site: &'a Site,
}

/// A move under way.
pub(crate) struct Mover {
    to: String,
    id: Uuid,
    /// Bytes of a machine's state.
    state_bytes: std::sync::atomic::AtomicU64,
    given_up: AtomicBool,
    now: Mutex<Now>,
}

struct Now {
    /// The lead first.
    sessions: Vec<SourceHandle>,
    step: Step,
    committed: bool,
}

/// When what was reached.
#[derive(Default)]
struct Times {
    stopped: Option<Instant>,
    state: Option<Instant>,
    memory: Option<Instant>,
    bound: Option<Instant>,
    decided: Option<Instant>,
}

impl Mover {
    /// A move to `to`, which has not begun.
    pub(crate) fn new(to: &MoveTo) -> Self {
        Self {
            to: to.to.clone(),
            id: Uuid::new_v4(),
            state_bytes: 0.into(),
            given_up: AtomicBool::new(false),
            now: Mutex::new(Now {
                sessions: Vec::new(),
                step: Step::Copying,
                committed: false,
            }),
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Have the machine stay, if there is still a way back.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::SeqCst);
    }

    /// How it stands.
    pub(crate) fn state(&self) -> MoveState {
        let now = self.now();
        let mut state = MoveState {
            to: self.to.clone(),
            step: step_name(now.step),
            committed: now.committed,
            found: 0,
            copied: 0,
            remaining: 0,
            sent: 0,
            trouble: None,
        };
        for session in &now.sessions {
            let status = session.status();
            state.found += status.progress.found;
            state.copied += status.progress.copied;
            state.remaining += status.progress.remaining;
            state.sent += status.sent;
            let trouble = status.error.or(status.progress.trouble);
            state.trouble = state.trouble.or(trouble);
        }
        state
    }

    /// Move the machine. When this fails it goes on here, with its disks.
    pub(crate) fn run(&self, machine: &Machine<'_>, subject: &dyn Subject) -> Result<Moved> {
        let manifest = (machine.manifest)(self.id, &[])?;
        let passport = Passport::new(manifest, machine.given).to_bytes()?;
        offer(&self.to, passport.into()).map_err(|e| not_taken(&e))?;
        let began = Instant::now();
        let given = Arc::new(Given::new(machine.vm.memory));
        let started = self.start(machine, &given);
        let mut failure = started.err();
        if failure.is_some() {
            self.give_up();
        }
        let mut times = Times::default();
        let step = self.drive(machine, (subject, &given), (&mut times, &mut failure));
        if step == Step::Moved {
            reached("moved");
            return Ok(self.report(began, &times));
        }
        let why = failure.unwrap_or_else(|| self.why());
        let what = format!("the machine stays here, with its disks: {}", why.what);
        let failure = Failure::new(why.exit, what);
        Err(match why.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        })
    }

    /// Begin the sessions.
    fn start(&self, machine: &Machine<'_>, given: &Arc<Given>) -> Result<()> {
        let store = super::record(machine.described);
        let refused = |e: Error| Failure::new(Exit::InUse, e.to_string());
        let record = if let Some(record) = store.load().map_err(refused)? {
            record
        } else {
            let first = Ownership::first(Uuid::new_v4());
            store.persist_and_wait(&first).map_err(refused)?;
            first
        };
        let State::Owner { epoch, .. } = record.state else {
            let what = format!("{}: belongs to another host", machine.described.display());
            return Err(Failure::new(Exit::InUse, what));
        };
        let description = DiskDescription {
            name: STATE.to_owned(),
            size: volume::size(machine.vm.memory),
            block_size: 0,
            logical_sector: 512,
            physical_sector: 4096,
            format: DiskFormat::Raw,
        };
        let session = Uuid::new_v4();
        let mut config = SourceConfig::new(session, self.to.clone(), description);
        config.recorded = Some(recorded(&self.to));
        config.part = Part::Lead;
        // What is left of another moment of the machine is of no use.
        config.replica.compare = false;
        config.handover.give_up_after = PATIENCE;
        let lead = Lead {
            record: store.path().display().to_string(),
            session,
            epoch: epoch.saturating_add(1),
        };
        let started = SourceDriver::start(given.clone(), store, config).map_err(refused)?;
        self.now().sessions.push(started);
        for disk in machine.vm.disks.iter().filter(|disk| !disk.read_only) {
            let session = machine.site.join(&disk.name, &self.to, &lead)?;
            self.now().sessions.push(session);
        }
        Ok(())
    }

    /// From the first look to the end.
    fn drive(
        &self,
        machine: &Machine<'_>,
        (subject, given): (&dyn Subject, &Given),
        (times, failure): (&mut Times, &mut Option<Failure>),
    ) -> Step {
        let sessions = self.now().sessions.clone();
        let mut joint = Joint::default();
        let mut stall = Stall::new();
        if sessions.is_empty() {
            return Step::Stays;
        }
        loop {
            let seen: Vec<Seen> = sessions.iter().map(|one| one.seen(near(one))).collect();
            times.look(&seen, joint.step());
            let stuck = joint.step() == Step::Binding && stall.stuck(&sessions);
            if stuck && failure.is_none() {
                let what = "nothing moves any more while the machine stands still";
                *failure = Some(Failure::new(Exit::Network, what));
            }
            let mut event = Event::Seen(&seen);
            if (self.given_up.load(Ordering::SeqCst) || stuck) && can_give_up(joint.step()) {
                event = Event::GiveUp;
            }
            let mut order = joint.handle(event);
            self.publish(&joint);
            if order == Some(Order::Stop) {
                reached("stop");
                let stopped = self.stop(machine, (subject, given), times);
                order = joint.handle(Event::Stopped(stopped.is_ok()));
                *failure = failure.take().or(stopped.err());
                stall = Stall::new();
                self.publish(&joint);
            }
            if let Some(order) = order {
                reached(before(order));
                match order {
                    Order::Stop => {}
                    Order::GoOn => subject.go_on(),
                    order => carry_out(order, &sessions),
                }
                reached(after(order));
            }
            match joint.step() {
                step @ (Step::Moved | Step::Stays) => return step,
                Step::Copying | Step::Undoing => std::thread::sleep(LOOK),
                _ => std::thread::sleep(LOOK_CLOSELY),
            }
        }
    }

    fn publish(&self, joint: &Joint) {
        let mut now = self.now();
        now.step = joint.step();
        now.committed = joint.committed();
    }

    /// The machine stands still, and its state and memory are there to be read.
    fn stop(
        &self,
        machine: &Machine<'_>,
        (subject, given): (&dyn Subject, &Given),
        times: &mut Times,
    ) -> Result<()> {
        let still = subject.stop()?;
        times.stopped = Some(still.since);
        let manifest = (machine.manifest)(self.id, &still.state)?.to_bytes()?;
        let head = volume::encode(&manifest, &still.state, machine.vm.memory);
        let head = head.ok_or_else(|| Failure::usage("the machine's state is too long"))?;
        let bytes = still.state.len() as u64;
        self.state_bytes.store(bytes, Ordering::Relaxed);
        given.give(head, still.memory);
        times.state = Some(Instant::now());
        Ok(())
    }

    /// Why it did not move, as far as sessions say.
    fn why(&self) -> Failure {
        let sessions = self.now().sessions.clone();
        let told = sessions.iter().filter_map(|session| {
            let status = session.status();
            let trouble = status.error.filter(|why| !why.contains("given up"));
            trouble.or(status
                .progress
                .trouble
                .filter(|why| !why.contains("given up")))
        });
        let mut told = told;
        let what = told.next().unwrap_or_else(|| "it was given up".to_owned());
        Failure::new(Exit::Cancelled, what)
    }

    fn report(&self, began: Instant, times: &Times) -> Moved {
        let end = Instant::now();
        let mut at = times.stopped.unwrap_or(end);
        let stopped = at;
        let mut part = |until: Option<Instant>| {
            let until = until.unwrap_or(at).max(at);
            let part = millis(until - at);
            at = until;
            part
        };
        let sessions = self.now().sessions.clone();
        let mut bytes = sessions.iter().map(|session| {
            let status = session.status();
            (status.progress.found, status.sent)
        });
        let (memory, sent) = bytes.next().unwrap_or_default();
        let disk_bytes = bytes.map(|(_, sent)| sent).sum();
        Moved {
            to: self.to.clone(),
            id: self.id,
            pause_ms: millis(end - stopped),
            state_ms: part(times.state),
            memory_ms: part(times.memory),
            disks_ms: part(times.bound),
            switch_ms: part(times.decided),
            start_ms: part(Some(end)),
            copy_ms: millis(stopped - began),
            state_bytes: self.state_bytes.load(Ordering::Relaxed),
            memory_bytes: memory,
            disk_bytes,
            sent_bytes: sent + disk_bytes,
        }
    }
}

fn can_give_up(step: Step) -> bool {
    matches!(step, Step::Copying | Step::Stopping | Step::Binding)
}

fn step_name(step: Step) -> String {
    let name = serde_json::to_value(step).ok();
    name.and_then(|name| name.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}

fn not_taken(error: &Error) -> Failure {
    let exit = match error.kind() {
        ErrorKind::Refused => Exit::Mismatch,
        ErrorKind::InvalidArgument => Exit::Usage,
        _ => Exit::Network,
    };
    Failure::new(exit, error.to_string())
        .hint("the machine runs on here; the target is started with `diskferry run --receive`")
}

/// So little is left of it that it may be waited for.
fn near(session: &SourceHandle) -> u64 {
    let rate = session.status().progress.rate;
    NEAR_BYTES.max(rate.saturating_mul(NEAR_MILLIS) / 1000)
}

/// What an order's step is called for tests, before and after it was carried out.
fn before(order: Order) -> &'static str {
    match order {
        Order::Stop => "",
        Order::SwitchOver => "stopped",
        Order::DecideLead => "bound",
        Order::DecideMembers => "decided",
        Order::Undo => "undo",
        Order::GoOn => "undone",
    }
}

fn after(order: Order) -> &'static str {
    match order {
        Order::Stop => "",
        Order::SwitchOver => "binding",
        Order::DecideLead => "deciding",
        Order::DecideMembers => "granting",
        Order::Undo => "undoing",
        Order::GoOn => "stays",
    }
}

fn carry_out(order: Order, sessions: &[SourceHandle]) {
    let Some((lead, members)) = sessions.split_first() else {
        return;
    };
    match order {
        Order::SwitchOver => sessions
            .iter()
            .for_each(|session| session.cutover(Some(Duration::MAX), None)),
        Order::DecideLead => lead.decide(),
        Order::DecideMembers => members.iter().for_each(SourceHandle::decide),
        Order::Undo => sessions.iter().for_each(SourceHandle::undo),
        Order::Stop | Order::GoOn => {}
    }
}

impl Times {
    fn look(&mut self, seen: &[Seen], step: Step) {
        use mirror::switchover::Phase;
        let now = Instant::now();
        let Some((lead, members)) = seen.split_first() else {
            return;
        };
        let bound = |one: &Seen| {
            matches!(
                one.phase,
                Phase::Bound | Phase::Deciding | Phase::Released | Phase::Forwarding
            )
        };
        if step == Step::Binding && bound(lead) {
            self.memory.get_or_insert(now);
            if members.iter().all(bound) {
                self.bound.get_or_insert(now);
            }
        }
        if matches!(lead.phase, Phase::Released | Phase::Forwarding) {
            self.decided.get_or_insert(now);
        }
    }
}

/// Whether anything moves.
struct Stall {
    moved: Instant,
    sum: u64,
}

impl Stall {
    fn new() -> Self {
        Self {
            moved: Instant::now(),
            sum: 0,
        }
    }

    fn stuck(&mut self, sessions: &[SourceHandle]) -> bool {
        let copied = |session: &SourceHandle| {
            let progress = session.status().progress;
            progress.copied + progress.streamed + progress.scanned
        };
        let sum = sessions.iter().map(copied).sum();
        if sum != self.sum {
            self.sum = sum;
            self.moved = Instant::now();
        }
        self.moved.elapsed() > STUCK
    }
}
