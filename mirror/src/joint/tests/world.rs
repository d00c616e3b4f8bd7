//! Two hosts and the volumes of a machine, of which anything may happen next.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::super::{Event, Joint, Order, Seen, Step, resolve};
use crate::record::{Lead, Ownership, State};
use crate::sim::rng::Rng;
use crate::switchover::{GivenUp, Parked, Part, Phase, Recorded, SourceSwitch, TargetSwitch};

pub(super) const RECORD: &str = "/vm.toml.ownership";
pub(super) const TO: &str = "tcp:b:1";

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// The lead decides when only it is bound (J1).
    DecideEarly,
    /// A disk that is bound goes back by itself (J2).
    BoundGoesBack,
    /// All is taken back though the lead was told to decide (J2).
    UndoDecided,
    /// A disk that is found bound is taken for this host's own (J3).
    BoundIsOurs,
    /// The machine goes on while sessions are still at work (J4).
    GoOnEarly,
}

pub(super) const RULES: [Sabotage; 5] = [
    Sabotage::DecideEarly,
    Sabotage::BoundGoesBack,
    Sabotage::UndoDecided,
    Sabotage::BoundIsOurs,
    Sabotage::GoOnEarly,
];

/// A volume at both hosts: what is durable, what is being written, and who works on it.
struct Volume {
    lineage: Uuid,
    here: Ownership,
    here_writes: Option<Ownership>,
    session: Option<SourceSwitch>,
    parking: bool,
    failed: bool,
    over: bool,
    there: Option<Ownership>,
    receiver: Option<TargetSwitch>,
}

pub(super) struct World {
    rng: Rng,
    broken: Option<Sabotage>,
    /// The lead first.
    volumes: Vec<Volume>,
    joint: Option<Joint>,
    switching: bool,
    pub(super) runs_here: bool,
    pub(super) runs_there: bool,
    sessions: u128,
    /// In which step crashes of the source fell.
    pub(super) crashes: BTreeMap<String, u64>,
}

impl World {
    pub(super) fn new(seed: u64, broken: Option<Sabotage>) -> Self {
        let mut rng = Rng::new(seed);
        let disks = 1 + rng.below(3);
        let volumes = (0..=disks).map(|n| {
            let lineage = Uuid::from_u128(u128::from(n) + 1);
            Volume {
                lineage,
                here: Ownership::first(lineage),
                here_writes: None,
                session: None,
                parking: false,
                failed: false,
                over: false,
                there: None,
                receiver: Some(TargetSwitch::new(None, false)),
            }
        });
        Self {
            volumes: volumes.collect(),
            rng,
            broken,
            joint: None,
            switching: false,
            runs_here: true,
            runs_there: false,
            sessions: 1000,
            crashes: BTreeMap::new(),
        }
    }

    fn broken(&self, rule: Sabotage) -> bool {
        self.broken == Some(rule)
    }

    fn begin(&mut self) {
        let owned =
            |v: &Volume| matches!(v.here.state, State::Owner { .. }) && v.here_writes.is_none();
        if self.joint.is_some() || !self.runs_here || !self.volumes.iter().all(owned) {
            return;
        }
        self.joint = Some(Joint::default());
        self.switching = false;
        let lead_epoch = self.volumes[0].here.epoch() + 1;
        let lead = Lead {
            record: RECORD.into(),
            session: Uuid::from_u128(self.sessions),
            epoch: lead_epoch,
        };
        for (n, volume) in self.volumes.iter_mut().enumerate() {
            let session = Uuid::from_u128(self.sessions);
            self.sessions += 1;
            let part = if n == 0 {
                Part::Lead
            } else {
                Part::Member(lead.clone())
            };
            let switch = SourceSwitch::new(volume.lineage, volume.here.epoch(), session, TO.into());
            volume.session = Some(switch.with_part(part, None));
            volume.failed = false;
            volume.over = false;
        }
    }

    /// One thing happens, anywhere.
    pub(super) fn step(&mut self, faults: bool) {
        let n = self.rng.below(self.volumes.len() as u64) as usize;
        match self.rng.below(if faults { 40 } else { 30 }) {
            0..=7 => self.source(n),
            8..=13 => self.target(n),
            14..=19 => self.written_here(n, faults),
            20..=26 => self.decide(faults),
            27 | 28 => self.run_there(),
            29 => self.begin(),
            30 => self.give_up_alone(n),
            31 => self.crash_here(),
            32 => self.crash_there(),
            33 => {
                self.order(Event::GiveUp);
            }
            _ => {}
        }
        self.holds();
    }

    fn source(&mut self, n: usize) {
        let switching = self.switching;
        let volume = &mut self.volumes[n];
        let Some(switch) = &mut volume.session else {
            return;
        };
        match switch.phase() {
            Phase::Owner if switching && !volume.failed && !volume.over => {
                switch.prepare(None);
            }
            Phase::Owner if volume.failed => volume.over = true,
            Phase::Preparing => {
                switch.ready(switch.attempt());
            }
            Phase::Holding => {
                switch.held(switch.attempt());
            }
            Phase::Draining => {
                let attempt = switch.attempt();
                let prepared = volume
                    .there
                    .as_ref()
                    .is_some_and(|record| record.state == prepared_state(switch));
                if prepared && switch.commit_requested(attempt) {
                    volume.parking = true;
                }
            }
            Phase::Marking | Phase::Unmarking
                if volume.parking || switch.phase() == Phase::Unmarking =>
            {
                volume.parking = false;
                match switch.parked(true) {
                    Some(Parked::Bind(record) | Parked::Decide(record)) => {
                        volume.here_writes = Some(record);
                    }
                    Some(Parked::Offer(_)) => panic!("what moves with others is not offered"),
                    Some(Parked::Unmark | Parked::Resume | Parked::Wait) | None => {}
                }
            }
            _ => {}
        }
    }

    /// The target hears of it, or has written something.
    fn target(&mut self, n: usize) {
        let volume = &mut self.volumes[n];
        let Some(receiver) = &mut volume.receiver else {
            return;
        };
        if let Some(record) = receiver.written() {
            volume.there = Some(record);
            return;
        }
        let Some(switch) = &mut volume.session else {
            return;
        };
        let session = match &switch.deciding_record().state {
            State::Released { session, .. } => *session,
            _ => return,
        };
        match switch.phase() {
            Phase::Draining
                if volume.there.as_ref().map(|r| &r.state) != Some(&prepared_state(switch)) =>
            {
                receiver.write(volume.lineage, prepared_state(switch));
            }
            Phase::Released
                if receiver.prepared_for(session)
                    == Some((switch.attempt(), switch.next_epoch())) =>
            {
                let epoch = switch.next_epoch();
                receiver.write(
                    volume.lineage,
                    State::Owner {
                        epoch,
                        session: Some(session),
                    },
                );
            }
            Phase::Released
                if receiver.owned_epoch() >= Some(switch.next_epoch())
                    && (n > 0 || self.runs_there) =>
            {
                switch.running(switch.next_epoch());
            }
            _ => {}
        }
    }

    /// A record at the source is durable, or nobody knows.
    fn written_here(&mut self, n: usize, faults: bool) {
        let ok = !faults || self.rng.below(8) > 0;
        let durable = ok || self.rng.below(2) == 0;
        let volume = &mut self.volumes[n];
        let Some(record) = volume.here_writes.take() else {
            return;
        };
        if durable {
            volume.here = record.clone();
        }
        let Some(switch) = &mut volume.session else {
            return;
        };
        if !ok && switch.decided() {
            volume.here_writes = Some(record);
            return;
        }
        match switch.recorded(ok) {
            Recorded::Unbind => volume.here_writes = Some(switch.owner_record()),
            Recorded::Grant | Recorded::Unmark | Recorded::Offer | Recorded::Nothing => {}
        }
    }

    fn decide(&mut self, faults: bool) {
        let Some(joint) = &self.joint else { return };
        let step = joint.step();
        let near = !faults || self.rng.below(4) > 0;
        let mut seen: Vec<Seen> = Vec::new();
        for volume in &self.volumes {
            let phase = volume
                .session
                .as_ref()
                .map_or(Phase::Owner, SourceSwitch::phase);
            seen.push(Seen {
                near,
                phase,
                failed: volume.failed,
                over: volume.over,
            });
        }
        if self.broken(Sabotage::DecideEarly)
            && step == Step::Binding
            && seen[0].phase == Phase::Bound
        {
            for one in &mut seen {
                one.phase = Phase::Bound;
            }
        }
        if self.broken(Sabotage::GoOnEarly) && step == Step::Undoing {
            for one in &mut seen {
                one.over = true;
            }
        }
        if let Some(Order::Stop) = self.order(Event::Seen(&seen)) {
            self.runs_here = false;
            let stopped = !faults || self.rng.below(8) > 0;
            self.order(Event::Stopped(stopped));
        }
    }

    fn order(&mut self, event: Event<'_>) -> Option<Order> {
        let broken = self.broken;
        let joint = self.joint.as_mut()?;
        if event == Event::GiveUp
            && broken == Some(Sabotage::UndoDecided)
            && joint.step() == Step::Deciding
        {
            joint.step = Step::Binding;
        }
        let order = joint.handle(event)?;
        match order {
            Order::Stop => {}
            Order::SwitchOver => self.switching = true,
            Order::DecideLead => self.tell(0..1),
            Order::DecideMembers => self.tell(1..self.volumes.len()),
            Order::Undo => (0..self.volumes.len()).for_each(|n| self.undo(n)),
            Order::GoOn => {
                self.joint = None;
                self.switching = false;
                self.runs_here = true;
            }
        }
        Some(order)
    }

    fn tell(&mut self, which: std::ops::Range<usize>) {
        for volume in &mut self.volumes[which] {
            let record = volume.session.as_mut().and_then(SourceSwitch::decide);
            volume.here_writes = record.or(volume.here_writes.take());
        }
    }

    fn undo(&mut self, n: usize) {
        let volume = &mut self.volumes[n];
        let Some(switch) = &mut volume.session else {
            return;
        };
        if switch.undo() == Recorded::Unbind {
            volume.here_writes = Some(switch.owner_record());
        }
        if !switch.decided() {
            volume.failed = true;
            if switch.give_up() == GivenUp::Nothing {
                volume.over = true;
            }
        }
    }

    /// A session fails by itself: the target said so, or it waited too long.
    fn give_up_alone(&mut self, n: usize) {
        let broken = self.broken(Sabotage::BoundGoesBack);
        let volume = &mut self.volumes[n];
        let Some(switch) = &mut volume.session else {
            return;
        };
        if broken && n > 0 && switch.undo() == Recorded::Unbind {
            volume.here_writes = Some(switch.owner_record());
            volume.failed = true;
        }
        if !switch.committed() && switch.phase() != Phase::Owner {
            volume.failed = true;
            switch.give_up();
        }
    }

    fn crash_here(&mut self) {
        let step = self
            .joint
            .as_ref()
            .map_or("none".to_owned(), |joint| format!("{:?}", joint.step()));
        *self.crashes.entry(step).or_default() += 1;
        self.joint = None;
        self.switching = false;
        self.runs_here = false;
        for volume in &mut self.volumes {
            volume.session = None;
            volume.parking = false;
            volume.failed = false;
            volume.over = false;
            if let Some(record) = volume.here_writes.take()
                && self.rng.below(2) == 0
            {
                volume.here = record;
            }
        }
        self.start_here();
    }

    /// What `run` does with what it finds.
    fn start_here(&mut self) {
        let lead = self.volumes[0].here.clone();
        let ours = self.broken(Sabotage::BoundIsOurs);
        for volume in &mut self.volumes {
            let bound = matches!(volume.here.state, State::Bound { .. });
            volume.here = if bound && ours {
                let epoch = volume.here.epoch() - 1;
                Ownership {
                    disk: volume.lineage,
                    state: State::Owner {
                        epoch,
                        session: None,
                    },
                }
            } else {
                resolve(&volume.here, Some(&lead)).expect("it can be told")
            };
            volume.session = SourceSwitch::released(&volume.here);
        }
        self.runs_here = self.all_here();
    }

    fn crash_there(&mut self) {
        self.runs_there = false;
        for volume in &mut self.volumes {
            let writing = volume.receiver.as_ref().and_then(TargetSwitch::again);
            if self.rng.below(2) == 0 {
                volume.there = writing.or(volume.there.take());
            }
            volume.receiver = Some(TargetSwitch::new(
                volume.there.clone(),
                volume.there.is_some(),
            ));
        }
    }

    fn run_there(&mut self) {
        if self.all_there() {
            self.runs_there = true;
        }
    }

    fn all_here(&self) -> bool {
        let owner = |v: &Volume| matches!(v.here.state, State::Owner { .. });
        self.volumes.iter().all(owner)
    }

    fn all_there(&self) -> bool {
        let owner = |v: &Volume| {
            matches!(
                v.there.as_ref().map(|r| &r.state),
                Some(State::Owner { .. })
            )
        };
        self.volumes.iter().all(owner)
    }

    /// What has to be so at every moment.
    fn holds(&self) {
        assert!(!(self.runs_here && self.runs_there), "both run");
        if self.runs_here {
            let lead = &self.volumes[0].here;
            for volume in &self.volumes {
                let told = resolve(&volume.here, Some(lead)).expect("it can be told");
                assert!(
                    matches!(told.state, State::Owner { .. }),
                    "it runs without a disk of its own"
                );
                let phase = volume
                    .session
                    .as_ref()
                    .map_or(Phase::Owner, SourceSwitch::phase);
                assert_eq!(phase, Phase::Owner, "it runs over a disk that is parked");
            }
        }
        for volume in &self.volumes {
            let lead = &self.volumes[0].here;
            let there = matches!(
                volume.there.as_ref().map(|r| &r.state),
                Some(State::Owner { .. })
            );
            assert!(
                !there || matches!(lead.state, State::Released { .. }),
                "a disk went without its machine"
            );
            let told = resolve(&volume.here, Some(lead)).expect("it can be told");
            assert!(
                !there || !matches!(told.state, State::Owner { .. }),
                "two owners of a disk"
            );
        }
    }

    /// Both hosts are back, and nobody changes his mind: exactly one runs, with all its disks.
    pub(super) fn ends_well(&mut self) {
        for _ in 0..4000 {
            self.step(false);
        }
        assert!(
            self.runs_here != self.runs_there,
            "nobody runs: {:?}",
            self.joint
        );
        let gone = |v: &Volume| matches!(v.here.state, State::Released { .. });
        assert!(
            !self.runs_there || self.volumes.iter().all(gone),
            "half a machine stayed"
        );
    }
}

fn prepared_state(switch: &SourceSwitch) -> State {
    let State::Released { session, .. } = switch.deciding_record().state else {
        panic!("it decides otherwise");
    };
    State::Prepared {
        session,
        attempt: switch.attempt(),
        epoch: switch.next_epoch(),
        claim: None,
    }
}
