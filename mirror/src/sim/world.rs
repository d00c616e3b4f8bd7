//! The world: time, chance, two hosts, and the checks after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::arbiter::{Decided, Question};
use super::clients::Client;
use super::host::{Asked, Doing, Front, Host, Machine, Op, Request};
use super::ledger::{Ledger, Moments, Promise};
use super::network::Network;
use super::plan::{Aim, Plan, Sessions};
use super::rng::Rng;
use crate::arbiter::Side;
use crate::clock::Micros;
use crate::record::{Ownership, State};
use crate::session::{
    Command, ConnId, Keep, Sabotage, Source, SourceEvent, Stage, Target, TargetEvent, Upto,
};
use crate::switchover::{Verdict, verdict};
use crate::tracker::Tracker;
use crate::wire::Message;

pub(super) const SOURCE: usize = 0;
pub(super) const TARGET: usize = 1;

#[derive(Clone, Debug)]
pub(super) enum Event {
    Client(usize),
    Submit(Request),
    Effect(usize, u64, u64),
    Done(usize, u64, u64),
    ConnUp(ConnId, u64),
    /// The other end or the path is gone, as seen by that host.
    ConnClosed(usize, u64, ConnId),
    Deliver(ConnId, usize, Box<Message>),
    Wake(usize, u64),
    Attached(u64),
    Held(u64, u64),
    Cancel(u64),
    ArbiterHears(Question),
    /// To that host in that life, or the time to wait for it is over.
    ArbiterAnswers(usize, u64, Question, bool),
    Fault,
    Heal,
    Crash(usize, bool),
    Restart(usize),
    Operator,
}

/// What happened in a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Stats {
    pub(super) acked: u64,
    pub(super) sessions: u64,
    pub(super) crashes: u64,
    pub(super) cuts: u64,
    pub(super) stood: u64,
    pub(super) given_up: u64,
    pub(super) fallen_back: u64,
    pub(super) steps: u64,
    /// How often the target followed and a promotion was held against the promise; of those, with something to carry over.
    pub(super) replicas: u64,
    pub(super) replayed: u64,
    /// Of those, with the state that an earlier session had left.
    pub(super) inherited: u64,
    /// Sessions that came back after a crash of the source.
    pub(super) resumed: u64,
    /// Sessions on the way back, and of those, that began from what was left.
    pub(super) back: u64,
    pub(super) taken: u64,
    /// Sources that found an offer after a crash, and heard whose the disk is.
    pub(super) settled: u64,
    /// Bytes that were looked at while the target was in step, and those of the verification that runs.
    pub(super) verified: u64,
    pub(super) compared: u64,
    /// Bytes that sessions found at the target.
    pub(super) same: u64,
    /// Attempts undone long after the last fault.
    pub(super) undone_in_calm: u64,
    /// What the crashed hosts were doing.
    pub(super) crashed_in: BTreeSet<String>,
}

pub(super) struct World {
    pub(super) now: Micros,
    pub(super) events: BTreeMap<(Micros, u64), Event>,
    count: u64,
    pub(super) rng: Rng,
    pub(super) plan: Plan,
    pub(super) hosts: [Host; 2],
    pub(super) net: Network,
    pub(super) decided: Decided,
    pub(super) ledger: Ledger,
    pub(super) clients: Vec<Client>,
    pub(super) next_tag: u64,
    pub(super) stats: Stats,
    pub(super) failed: Option<String>,
    /// The tap of the session at hand, and how often the target began to serve.
    pub(super) tracker: Option<Arc<Tracker>>,
    pub(super) served: u64,
    pub(super) moments: Moments,
    /// How many sources there were.
    pub(super) sources: u64,
    /// When the last step that appends to the journal happens.
    pub(super) appended_at: Micros,
    pub(super) trace: bool,
    /// The hosts have changed parts.
    pub(super) turned: bool,
    /// What the target's site has besides.
    pub(super) templates: Vec<Vec<u8>>,
}

impl World {
    pub(super) fn new(seed: u64, sabotage: Option<Sabotage>, aim: Aim) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::from_seed(&mut rng, sabotage, aim);
        let net = Network::new(Micros([100, 1000, 8000][rng.below(3) as usize]));
        // Shorter than a few round trips and every attempt is given up.
        let patience = plan
            .config
            .handover
            .give_up_after
            .max(Micros(net.delay.0 * 60));
        let mut plan = plan;
        plan.config.handover.give_up_after = patience;
        let mut hosts = [Host::new(plan.size), Host::new(plan.size)];
        let disk = Uuid::from_u128(1);
        hosts[SOURCE].record = Some(Ownership::first(disk));
        hosts[SOURCE].front = Front::Serving;
        hosts[SOURCE].image = true;
        // What was there before: every other granule, never seen by a tap.
        for at in (0..plan.size - 4096).step_by(8192) {
            let tag = (1_000_000_000 + at as u64).to_le_bytes();
            hosts[SOURCE].disk.write(at as u64, &tag.repeat(512));
        }
        hosts[SOURCE].disk.flushed(u64::MAX);
        let ledger = Ledger::new(&hosts[SOURCE].disk.now);
        let clients = vec![
            Client {
                outstanding: false,
                left: u64::MAX
            };
            3
        ];
        let mut world = Self {
            now: Micros::from_secs(1),
            events: BTreeMap::new(),
            count: 0,
            rng,
            plan,
            hosts,
            net,
            decided: Decided::new(),
            ledger,
            clients,
            next_tag: 0,
            stats: Stats::default(),
            failed: None,
            tracker: None,
            served: 0,
            moments: Moments::default(),
            sources: 0,
            appended_at: Micros(0),
            turned: false,
            templates: Vec::new(),
            trace: std::env::var_os("DISKFERRY_TRACE").is_some(),
        };
        for client in 0..3 {
            world.after(Micros(client as u64 * 100), Event::Client(client));
        }
        world.after(Micros(1), Event::Restart(TARGET));
        world.after(Micros::from_millis(5), Event::Operator);
        world.after(Micros::from_millis(10), Event::Fault);
        world
    }

    pub(super) fn after(&mut self, span: Micros, event: Event) {
        self.count += 1;
        self.events.insert((self.now + span, self.count), event);
    }

    pub(super) fn at(&mut self, at: Micros, event: Event) {
        self.count += 1;
        self.events.insert((at.max(self.now), self.count), event);
    }

    pub(super) fn failure(&mut self, what: &str) {
        if self.failed.is_none() {
            self.failed = Some(format!("at {} us: {what}", self.now.0));
        }
    }

    pub(super) fn calm(&self) -> bool {
        self.now >= self.plan.fault_until
    }

    /// Run to the end; what was wrong, if something was.
    pub(super) fn run(mut self) -> (Stats, Result<(), String>) {
        let mut finishing = false;
        while let Some(((at, count), event)) = self.events.pop_first() {
            self.now = at;
            if let Some(until) = self.waits(&event) {
                self.events.insert((until, count), event);
                continue;
            }
            self.stats.steps += 1;
            if self.trace {
                eprintln!("{:>10} {event:?}", self.now.0);
            }
            self.step(event);
            self.check_owners();
            let there = self.turned || self.plan.aim != Aim::Back;
            if self.calm() && !finishing && there && self.moved() {
                finishing = true;
                self.clients.iter_mut().for_each(|client| client.left = 5);
            }
            let idle = self.clients.iter().all(|c| c.left == 0 && !c.outstanding);
            if self.failed.is_some() || (finishing && idle) {
                break;
            }
            if at > self.plan.fault_until + Micros::from_secs(120) || self.stats.steps > 2_000_000 {
                self.failure(&format!("no end: {}", self.describe()));
                break;
            }
        }
        self.check_end();
        let result = self.failed.take().map_or(Ok(()), Err);
        (self.stats, result)
    }

    /// The disk is where it was to go.
    pub(super) fn moved(&self) -> bool {
        self.hosts[TARGET].front == Front::Serving && self.hosts[SOURCE].front == Front::Forwarding
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Client(client) => self.client_acts(client),
            Event::Submit(request) => self.submit(request),
            Event::Effect(host, life, id) => self.op_effect(host, life, id),
            Event::Done(host, life, id) => self.op_done(host, life, id),
            Event::ConnUp(conn, life) => self.conn_up(conn, life),
            Event::ConnClosed(host, life, conn) => self.conn_closed(host, life, conn),
            Event::Deliver(conn, way, message) => self.deliver(conn, way, *message),
            Event::Wake(host, life) => self.wake(host, life),
            Event::Attached(life) if life == self.hosts[SOURCE].life => {
                self.source_event(SourceEvent::Attached(Ok(())));
            }
            Event::Held(life, attempt) if life == self.hosts[SOURCE].life => {
                self.source_event(SourceEvent::Held(attempt));
            }
            Event::Cancel(life) if life == self.hosts[SOURCE].life => {
                self.source_event(SourceEvent::Command(Command::Cancel));
            }
            Event::ArbiterHears(question) => self.arbiter_hears(&question),
            Event::ArbiterAnswers(host, life, question, answered) => {
                self.arbiter_answers((host, life), &question, answered);
            }
            Event::Attached(_) | Event::Held(..) | Event::Cancel(_) => {}
            Event::Fault => self.fault(),
            Event::Heal => self.net.heal(),
            Event::Crash(host, power) => self.crash(host, power),
            Event::Restart(host) => self.restart(host),
            Event::Operator => self.operator(),
        }
    }

    /// At most one side accepts writes; at most one would after a restart of both.
    fn check_owners(&mut self) {
        if self.hosts.iter().all(Host::accepts) {
            self.failure(&format!("both sides accept writes: {}", self.describe()));
        }
        let serves = |h: &Host| {
            h.record.is_some()
                && matches!(verdict(h.record.as_ref(), h.mark), Verdict::Serve { .. })
        };
        if self.hosts.iter().all(serves) {
            self.failure("both sides' records would let them serve");
        }
    }

    fn check_end(&mut self) {
        if self.failed.is_some() {
            return;
        }
        let target = &self.hosts[TARGET];
        let result = if self.hosts[SOURCE].accepts() || !target.accepts() {
            Err("not exactly the target serves".to_owned())
        } else {
            self.ledger.check(0, &target.disk.now, Promise::Acked)
        };
        if let Err(e) = result {
            self.failure(&format!("in the end: {e}"));
        }
    }

    /// The last number is about to be followed by another, or by none.
    pub(super) fn keep_moment(&mut self) {
        if let Some(tracker) = &self.hosts[SOURCE].tap {
            self.moments.keep(tracker.figures().seq, &self.ledger);
        }
    }

    /// The target follows: what a promotion would serve, if the source were lost now and the power here went.
    pub(super) fn check_replica(&mut self) {
        let target = &self.hosts[TARGET];
        let state = target.record.as_ref().map(|record| &record.state);
        let Some(State::Following { session, .. }) = state else {
            return;
        };
        let (mut disk, mut journal) = (target.disk.clone(), target.journal.clone());
        if target.up {
            disk.power_cut(&mut self.rng);
            journal.power_cut(&mut self.rng);
        }
        let (content, Some(at)) = journal.promoted(&disk.now, Upto::Sealed) else {
            return;
        };
        let last = (self.hosts[SOURCE].tap.as_ref()).map(|tap| tap.figures().seq);
        let Some(checked) = self.moments.check(at, last, &self.ledger, &content) else {
            return;
        };
        self.stats.replicas += 1;
        self.stats.replayed += u64::from(content != disk.now);
        self.stats.inherited += u64::from(*session != at.0);
        if let Err(e) = checked {
            self.failure(&format!("a promotion at number {} of {}: {e}", at.1, at.0));
        }
    }

    /// The target begins to serve.
    pub(super) fn check_takeover(&mut self) {
        self.served += 1;
        if self.served > 1 {
            return;
        }
        let (source, target) = (&self.hosts[SOURCE].disk, &self.hosts[TARGET].disk);
        let first = |a: &[u8], b: &[u8]| a.iter().zip(b).position(|(a, b)| a != b);
        if let Some(at) = first(&source.now, &target.now) {
            self.failure(&format!("the target serves something else at byte {at}"));
        } else if let Some(at) = first(&target.now, &target.durable) {
            self.failure(&format!(
                "the target serves what is not durable at byte {at}"
            ));
        }
        let now = self.hosts[TARGET].disk.now.clone();
        if let Err(e) = self.ledger.check(0, &now, Promise::Acked) {
            self.failure(&format!("the target takes over: {e}"));
        }
        let acked = self.ledger.acked();
        self.ledger.secure(&acked);
    }

    /// Begin an operation on a host's disk.
    pub(super) fn begin_op(&mut self, host: usize, asked: Asked, doing: Doing) {
        self.begin_op_after(host, asked, doing, self.now);
    }

    /// Begin an operation of which nothing happens before `not_before`; when its first step does.
    pub(super) fn begin_op_after(
        &mut self,
        host: usize,
        asked: Asked,
        doing: Doing,
        not_before: Micros,
    ) -> Micros {
        let effects = match &doing {
            Doing::Read(..) => 2,
            Doing::Persist(_, ok) => u8::from(*ok || self.rng.percent(50)),
            Doing::Journal(op) => op.steps(),
            _ => 1,
        };
        self.count += 1;
        let id = self.count;
        let life = self.hosts[host].life;
        let mut span = not_before.since(self.now).0;
        let mut first = None;
        for _ in 0..effects {
            span += self.rng.below(self.plan.op_time.0) + 1;
            first = first.or(Some(self.now + Micros(span)));
            self.after(Micros(span), Event::Effect(host, life, id));
        }
        span += self.rng.below(self.plan.op_time.0) + 1;
        self.after(Micros(span), Event::Done(host, life, id));
        self.hosts[host].ops.insert(
            id,
            Op {
                asked,
                doing,
                effects,
            },
        );
        first.unwrap_or(self.now)
    }

    fn op_effect(&mut self, host: usize, life: u64, id: u64) {
        let state = &mut self.hosts[host];
        if state.life != life {
            return;
        }
        if let Some(mut op) = state.ops.remove(&id) {
            state.effect(&mut op, &mut self.rng);
            state.ops.insert(id, op);
        }
    }

    fn op_done(&mut self, host: usize, life: u64, id: u64) {
        if self.hosts[host].life != life {
            return;
        }
        let Some(op) = self.hosts[host].ops.remove(&id) else {
            return;
        };
        match &op.asked {
            Asked::Client(..) => self.client_op_done(host, &op),
            Asked::Machine(_) | Asked::Step => self.machine_op_done(host, op),
        }
        self.check_attached(host);
        self.check_held(host);
    }

    /// The user: starts sessions, switches over, cancels.
    fn operator(&mut self) {
        let next = Micros(self.rng.between(5_000, 60_000));
        self.after(next, Event::Operator);
        if !self.hosts[SOURCE].up {
            return;
        }
        self.verify();
        if self.turns() {
            self.turn();
            return;
        }
        if let Machine::Source(source) = &self.hosts[SOURCE].machine {
            let progress = source.progress();
            if source.is_over() {
                self.stats.given_up += progress.given_up;
                self.stats.fallen_back += progress.fallen_back;
                self.stats.same += progress.same;
                if matches!(source.outcome(), Some(Err(_))) {
                    self.hosts[SOURCE].machine = Machine::None;
                }
                return;
            }
            let ready = matches!(progress.stage, Stage::Copying | Stage::Synced);
            if ready && (self.calm() || (self.plan.aim != Aim::Follow && self.rng.percent(30))) {
                let patient = Micros(self.plan.config.handover.give_up_after.0 / 3);
                let max_pause = if self.calm() {
                    patient
                } else {
                    Micros::from_secs(3600)
                };
                let max_pause = Some(max_pause);
                self.source_event(SourceEvent::Command(Command::Cutover {
                    max_pause,
                    how: None,
                }));
            } else if !self.calm() && self.rng.percent(if source.is_offered() { 20 } else { 1 }) {
                self.source_event(SourceEvent::Command(Command::Cancel));
            }
        } else if self.hosts[SOURCE].front == Front::Serving {
            self.start_session();
        }
    }

    fn start_session(&mut self) {
        self.stats.sessions += 1;
        let mut config = self.plan.config.clone();
        config.session = match self.plan.sabotage {
            // The same session after a crash, as if the source remembered what it cannot know.
            Some(Sabotage::KeepOldDisk) => Uuid::from_u128(100),
            _ => Uuid::from_u128(100 + u128::from(self.stats.sessions)),
        };
        let session = config.session;
        if self.plan.kept != Sessions::Nothing {
            self.stats.sessions += 1;
            let spare = Uuid::from_u128(100 + u128::from(self.stats.sessions));
            config.keep = Keep::Session { spare };
        }
        let (left, seen) = self.left();
        config.replica.left = left;
        let tracker = if let Some(seen) = seen {
            seen
        } else {
            // Some of them so small that there are hot and cold ones.
            let region = [4096, 16384, 1 << 20][self.rng.below(3) as usize];
            let tracker = Tracker::with_regions(self.plan.size as u64, config.limits.queue, region);
            Arc::new(tracker)
        };
        let Some(record) = self.hosts[SOURCE].record.clone() else {
            return;
        };
        match Source::new(config, &record, Arc::clone(&tracker)) {
            Ok(source) => {
                self.moments.begin(session, tracker.figures().seq);
                self.tracker = Some(tracker);
                self.sources += 1;
                self.stats.back += u64::from(self.turned);
                self.run_source(source);
            }
            Err(e) => self.failure(&format!("cannot start a session: {e}")),
        }
    }

    fn run_source(&mut self, source: Source) {
        self.hosts[SOURCE].machine = Machine::Source(Box::new(source));
        self.source_event(SourceEvent::Tick);
        self.arm(SOURCE);
    }

    /// Go on with the session that the source kept, if there is one and the user does not mind.
    fn resume_session(&mut self) {
        let size = self.plan.size as u64;
        let forgets = self.plan.sabotage == Some(Sabotage::ForgetWhatChanged);
        let next = self.hosts[SOURCE].kept.next_life(size, forgets);
        let Some((saved, parts)) = next.filter(|_| self.rng.percent(80)) else {
            self.hosts[SOURCE].kept.session = None;
            return;
        };
        let mut config = self.plan.config.clone();
        config.session = saved.session;
        self.stats.sessions += 1;
        let spare = Uuid::from_u128(100 + u128::from(self.stats.sessions));
        config.keep = Keep::Session { spare };
        self.hosts[SOURCE].kept.session = Some(saved.clone());
        let tracker = Arc::new(Tracker::new(size, config.limits.queue));
        let Some(record) = self.hosts[SOURCE].record.clone() else {
            return;
        };
        let (session, tap) = (saved.session, Arc::clone(&tracker));
        match Source::resumed(config, &record, tap, (&saved, &parts)) {
            Ok(source) => {
                self.moments.begin(session, tracker.figures().seq);
                self.moments.also(session, spare);
                self.tracker = Some(tracker);
                self.sources += 1;
                self.stats.resumed += 1;
                self.run_source(source);
            }
            Err(e) => self.failure(&format!("cannot go on with a session: {e}")),
        }
    }

    pub(super) fn restart(&mut self, host: usize) {
        if host == SOURCE && self.hosts[host].up {
            return;
        }
        self.hosts[host].up = true;
        let record = self.hosts[host].record.clone();
        if host == TARGET {
            let config = self.target_config();
            let target = Target::new(config, record, self.hosts[host].image);
            self.hosts[host].machine = Machine::Target(Box::new(target));
            self.hosts[host].front = self.front_of_target();
            self.target_event(TargetEvent::Tick);
            self.arm(TARGET);
            return;
        }
        let ballot = record.as_ref().and_then(Ownership::ballot);
        if let Some((_, ballot)) = ballot {
            return self.ask_arbiter(SOURCE, Question::Settle(ballot, Side::Source));
        }
        self.start_source();
    }

    /// The source has just started, and its record speaks for itself.
    pub(super) fn start_source(&mut self) {
        let host = SOURCE;
        let record = self.hosts[host].record.clone();
        match verdict(record.as_ref(), self.hosts[host].mark) {
            Verdict::Serve { .. } => {
                self.hosts[host].mark = None;
                self.resume_session();
                self.hosts[host].front = Front::Serving;
            }
            Verdict::Forward { .. } => {
                let released = record.ok_or(()).and_then(|record| {
                    Source::released(self.plan.config.clone(), &record).map_err(|_| ())
                });
                let Ok(source) = released else {
                    self.failure("cannot resume the handover");
                    return;
                };
                self.sources += 1;
                self.hosts[host].machine = Machine::Source(Box::new(source));
                self.source_event(SourceEvent::Tick);
                self.arm(SOURCE);
            }
            Verdict::Refuse(why) => self.failure(&format!("the source refuses its disk: {why}")),
        }
    }

    /// The host's durable record lets it serve.
    pub(super) fn owns(&self, host: usize) -> bool {
        let record = self.hosts[host].record.as_ref();
        record.is_some_and(|record| matches!(record.state, State::Owner { .. }))
    }
}
