//! Carries out what the machines ask for, and breaks what can break.

use uuid::Uuid;

use std::io::ErrorKind;

use super::arbiter::Question;
use super::host::{Asked, Doing, Front, Host, Machine, Op};
use super::journal::JournalOp;
use super::ledger::Promise;
use super::network::{TO_SOURCE, TO_TARGET};
use super::world::{Event, SOURCE, TARGET, World};
use crate::arbiter::Side;
use crate::clock::Micros;
use crate::record::State;
use crate::session::{ConnId, OpId, SourceAction, SourceEvent, TargetAction, TargetEvent};

impl World {
    /// Have the machine of that host woken when it wants to be.
    pub(super) fn arm(&mut self, host: usize) {
        let wake = match &self.hosts[host].machine {
            Machine::Source(machine) => machine.poll_timeout(),
            Machine::Target(machine) => machine.poll_timeout(),
            Machine::None => None,
        };
        let life = self.hosts[host].life;
        let at = wake.map(|at| self.plan.clocks[host].when(at));
        let at = at.unwrap_or(self.now + Micros::from_millis(50));
        self.at(at.max(self.now + Micros(1)), Event::Wake(host, life));
    }

    pub(super) fn wake(&mut self, host: usize, life: u64) {
        if self.hosts[host].life != life || !self.hosts[host].up {
            return;
        }
        let now = self.clock(host);
        match &self.hosts[host].machine {
            Machine::Source(m) if m.poll_timeout().is_some_and(|t| t <= now) => {
                self.source_event(SourceEvent::Tick);
            }
            Machine::Target(m) if m.poll_timeout().is_some_and(|t| t <= now) => {
                self.target_event(TargetEvent::Tick);
            }
            Machine::None => return,
            _ => {}
        }
        self.arm(host);
    }

    pub(super) fn source_event(&mut self, event: SourceEvent) {
        let now = self.clock(SOURCE);
        let mut actions = Vec::new();
        if let Machine::Source(machine) = &mut self.hosts[SOURCE].machine {
            machine.handle(now, event);
            while let Some(action) = machine.poll_action() {
                actions.push(action);
            }
        }
        for action in actions {
            self.source_action(action);
        }
    }

    pub(super) fn target_event(&mut self, event: TargetEvent) {
        let now = self.clock(TARGET);
        let mut actions = Vec::new();
        if let Machine::Target(machine) = &mut self.hosts[TARGET].machine {
            machine.handle(now, event);
            while let Some(action) = machine.poll_action() {
                actions.push(action);
            }
        }
        for action in actions {
            self.target_action(action);
        }
    }

    fn source_action(&mut self, action: SourceAction) {
        if self.trace {
            eprintln!("{:>10}   source: {action:?}", self.now.0);
        }
        match action {
            SourceAction::Connect(conn, lane) => self.connect(self.outside(conn), lane),
            SourceAction::Close(conn) => self.close(self.outside(conn), SOURCE),
            SourceAction::Send(conn, message) => {
                self.send(self.outside(conn), TO_TARGET, &message);
            }
            SourceAction::AttachTap => self.attach_tap(),
            SourceAction::DetachTap => {
                self.keep_moment();
                self.hosts[SOURCE].tap = None;
            }
            SourceAction::Read(op, at, len) => {
                let doing = Doing::Read(at, vec![0; len as usize]);
                self.begin_op(SOURCE, Asked::Machine(op), doing);
            }
            SourceAction::Status(op, at, len) => {
                self.begin_op(
                    SOURCE,
                    Asked::Machine(op),
                    Doing::Status(at, len, Vec::new()),
                );
            }
            SourceAction::Hold(attempt) => {
                self.hosts[SOURCE].front = Front::Holding(attempt, false);
                // Over soon, and there are many phases in which to crash.
                self.maybe_crash_soon();
                self.maybe_crash_soon();
                self.crash_in_the_hold();
                self.check_held(SOURCE);
            }
            SourceAction::Release => {
                // What piled up while there were faults takes its time.
                let faulty = self.plan.fault_until.since(Micros::from_secs(1)).0;
                if self.now > self.plan.fault_until + Micros(3_000_000 + 2 * faulty) {
                    self.stats.undone_in_calm += 1;
                }
                if matches!(self.hosts[SOURCE].front, Front::Holding(..)) {
                    self.hosts[SOURCE].front = Front::Serving;
                    self.start_waiting(SOURCE);
                }
            }
            SourceAction::Park(mark) => self.step_op(SOURCE, Doing::Park(mark)),
            SourceAction::Persist(record) => {
                let ok = self.calm() || !self.rng.percent(3);
                self.step_op(SOURCE, Doing::Persist(record, ok));
            }
            SourceAction::Reach { attempt, .. } => {
                self.ask_arbiter(SOURCE, Question::Reach(attempt));
            }
            SourceAction::Reclaim { ballot, .. } => {
                self.ask_arbiter(SOURCE, Question::Decide(ballot, Side::Source));
                self.maybe_crash_soon();
            }
            SourceAction::Checkpoint => self.step_op(SOURCE, Doing::Checkpoint),
            SourceAction::Save(saved) => {
                let ok = self.calm() || !self.rng.percent(3);
                self.begin_op(SOURCE, Asked::Step, Doing::Save(saved, ok));
            }
            // Its clients wait for each answer anyway, and find the disk wherever it is.
            SourceAction::Brake(_) | SourceAction::Expect(_) => {}
            SourceAction::ForwardAhead(_) | SourceAction::Forward(_) => {
                self.hosts[SOURCE].front = Front::Forwarding;
                for request in std::mem::take(&mut self.hosts[SOURCE].waiting) {
                    self.submit(request);
                }
            }
        }
    }

    fn attach_tap(&mut self) {
        self.hosts[SOURCE].tap.clone_from(&self.tracker);
        let host = &mut self.hosts[SOURCE];
        let mut before = Vec::new();
        for (id, op) in &host.ops {
            before.extend(matches!(op.asked, Asked::Client(..)).then_some(*id));
        }
        host.attaching = Some(before);
        self.check_attached(SOURCE);
    }

    fn target_action(&mut self, action: TargetAction) {
        if self.trace {
            eprintln!("{:>10}   target: {action:?}", self.now.0);
        }
        match action {
            TargetAction::Send(conn, message) => self.send(conn, TO_SOURCE, &message),
            TargetAction::Close(conn) => self.close(conn, TARGET),
            TargetAction::Open { fresh, .. } => {
                if fresh && self.turned {
                    self.failure("an image in use is made anew");
                }
                let works = self.calm() || !self.rng.percent(2);
                self.step_op(TARGET, Doing::Open(fresh, works));
            }
            TargetAction::Write(op, at, data) => {
                self.begin_op(TARGET, Asked::Machine(op), Doing::Write(at, data));
            }
            TargetAction::Zero(op, at, len) => {
                self.begin_op(TARGET, Asked::Machine(op), Doing::Zero(at, len));
            }
            TargetAction::Flush(op) => {
                let mark = self.hosts[TARGET].disk.flush_mark();
                self.begin_op(TARGET, Asked::Machine(op), Doing::Flush(mark));
            }
            TargetAction::Read(op, at, len) => {
                let doing = Doing::Read(at, vec![0; len as usize]);
                self.begin_op(TARGET, Asked::Machine(op), doing);
            }
            TargetAction::Zeroes(op, at, len) => {
                self.hosts[TARGET].looking.insert(op);
                let doing = Doing::Read(at, vec![0; len as usize]);
                self.begin_op(TARGET, Asked::Machine(op), doing);
            }
            reading @ TargetAction::ReadTemplate { .. } => self.read_template(&reading),
            TargetAction::StartJournal { op, session, seq } => {
                let at = self.disk_is_at(session, seq);
                self.journal_op(op, JournalOp::Start(session, at));
            }
            TargetAction::Journal(op, at, content) => {
                self.journal_op(op, JournalOp::Append(at, content));
            }
            TargetAction::Mark { op, seq, sealed } => {
                self.journal_op(op, JournalOp::Mark(seq, sealed, 0));
                self.maybe_crash_soon();
            }
            TargetAction::Apply(op, upto) => {
                self.check_apply();
                self.journal_op(op, JournalOp::Apply(upto, None, 0));
                self.maybe_crash_soon();
                if self.rng.percent(20) {
                    self.check_replica();
                }
            }
            TargetAction::Persist(record) => {
                let ok = self.calm() || !self.rng.percent(3);
                self.step_op(TARGET, Doing::Persist(record, ok));
            }
            TargetAction::Reach { attempt, .. } => {
                self.ask_arbiter(TARGET, Question::Reach(attempt));
            }
            TargetAction::Claim { ballot, .. } => {
                self.ask_arbiter(TARGET, Question::Decide(ballot, Side::Target));
                self.maybe_crash_soon();
            }
            TargetAction::WayBack(_) => {}
            TargetAction::Reached { .. } | TargetAction::Leave(_) => {
                self.failure("a disk by itself is of no group");
            }
            TargetAction::Park(mark) => self.step_op(TARGET, Doing::Park(mark)),
            TargetAction::Serve => self.step_op(TARGET, Doing::Serve),
        }
    }

    /// Where the target's disk is when a journal for `session` is made at that number.
    fn disk_is_at(&self, session: Uuid, seq: u64) -> Option<(Uuid, u64)> {
        let target = &self.hosts[TARGET];
        match target.record.as_ref().map(|record| &record.state) {
            // Where an earlier session left it.
            Some(State::Following { .. }) => target.journal.at,
            _ => (seq > 0).then_some((session, seq)),
        }
    }

    /// What is carried over is of the session that the record speaks of.
    fn check_apply(&mut self) {
        let target = &self.hosts[TARGET];
        let state = target.record.as_ref().map(|record| &record.state);
        let of_another = match (state, target.journal.holds_of()) {
            (Some(State::Following { session, .. }), Some(of)) => *session != of,
            (_, of) => of.is_some(),
        };
        if of_another {
            self.failure("the journal of another session is carried over");
        }
    }

    /// Something is done to the journal: what is appended comes in the order in which it was asked for.
    fn journal_op(&mut self, op: OpId, what: JournalOp) {
        let appends = what.appends();
        let before = if appends { self.appended_at } else { self.now };
        let done = self.begin_op_after(TARGET, Asked::Machine(op), Doing::Journal(what), before);
        if appends {
            self.appended_at = done;
        }
    }

    /// A step that matters: crashes like to fall here.
    fn step_op(&mut self, host: usize, doing: Doing) {
        let op_time = self.plan.op_time.0;
        let forwarding = self.hosts[host].front == Front::Forwarding;
        // What is rare or short, how often of a hundred to crash in it, and within which time.
        let (chance, span) = match &doing {
            Doing::Park(None) if host == SOURCE => (20, op_time),
            // Where it matters most what is durable where.
            Doing::Persist(record, _) if record.ballot().is_some() => {
                (60, op_time + 6 * self.net.delay.0)
            }
            Doing::Persist(..) if forwarding => (50, op_time),
            Doing::Persist(record, _) if matches!(record.state, State::Released { .. }) => {
                (20, op_time)
            }
            _ => (0, op_time),
        };
        let marking = matches!(doing, Doing::Park(Some(_)));
        let parking = matches!(doing, Doing::Park(_));
        self.begin_op(host, Asked::Step, doing);
        self.maybe_crash_soon();
        // Short, and rare.
        if parking {
            self.maybe_crash_soon();
        }
        if chance > 0 && self.plan.crashes && self.rng.percent(chance) {
            let span = Micros(self.rng.below(span));
            self.after(span, Event::Crash(host, self.plan.power));
        }
        // A user who thinks better of it at the last moment.
        if marking && !self.calm() && self.rng.percent(25) {
            let life = self.hosts[host].life;
            let span = Micros(self.rng.below(op_time));
            self.after(span, Event::Cancel(life));
        }
    }

    pub(super) fn maybe_crash_soon(&mut self) {
        if self.calm() || !self.rng.percent(6) {
            return;
        }
        let span = Micros(self.rng.below(self.plan.op_time.0 * 3));
        let host = self.rng.below(2) as usize;
        if self.plan.crashes && self.rng.percent(70) {
            let power = self.plan.power && self.rng.percent(60);
            self.after(span, Event::Crash(host, power));
        } else if self.plan.cuts {
            self.cut_all(true);
        }
    }

    pub(super) fn machine_op_done(&mut self, host: usize, op: Op) {
        if host == SOURCE {
            let event = match (op.asked, op.doing) {
                (Asked::Machine(id), Doing::Read(_, data)) => {
                    SourceEvent::Read(id, Ok(data.into()))
                }
                (Asked::Machine(id), Doing::Status(_, _, e)) => SourceEvent::Status(id, Ok(e)),
                (_, Doing::Park(_)) => SourceEvent::Parked(Ok(())),
                (_, Doing::Persist(_, ok)) => SourceEvent::Persisted(answer(ok)),
                (_, Doing::Save(_, ok)) => SourceEvent::Saved(answer(ok)),
                (_, Doing::Checkpoint) => {
                    let name = self.hosts[SOURCE].kept.name();
                    SourceEvent::Checkpointed(self.plan.tracked().then_some(name))
                }
                _ => return,
            };
            self.source_event(event);
            return;
        }
        let event = match (op.asked, op.doing) {
            (Asked::Machine(id), Doing::Read(_, data)) => {
                let ok = answer(self.calm() || self.rng.below(3000) > 0);
                if self.hosts[TARGET].looking.remove(&id) {
                    TargetEvent::Zeroes(id, ok.map(|()| data.iter().all(|byte| *byte == 0)))
                } else {
                    TargetEvent::Read(id, ok.map(|()| data.into()))
                }
            }
            (Asked::Machine(id), Doing::Template(there)) => self.of_template(id, there),
            (Asked::Machine(id), _) => {
                let ok = self.calm() || self.rng.below(3000) > 0;
                TargetEvent::Disk(id, answer(ok))
            }
            (_, Doing::Park(_)) => TargetEvent::Parked(Ok(())),
            (_, Doing::Persist(_, ok)) => TargetEvent::Persisted(answer(ok)),
            (_, Doing::Open(_, true)) => TargetEvent::Opened(Ok(())),
            (_, Doing::Open(_, false)) => {
                let kinds = [ErrorKind::InvalidData, ErrorKind::Other];
                let kind = kinds[self.rng.below(2) as usize];
                TargetEvent::Opened(Err(kind.into()))
            }
            (_, Doing::Serve) => {
                self.hosts[TARGET].front = Front::Serving;
                self.check_takeover();
                self.see_all();
                TargetEvent::Serving(Ok("b".into()))
            }
            _ => return,
        };
        self.target_event(event);
    }

    /// Everything that began before the tap has ended.
    pub(super) fn check_attached(&mut self, host: usize) {
        let state = &mut self.hosts[host];
        let Some(before) = &state.attaching else {
            return;
        };
        if !before.iter().any(|id| state.ops.contains_key(id)) {
            state.attaching = None;
            let life = state.life;
            self.after(Micros(0), Event::Attached(life));
        }
    }

    /// Requests are held and none is under way.
    pub(super) fn check_held(&mut self, host: usize) {
        let state = &mut self.hosts[host];
        if let Front::Holding(attempt, false) = state.front
            && !state.serving_now()
        {
            state.front = Front::Holding(attempt, true);
            let life = state.life;
            self.after(Micros(0), Event::Held(life, attempt));
        }
    }

    pub(super) fn fault(&mut self) {
        if self.calm() {
            self.net.heal();
            return;
        }
        let next = Micros(self.rng.between(5_000, self.plan.fault_gap.0));
        self.after(next, Event::Fault);
        self.check_replica();
        match self.rng.below(10) {
            0..=2 if self.plan.cuts => {
                let all: Vec<ConnId> = self.net.conns.keys().rev().take(4).copied().collect();
                if let Some(conn) = all.get(self.rng.below(all.len() as u64) as usize).copied() {
                    // A single ordered lane's silence is found by beats, a bulk lane's by its end.
                    let loud = self.net.conns.get(&conn).is_some_and(|c| c.lane > 0);
                    self.net.kill(conn);
                    let loud = loud || self.rng.percent(50);
                    self.announce_both(conn, loud);
                }
            }
            3 if self.plan.cuts => self.cut_all(true),
            4 if self.plan.cuts => self.cut_all(false),
            5 if self.plan.cuts => {
                self.net.block(&mut self.rng);
                let span = Micros(self.rng.between(1_000, 1_200_000));
                self.after(span, Event::Heal);
            }
            6..=8 if self.plan.crashes => {
                let host = self.rng.below(2) as usize;
                let power = self.plan.power && self.rng.percent(60);
                self.crash(host, power);
            }
            9 => self.stand_still(),
            _ => {}
        }
    }

    /// The process or the power of a host ends.
    pub(super) fn crash(&mut self, host: usize, power: bool) {
        if !self.hosts[host].up || self.calm() {
            return;
        }
        self.stats.crashes += 1;
        if host == SOURCE {
            self.keep_moment();
        }
        let doing = self.doing(host);
        self.stats.crashed_in.insert(doing);
        let state = &mut self.hosts[host];
        state.up = false;
        state.stands_until = Micros(0);
        state.life += 1;
        state.machine = Machine::None;
        state.front = Front::Closed;
        state.tap = None;
        state.attaching = None;
        state.looking.clear();
        let ops = std::mem::take(&mut state.ops);
        let waiting = std::mem::take(&mut state.waiting);
        let mut free: Vec<usize> = waiting.into_iter().map(|request| request.client).collect();
        // What was to be appended ends somewhere, and nothing follows.
        let mut ended = false;
        for (_, mut op) in ops {
            let appends = matches!(&op.doing, Doing::Journal(op) if op.appends());
            while op.effects > 0 && !(appends && ended) && self.rng.percent(50) {
                self.hosts[host].effect(&mut op, &mut self.rng);
            }
            ended |= appends && op.effects > 0;
            if let Asked::Client(request, ..) = &op.asked {
                free.push(request.client);
            }
        }
        self.check_after_crash(host, power);
        for client in free {
            self.client_free(client);
        }
        self.cut_all(true);
        let span = Micros(self.rng.between(1_000, 500_000));
        self.after(span, Event::Restart(host));
    }

    /// Where both stand, for who reads a failure.
    pub(super) fn describe(&self) -> String {
        let host = |h: &Host| {
            let phase = match &h.machine {
                Machine::Source(s) => format!("{:?} {:?}", s.phase(), s.progress()),
                Machine::Target(t) => format!("{t:?}"),
                Machine::None => "nothing runs".into(),
            };
            format!("up {}, {:?}, {:?}, {phase}", h.up, h.front, h.record)
        };
        format!(
            "source: {}; target: {}",
            host(&self.hosts[SOURCE]),
            host(&self.hosts[TARGET])
        )
    }

    /// What that host is about, for the account of where crashes fell.
    fn doing(&self, host: usize) -> String {
        let way = if self.turned { "back: " } else { "" };
        match &self.hosts[host].machine {
            Machine::Source(source) => format!("{way}source {:?}", source.phase()),
            Machine::Target(target) => {
                let state = target.record().map(|record| format!("{:?}", record.state));
                let state = state.unwrap_or_else(|| "None".into());
                let word = state.split(' ').next().unwrap_or_default();
                let served = self.hosts[TARGET].front == Front::Serving;
                format!("{way}target {word}{}", if served { " served" } else { "" })
            }
            Machine::None => format!("host {host} without a session"),
        }
    }

    fn check_after_crash(&mut self, host: usize, power: bool) {
        let owner = self.owns(host);
        let state = &mut self.hosts[host];
        if power {
            state.disk.power_cut(&mut self.rng);
            state.journal.power_cut(&mut self.rng);
        } else {
            state.journal.cut_off();
        }
        self.check_replica();
        if !owner {
            return;
        }
        let now = self.hosts[host].disk.now.clone();
        // Granted and not yet served: nobody was told anything since the source held.
        let untouched = host == TARGET && self.served == 0;
        let promise = if power && !untouched {
            Promise::Secure
        } else {
            Promise::Acked
        };
        if let Err(e) = self.ledger.check(0, &now, promise) {
            self.failure(&format!(
                "after a crash of host {host} (power: {power}): {e}"
            ));
        }
        if power && !untouched {
            self.moments.freeze(&self.ledger);
            self.ledger.restart_from(&now);
        }
    }
}

fn answer(ok: bool) -> std::io::Result<()> {
    if ok {
        Ok(())
    } else {
        Err(std::io::Error::other("injected"))
    }
}
