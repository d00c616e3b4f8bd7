//! Carries out what the machines of all disks ask for.

use super::super::host::{Asked, Doing, Front, Machine, Op};
use super::super::journal::JournalOp;
use super::super::network::{TO_SOURCE, TO_TARGET};
use super::super::world::{SOURCE, TARGET};
use super::{Event, World, name_of};
use crate::clock::Micros;
use crate::group::{Gathering, GroupAction, Member};
use crate::record::State;
use crate::session::{OpId, SourceAction, SourceEvent, TargetAction, TargetEvent, Upto};

impl World {
    /// Have that machine woken when it wants to be.
    pub(super) fn arm(&mut self, disk: usize, side: usize) {
        let host = &self.disks[disk].hosts[side];
        let wake = match &host.machine {
            Machine::Source(machine) => machine.poll_timeout(),
            Machine::Target(machine) => machine.poll_timeout(),
            Machine::None => None,
        };
        let life = host.life;
        let at = wake.map(|at| self.plan.clocks[side].when(at));
        let at = at.unwrap_or(self.now + Micros::from_millis(50));
        self.at(at.max(self.now + Micros(1)), Event::Wake(disk, side, life));
    }

    pub(super) fn wake(&mut self, disk: usize, side: usize, life: u64) {
        let host = &self.disks[disk].hosts[side];
        if host.life != life || !host.up {
            return;
        }
        let now = self.clock(side);
        match &host.machine {
            Machine::Source(m) if m.poll_timeout().is_some_and(|t| t <= now) => {
                self.source_event(disk, SourceEvent::Tick);
            }
            Machine::Target(m) if m.poll_timeout().is_some_and(|t| t <= now) => {
                self.target_event(disk, TargetEvent::Tick);
            }
            Machine::None => return,
            _ => {}
        }
        self.arm(disk, side);
    }

    /// What the clock of that side shows.
    fn clock(&self, side: usize) -> Micros {
        self.plan.clocks[side].shows(self.now)
    }

    pub(super) fn source_event(&mut self, disk: usize, event: SourceEvent) {
        let now = self.clock(SOURCE);
        // A cut takes a number of its own.
        self.keep_moment();
        let mut actions = Vec::new();
        if let Machine::Source(machine) = &mut self.disks[disk].hosts[SOURCE].machine {
            machine.handle(now, event);
            actions.extend(std::iter::from_fn(|| machine.poll_action()));
        }
        for action in actions {
            self.source_action(disk, action);
        }
    }

    pub(super) fn target_event(&mut self, disk: usize, event: TargetEvent) {
        let now = self.clock(TARGET);
        let mut actions = Vec::new();
        if let Machine::Target(machine) = &mut self.disks[disk].hosts[TARGET].machine {
            machine.handle(now, event);
            actions.extend(std::iter::from_fn(|| machine.poll_action()));
        }
        for action in actions {
            self.target_action(disk, action);
        }
    }

    fn source_action(&mut self, disk: usize, action: SourceAction) {
        if std::env::var_os("DISKFERRY_TRACE").is_some() {
            eprintln!("{:>10}   source {disk}: {action:?}", self.now.0);
        }
        let (at, now) = ((disk, SOURCE), self.now);
        match action {
            SourceAction::Connect(conn, lane) => {
                self.connect(disk, self.outside(disk, conn), lane);
            }
            SourceAction::Close(conn) => self.close(at, self.outside(disk, conn)),
            SourceAction::Send(conn, message) => {
                self.send(disk, self.outside(disk, conn), (TO_TARGET, &message));
            }
            SourceAction::AttachTap => {
                let tap = self.disks[disk].tracker.clone();
                let host = &mut self.disks[disk].hosts[SOURCE];
                host.tap = tap;
                let clients = host
                    .ops
                    .iter()
                    .filter(|(_, op)| matches!(op.asked, Asked::Client(..)));
                host.attaching = Some(clients.map(|(id, _)| *id).collect());
                self.check_attached(disk);
            }
            SourceAction::DetachTap => {
                // What changes from here on has no numbers, and no cut is asked for any more.
                self.keep_moment();
                self.history.moments.freeze(&self.history.ledger);
                self.disks[disk].hosts[SOURCE].tap = None;
            }
            SourceAction::Read(op, offset, len) => {
                let doing = Doing::Read(offset, vec![0; len as usize]);
                self.begin_op(at, Asked::Machine(op), doing, now);
            }
            SourceAction::Status(op, offset, len) => {
                let doing = Doing::Status(offset, len, Vec::new());
                self.begin_op(at, Asked::Machine(op), doing, now);
            }
            SourceAction::Hold(attempt) => {
                self.disks[disk].hosts[SOURCE].front = Front::Holding(attempt, false);
                self.check_held(disk);
            }
            SourceAction::Release => {
                self.disks[disk].hosts[SOURCE].front = Front::Serving;
                self.start_waiting(disk);
            }
            // Until the end it never can be marked: each attempt is given up once the target has everything.
            SourceAction::Park(mark) => {
                self.maybe_crash_soon();
                self.begin_op(at, Asked::Step, Doing::Park(mark), now);
            }
            SourceAction::Reach { .. }
            | SourceAction::Reclaim { .. }
            | SourceAction::Brake(_)
            | SourceAction::Expect(_) => {}
            SourceAction::Checkpoint => self.begin_step(at, Doing::Checkpoint),
            SourceAction::Save(saved) => {
                let ok = self.calm() || !self.rng.percent(3);
                self.begin_step(at, Doing::Save(saved, ok));
            }
            _ if self.history.parting.is_none() => self.failure("a disk was handed over"),
            SourceAction::Persist(record) => {
                let ok = !self.rng.percent(10);
                self.begin_step(at, Doing::Persist(record, ok));
            }
            SourceAction::ForwardAhead(_) | SourceAction::Forward(_) => {
                self.disks[disk].hosts[SOURCE].front = Front::Forwarding;
            }
        }
    }

    /// A step that a crash likes to fall into.
    fn begin_step(&mut self, at: (usize, usize), doing: Doing) {
        self.begin_op(at, Asked::Step, doing, self.now);
        self.maybe_crash_soon();
    }

    fn target_action(&mut self, disk: usize, action: TargetAction) {
        if std::env::var_os("DISKFERRY_TRACE").is_some() {
            eprintln!("{:>10}   target {disk}: {action:?}", self.now.0);
        }
        let (at, now) = ((disk, TARGET), self.now);
        match action {
            TargetAction::Send(conn, message) => self.send(disk, conn, (TO_SOURCE, &message)),
            TargetAction::Close(conn) => self.close(at, conn),
            TargetAction::Open { fresh, .. } => {
                let works = self.calm() || !self.rng.percent(2);
                self.begin_op(at, Asked::Step, Doing::Open(fresh, works), now);
            }
            TargetAction::ReadTemplate { .. } => self.failure("there are no templates"),
            TargetAction::Write(op, offset, data) => {
                self.begin_op(at, Asked::Machine(op), Doing::Write(offset, data), now);
            }
            TargetAction::Zero(op, offset, len) => {
                self.begin_op(at, Asked::Machine(op), Doing::Zero(offset, len), now);
            }
            TargetAction::Flush(op) => {
                let mark = self.disks[disk].hosts[TARGET].disk.flush_mark();
                self.begin_op(at, Asked::Machine(op), Doing::Flush(mark), now);
            }
            TargetAction::Read(op, offset, len) => {
                let doing = Doing::Read(offset, vec![0; len as usize]);
                self.begin_op(at, Asked::Machine(op), doing, now);
            }
            TargetAction::StartJournal { op, session, .. } => {
                self.journal_op(disk, op, JournalOp::Start(session, None));
                self.maybe_crash_soon();
            }
            TargetAction::Journal(op, offset, content) => {
                self.journal_op(disk, op, JournalOp::Append(offset, content));
            }
            TargetAction::Mark { op, seq, sealed } => {
                self.journal_op(disk, op, JournalOp::Mark(seq, sealed, 0));
                self.maybe_crash_soon();
            }
            TargetAction::Apply(op, upto) => {
                self.journal_op(disk, op, JournalOp::Apply(upto, None, 0));
                if upto != Upto::Nothing && self.rng.percent(20) {
                    self.check_promotion(true);
                }
                self.maybe_crash_soon();
            }
            TargetAction::Persist(record) => {
                let ok = self.calm() || !self.rng.percent(3);
                self.begin_step(at, Doing::Persist(record, ok));
            }
            TargetAction::Reached {
                group,
                session,
                cut,
                disks,
            } => {
                let name = name_of(disk);
                let member = Member { name, session };
                self.tell_group(|all| all.reached(member, (group.sequence, cut), disks));
            }
            TargetAction::Leave(_) => self.tell_group(|all| all.leave(&name_of(disk))),
            TargetAction::Park(mark) => self.begin_step(at, Doing::Park(mark)),
            TargetAction::Zeroes(..) => self.failure("nobody asked for a look"),
            TargetAction::Reach { .. } | TargetAction::Claim { .. } | TargetAction::WayBack(_) => {}
            TargetAction::Serve => self.begin_step(at, Doing::Serve),
        }
    }

    /// The group hears of something; what it asks for is done, and those whom it tells hear it a while later.
    pub(super) fn tell_group(&mut self, tell: impl FnOnce(&mut Gathering)) {
        tell(&mut self.gathering);
        let actions: Vec<_> = std::iter::from_fn(|| self.gathering.poll_action()).collect();
        let life = self.disks[0].hosts[TARGET].life;
        for action in actions {
            let (name, event) = match action {
                GroupAction::Write(record) => {
                    let ok = self.calm() || !self.rng.percent(5);
                    let happens = ok || self.rng.percent(50);
                    self.writing = Some((record, happens));
                    let span = self.rng.below(self.plan.op_time.0) + 1;
                    self.after(Micros(span), Event::GroupEffect(life));
                    let more = self.rng.below(self.plan.op_time.0) + 1;
                    self.after(Micros(span + more), Event::GroupDone(life, ok));
                    self.maybe_crash_soon();
                    continue;
                }
                GroupAction::Tell(member, cut) => {
                    (member.name, TargetEvent::Cut(member.session, cut))
                }
                GroupAction::Settled(name, cut) => (name, TargetEvent::Left(cut)),
            };
            let disk = (0..self.disks.len()).find(|disk| name_of(*disk) == name);
            if let Some(disk) = disk {
                let span = Micros(self.rng.below(self.plan.op_time.0 * 4));
                self.after(span, Event::OfGroup(disk, life, Box::new(event)));
            }
        }
    }

    /// The group's record is in its place.
    pub(super) fn group_effect(&mut self) {
        if let Some((record, happens)) = &mut self.writing
            && std::mem::take(happens)
        {
            self.record = Some(record.clone());
            self.check_promotion(true);
        }
    }

    fn journal_op(&mut self, disk: usize, op: OpId, what: JournalOp) {
        let appends = what.appends();
        let before = if appends {
            self.disks[disk].appended_at
        } else {
            self.now
        };
        let at = (disk, TARGET);
        let done = self.begin_op(at, Asked::Machine(op), Doing::Journal(what), before);
        if appends {
            self.disks[disk].appended_at = done;
        }
    }

    /// Begin an operation of which nothing happens before `not_before`; when its first step does.
    pub(super) fn begin_op(
        &mut self,
        (disk, side): (usize, usize),
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
        let life = self.disks[disk].hosts[side].life;
        let mut span = not_before.since(self.now).0;
        let mut first = None;
        for _ in 0..effects {
            span += self.rng.below(self.plan.op_time.0) + 1;
            first = first.or(Some(self.now + Micros(span)));
            self.after(Micros(span), Event::Effect(disk, side, life, id));
        }
        span += self.rng.below(self.plan.op_time.0) + 1;
        self.after(Micros(span), Event::Done(disk, side, life, id));
        #[rustfmt::skip]
        let op = Op { asked, doing, effects };
        self.disks[disk].hosts[side].ops.insert(id, op);
        first.unwrap_or(self.now)
    }

    pub(super) fn op_effect(&mut self, (disk, side): (usize, usize), life: u64, id: u64) {
        let host = &mut self.disks[disk].hosts[side];
        if host.life != life {
            return;
        }
        if let Some(mut op) = host.ops.remove(&id) {
            host.effect(&mut op, &mut self.rng);
            let carries = matches!(op.doing, Doing::Journal(JournalOp::Apply(..)));
            host.ops.insert(id, op);
            if carries && self.rng.percent(20) {
                self.check_promotion(true);
            }
        }
    }

    pub(super) fn op_done(&mut self, (disk, side): (usize, usize), life: u64, id: u64) {
        let host = &mut self.disks[disk].hosts[side];
        if host.life != life {
            return;
        }
        let Some(op) = host.ops.remove(&id) else {
            return;
        };
        match (&op.asked, side) {
            (Asked::Client(..), _) => self.client_op_done(disk, &op),
            (_, SOURCE) => self.source_op_done(disk, op),
            _ => self.target_op_done(disk, op),
        }
        if side == SOURCE {
            self.check_attached(disk);
            self.check_held(disk);
        }
    }

    fn source_op_done(&mut self, disk: usize, op: Op) {
        let event = match (op.asked, op.doing) {
            (Asked::Machine(id), Doing::Read(_, data)) => SourceEvent::Read(id, Ok(data.into())),
            (Asked::Machine(id), Doing::Status(_, _, e)) => SourceEvent::Status(id, Ok(e)),
            (_, Doing::Park(Some(_))) if self.history.parting.is_none() => {
                SourceEvent::Parked(Err(injected()))
            }
            (_, Doing::Park(_)) => SourceEvent::Parked(Ok(())),
            (_, Doing::Persist(_, true)) => SourceEvent::Persisted(Ok(())),
            (_, Doing::Persist(_, false)) => SourceEvent::Persisted(Err(injected())),
            (_, Doing::Save(_, true)) => SourceEvent::Saved(Ok(())),
            (_, Doing::Save(_, false)) => SourceEvent::Saved(Err(injected())),
            (_, Doing::Checkpoint) => {
                let name = self.disks[disk].hosts[SOURCE].kept.name();
                SourceEvent::Checkpointed(self.plan.tracked().then_some(name))
            }
            _ => return,
        };
        self.source_event(disk, event);
    }

    fn target_op_done(&mut self, disk: usize, op: Op) {
        let ok = self.calm() || self.rng.below(3000) > 0;
        let answer = |ok: bool| if ok { Ok(()) } else { Err(injected()) };
        let event = match (op.asked, op.doing) {
            (Asked::Machine(id), Doing::Read(_, data)) => {
                TargetEvent::Read(id, answer(ok).map(|()| data.into()))
            }
            (Asked::Machine(id), _) => TargetEvent::Disk(id, answer(ok)),
            (_, Doing::Park(_)) => TargetEvent::Parked(Ok(())),
            (_, Doing::Persist(_, ok)) => TargetEvent::Persisted(answer(ok)),
            (_, Doing::Open(_, ok)) => TargetEvent::Opened(answer(ok)),
            (_, Doing::Serve) => {
                self.check_service(disk);
                TargetEvent::Serving(Ok("b".into()))
            }
            _ => return,
        };
        self.target_event(disk, event);
        let state = self.disks[disk].hosts[TARGET]
            .record
            .as_ref()
            .map(|record| &record.state);
        if matches!(state, Some(State::Owner { .. })) && !self.is_released(disk) {
            self.failure("a disk that was never granted is owned");
        }
    }

    fn check_attached(&mut self, disk: usize) {
        let host = &mut self.disks[disk].hosts[SOURCE];
        let ended = |before: &Vec<u64>| !before.iter().any(|id| host.ops.contains_key(id));
        if host.attaching.as_ref().is_some_and(ended) {
            host.attaching = None;
            let life = host.life;
            self.after(Micros(0), Event::Attached(disk, life));
        }
    }

    fn check_held(&mut self, disk: usize) {
        let host = &mut self.disks[disk].hosts[SOURCE];
        if let Front::Holding(attempt, false) = host.front
            && !host.serving_now()
        {
            host.front = Front::Holding(attempt, true);
            let life = host.life;
            self.after(Micros(0), Event::Held(disk, life, attempt));
        }
    }
}

fn injected() -> std::io::Error {
    std::io::Error::other("injected")
}
