//! Several disks of one machine that follow together, with clients whose writes depend on each other across disks.
//!
//! Runs the real machines of both sides for each disk, and the one that gathers their cuts. Links break disk by disk, the
//! source's process or power goes for all of them at once, after which they come back one by one, and so does the target's. Whenever something crashes, is carried
//! over or is recorded, a promotion of a copy of the target is held against what all disks held when the number of the cut
//! was the last one given out. Must never use anything but its seed.

mod back;
mod drive;
mod faults;
mod home;
mod parting;
mod still;
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use self::back::Back;
use self::parting::Parting;
use super::host::{Asked, Doing, Front, Host, Machine, Op, Request, Want};
use super::ledger::{Ledger, Moments};
use super::network::Network;
use super::plan::{Aim, Plan};
use super::rng::Rng;
use super::world::{SOURCE, TARGET};
use crate::clock::Micros;
use crate::group::{Gathering, GroupRecord};
use crate::record::{Membership, Ownership, State};
use crate::sequence::Sequence;
use crate::session::{ConnId, Sabotage, SourceEvent, TargetEvent, Upto};
use crate::tracker::Tracker;
use crate::wire::Message;

/// The group's name.
const GROUP: Uuid = Uuid::from_u128(77);

#[derive(Debug)]
enum Event {
    Client(usize),
    /// Of a disk and a side, in that life of it.
    Effect(usize, usize, u64, u64),
    Done(usize, usize, u64, u64),
    ConnUp(usize, ConnId, u64),
    ConnClosed(usize, usize, u64, ConnId),
    Deliver(usize, ConnId, usize, Box<Message>),
    Wake(usize, usize, u64),
    Attached(usize, u64),
    /// A disk is served again, in that life of its host.
    Back(usize, u64),
    Held(usize, u64, u64),
    /// The target's process, in that life, is told by the group.
    OfGroup(usize, u64, Box<TargetEvent>),
    /// The group's record is there; it is known to be durable, or not.
    GroupEffect(u64),
    GroupDone(u64, bool),
    Operator,
    Fault,
    Heal(usize),
    Restart(usize),
    Crash(usize, bool),
}

/// What happened in a run.
#[derive(Clone, Debug, Default)]
struct Stats {
    acked: u64,
    sessions: u64,
    crashes: u64,
    /// Records of the group that became durable.
    recorded: u64,
    /// Promotions that were held against the promise; of those, with something to carry over, and of an earlier session.
    promoted: u64,
    replayed: u64,
    inherited: u64,
    /// Promotions that were refused.
    refused: u64,
    /// Attempts to hand a disk over that were given up.
    given_up: u64,
    fallen_back: u64,
    /// Sessions that went on after a crash of their source, and disks that had lost theirs.
    resumed: u64,
    lost: u64,
    /// Runs in which the disks were handed over in the end, sources that came back meanwhile, and promotions of disks that
    /// were left that were held against what they have.
    parted: u64,
    parted_back: u64,
    rest: u64,
    /// Runs that began with disks on their way home.
    home: u64,
    /// How often a host stood still.
    stood: u64,
}

/// One disk on both hosts.
struct Disk {
    hosts: [Host; 2],
    net: Network,
    tracker: Option<Arc<Tracker>>,
    /// How many sources there were.
    sources: u64,
    appended_at: Micros,
    /// It is not served again yet, and goes on with the others then.
    back: Option<Back>,
}

struct World {
    now: Micros,
    events: BTreeMap<(Micros, u64), Event>,
    count: u64,
    rng: Rng,
    plan: Plan,
    disks: Vec<Disk>,
    /// What the receiving folder has of the group, what is being written, and what the target's process knows.
    record: Option<GroupRecord>,
    writing: Option<(GroupRecord, bool)>,
    gathering: Gathering,
    history: History,
    clients: Vec<Client>,
    stats: Stats,
    /// The target has the disks in use, since it had handed them over.
    home: bool,
    /// Until when each host stands still.
    still_until: [Micros; 2],
    failed: Option<String>,
}

/// What was promised.
struct History {
    ledger: Ledger,
    moments: Moments,
    sequence: Arc<Sequence>,
    /// By what the disks count now, and what those of each session counted by.
    current: Uuid,
    life: u64,
    of: BTreeMap<Uuid, Uuid>,
    next_tag: u64,
    /// In the end: the number beyond which nothing was written.
    ended_at: Option<u64>,
    /// After the end.
    parting: Option<Parting>,
}

/// What a promotion serves; whether some of it was carried over for that, or was of an earlier session; and of which sequence
/// and number it is.
type Promoted = (Vec<u8>, bool, bool, (Uuid, u64));

/// One client: one write at a time, each on another disk than the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Client {
    disk: usize,
    outstanding: bool,
}

fn name_of(disk: usize) -> String {
    format!("disk{disk}")
}

impl World {
    fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = Rng::new(seed ^ 0xd15c_0000);
        let mut plan = Plan::from_seed(&mut rng, sabotage, Aim::Follow);
        plan.config.handover.arbiter = None;
        plan.config.handover.how = crate::arbiter::Switchover::Safe;
        let count = 2 + rng.below(2) as usize;
        let mut disks = Vec::new();
        let mut content = Vec::new();
        for number in 0..count {
            let mut hosts = [Host::new(plan.size), Host::new(plan.size)];
            let source = &mut hosts[SOURCE];
            source.record = Some(Ownership::first(Uuid::from_u128(1 + number as u128)));
            source.front = Front::Serving;
            source.image = true;
            for at in (0..plan.size - 4096).step_by(8192) {
                let tag = (1_000_000_000 * (number as u64 + 1) + at as u64).to_le_bytes();
                source.disk.write(at as u64, &tag.repeat(512));
            }
            source.disk.flushed(u64::MAX);
            content.extend_from_slice(&source.disk.now);
            disks.push(Disk {
                hosts,
                net: Network::new(Micros([100, 1000, 8000][rng.below(3) as usize])),
                tracker: None,
                sources: 0,
                appended_at: Micros(0),
                back: None,
            });
        }
        // Longer than a few round trips, so that some attempts get as far as they can.
        plan.config.handover.give_up_after = Micros::from_millis(300);
        plan.fault_until = Micros::from_secs(1) + Micros::from_millis(rng.between(300, 2500));
        plan.fault_gap = Micros::from_millis(200);
        let history = History {
            ledger: Ledger::new(&content),
            moments: Moments::default(),
            sequence: Arc::default(),
            current: Uuid::nil(),
            life: 0,
            of: BTreeMap::new(),
            next_tag: 0,
            ended_at: None,
            parting: None,
        };
        let mut world = Self {
            now: Micros::from_secs(1),
            events: BTreeMap::new(),
            count: 0,
            rng,
            plan,
            disks,
            record: None,
            writing: None,
            gathering: Gathering::new(GROUP, None),
            history,
            clients: vec![Client::default(); 3],
            stats: Stats::default(),
            home: false,
            still_until: [Micros(0); 2],
            failed: None,
        };
        if world.rng.percent(30) {
            world.come_from_home();
        }
        for client in 0..world.clients.len() {
            world.after(Micros(client as u64 * 100), Event::Client(client));
        }
        world.after(Micros(1), Event::Restart(TARGET));
        world.after(Micros::from_millis(5), Event::Operator);
        world.after(Micros::from_millis(10), Event::Fault);
        world
    }

    fn after(&mut self, span: Micros, event: Event) {
        self.count += 1;
        self.events.insert((self.now + span, self.count), event);
    }

    fn at(&mut self, at: Micros, event: Event) {
        self.count += 1;
        self.events.insert((at.max(self.now), self.count), event);
    }

    fn failure(&mut self, what: &str) {
        if self.failed.is_none() {
            self.failed = Some(format!("at {} us: {what}", self.now.0));
        }
    }

    fn calm(&self) -> bool {
        self.now >= self.plan.fault_until
    }

    /// Run to the end: until a moment of the group holds all that was ever written, and, of some seeds, until all disks have
    /// been handed over then.
    fn run(mut self) -> (Stats, Result<(), String>) {
        let limit = self.plan.fault_until + Micros::from_secs(60);
        let mut steps = 0_u64;
        while let Some(((at, count), event)) = self.events.pop_first() {
            self.now = at;
            if let Some(until) = self.waits(&event) {
                self.events.insert((until, count), event);
                continue;
            }
            steps += 1;
            if std::env::var_os("DISKFERRY_TRACE").is_some() {
                eprintln!("{:>10} {event:?}", self.now.0);
            }
            self.step(event);
            if self.failed.is_some() || self.is_done() {
                break;
            }
            let parting = self.history.parting.as_ref();
            if parting.map_or(at > limit, |parting| parting.is_late(at)) || steps > 2_000_000 {
                let record = self.record.as_ref().map(|record| record.cut);
                let last = self.history.sequence.last();
                self.failure(&format!("no end: recorded {record:?} of {last}"));
                break;
            }
        }
        let result = self.failed.take().map_or(Ok(()), Err);
        (self.stats, result)
    }

    /// After the faults nobody writes, and the group's record gets there.
    fn is_all_recorded(&mut self) -> bool {
        let still = |disk: &Disk| {
            !disk.hosts[SOURCE].serving_now() && disk.hosts[SOURCE].waiting.is_empty()
        };
        if self.calm() && self.history.ended_at.is_none() && self.disks.iter().all(still) {
            self.history.ended_at = Some(self.history.sequence.last());
        }
        // After a crash of the source clients write before the next session begins: no number says so.
        let untapped = |disk: &Disk| disk.hosts[SOURCE].tap.is_none();
        let (Some(end), Some(record)) = (self.history.ended_at, &self.record) else {
            return false;
        };
        let current = |session| self.history.of.get(&session) == Some(&self.history.current);
        record.cut >= end
            && record.cut >> 40 == self.history.life
            && !self.disks.iter().any(untapped)
            && record.disks.iter().all(|member| current(member.session))
            && self.disks.iter().all(|disk| is_joined(&disk.hosts[TARGET]))
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Client(client) => self.client_acts(client),
            Event::Effect(disk, side, life, id) => self.op_effect((disk, side), life, id),
            Event::Done(disk, side, life, id) => self.op_done((disk, side), life, id),
            Event::ConnUp(disk, conn, life) => self.conn_up(disk, conn, life),
            Event::ConnClosed(disk, side, life, conn) => self.conn_closed((disk, side), life, conn),
            Event::Deliver(disk, conn, way, message) => self.deliver(disk, conn, way, *message),
            Event::Wake(disk, side, life) => self.wake(disk, side, life),
            Event::Attached(disk, life) if life == self.disks[disk].hosts[SOURCE].life => {
                self.source_event(disk, SourceEvent::Attached(Ok(())));
            }
            Event::Held(disk, life, attempt) if life == self.disks[disk].hosts[SOURCE].life => {
                self.source_event(disk, SourceEvent::Held(attempt));
            }
            Event::OfGroup(disk, life, event) if life == self.disks[disk].hosts[TARGET].life => {
                self.target_event(disk, *event);
            }
            Event::GroupEffect(life) if life == self.disks[0].hosts[TARGET].life => {
                self.group_effect();
            }
            Event::GroupDone(life, ok) if life == self.disks[0].hosts[TARGET].life => {
                self.writing = None;
                self.stats.recorded += u64::from(ok);
                self.tell_group(|all| all.recorded(ok));
            }
            Event::Back(disk, life) => self.disk_is_back(disk, life),
            Event::Attached(..)
            | Event::Held(..)
            | Event::OfGroup(..)
            | Event::GroupEffect(_)
            | Event::GroupDone(..) => {}
            Event::Operator => self.operator(),
            Event::Fault => self.fault(),
            Event::Heal(disk) => self.disks[disk].net.heal(),
            Event::Restart(side) => self.restart(side),
            Event::Crash(side, power) => self.crash(side, power),
        }
    }

    /// The last number is about to be followed by another, or by none.
    fn keep_moment(&mut self) {
        let last = self.history.sequence.last();
        self.history.moments.keep(last, &self.history.ledger);
    }

    /// A client writes to another disk than the one it had an acknowledgement of last.
    fn client_acts(&mut self, client: usize) {
        if self.calm() || self.clients[client].outstanding {
            return;
        }
        let count = self.disks.len();
        let disk =
            (self.clients[client].disk + 1 + self.rng.below(count as u64 - 1) as usize) % count;
        self.clients[client] = Client {
            disk,
            outstanding: true,
        };
        let sectors = (self.plan.size / 512) as u64;
        let hot = self.rng.percent(60);
        let first = self.rng.below(if hot { 24 } else { sectors });
        let longest = if self.rng.percent(70) { 4 } else { 24 };
        let len = (1 + self.rng.below(longest)).min(sectors - first) * 512;
        self.history.next_tag += 1;
        let mut tag = self.history.next_tag;
        let want = if self.rng.percent(10) {
            tag = 0;
            Want::Zero(first * 512, len)
        } else {
            let data = Bytes::from(tag.to_le_bytes().repeat(len as usize / 8));
            Want::Write(first * 512, data)
        };
        let request = Request { client, want, tag };
        let waiting = &mut self.disks[disk].hosts[SOURCE].waiting;
        waiting.push_back(request);
        self.start_waiting(disk);
    }

    fn start_waiting(&mut self, disk: usize) {
        let host = &mut self.disks[disk].hosts[SOURCE];
        if !host.up || host.front != Front::Serving {
            return;
        }
        let waiting: VecDeque<Request> = std::mem::take(&mut host.waiting);
        for request in waiting {
            let Some((at, len)) = request.want.changes() else {
                continue;
            };
            let host = &mut self.disks[disk].hosts[SOURCE];
            let earlier = host.waiting.iter().filter_map(|other| other.want.changes());
            let meets = earlier.into_iter().any(|(a, l)| a < at + len && at < a + l);
            if meets || host.overlaps(at, len) {
                host.waiting.push_back(request);
                continue;
            }
            let tapped = host.tap.is_some();
            let doing = match &request.want {
                Want::Write(at, data) => Doing::Write(*at, data.clone()),
                _ => Doing::Zero(at, len),
            };
            let places = self
                .history
                .ledger
                .begin(self.place(disk, at), len, request.tag);
            self.disks[disk].hosts[SOURCE].kept.change(at, len);
            let asked = Asked::Client(request, places, Vec::new(), tapped);
            self.begin_op((disk, SOURCE), asked, doing, self.now);
        }
    }

    /// Where a place of a disk is among those of all disks.
    fn place(&self, disk: usize, at: u64) -> u64 {
        disk as u64 * self.plan.size as u64 + at
    }

    fn client_op_done(&mut self, disk: usize, op: &Op) {
        let Asked::Client(request, places, _, tapped) = &op.asked else {
            return;
        };
        if *tapped {
            self.keep_moment();
            self.disks[disk].hosts[SOURCE].tell_tap(&request.want);
        }
        if let Some((at, len)) = request.want.changes() {
            let at = self.place(disk, at);
            self.history.ledger.ack(at, len, places);
            self.stats.acked += 1;
        }
        self.client_free(request.client);
        self.start_waiting(disk);
    }

    fn client_free(&mut self, client: usize) {
        self.clients[client].outstanding = false;
        let pause = Micros(self.rng.below(self.plan.think.0));
        self.after(pause, Event::Client(client));
    }

    /// The user: mirrors all disks together, tries to hand one over, cancels.
    fn operator(&mut self) {
        let next = Micros(self.rng.between(5_000, 60_000));
        self.after(next, Event::Operator);
        if !self.disks[0].hosts[SOURCE].up {
            return;
        }
        let over = |disk: &Disk| match &disk.hosts[SOURCE].machine {
            Machine::Source(source) => source.is_over(),
            _ => true,
        };
        let awaited = self.disks.iter().any(|disk| disk.back.is_some());
        if self.disks.iter().all(over) && !awaited {
            self.start_sessions();
            return;
        }
        if self.history.parting.is_some() {
            return self.part();
        }
        let disk = self.rng.below(self.disks.len() as u64) as usize;
        if self.calm() {
            return;
        }
        if self.rng.percent(4) {
            let max_pause = Some(Micros::from_secs(3600));
            let how = None;
            let command = crate::session::Command::Cutover { max_pause, how };
            self.source_event(disk, SourceEvent::Command(command));
        } else if self.rng.below(200) == 0 {
            let command = crate::session::Command::Cancel;
            self.source_event(disk, SourceEvent::Command(command));
        }
    }

    /// What a promotion of all disks would serve, and how much of that was carried over, and where it is; `None` where it is
    /// refused. `power`: the power of the target goes first.
    fn promoted(&mut self, power: bool) -> Option<Promoted> {
        let record = self.record.clone()?;
        let (mut all, mut replayed, mut inherited) = (Vec::new(), false, false);
        if record.disks.len() < self.disks.len() && self.plan.sabotage.is_none() {
            self.failure("a moment of fewer disks than there are");
        }
        let sessions = record.disks.iter();
        let counted: Vec<Uuid> = sessions
            .filter_map(|one| self.history.of.get(&one.session).copied())
            .collect();
        for (number, disk) in self.disks.iter().enumerate() {
            let host = &disk.hosts[TARGET];
            let Some(State::Following {
                session,
                group: Some(Membership { joined: true, .. }),
                ..
            }) = host.record.as_ref().map(|record| &record.state)
            else {
                return None;
            };
            let (mut content, mut journal) = (host.disk.clone(), host.journal.clone());
            if power && host.up {
                content.power_cut(&mut self.rng);
                journal.power_cut(&mut self.rng);
            }
            let upto = match record.cut_of(&name_of(number)) {
                Some((of, cut)) if of == *session => Upto::Cut(cut),
                _ => {
                    inherited = true;
                    Upto::Nothing
                }
            };
            let (promoted, _) = journal.promoted(&content.now, upto);
            replayed |= promoted != content.now;
            all.extend_from_slice(&promoted);
        }
        let first = *counted.first()?;
        if counted.iter().any(|other| *other != first) {
            self.failure("a moment of disks that count by different sequences");
        }
        Some((all, replayed, inherited, (first, record.cut)))
    }

    /// Hold what a promotion would serve now against what all disks held at that number.
    fn check_promotion(&mut self, power: bool) {
        if self.history.parting.is_some() {
            return self.check_rest(power);
        }
        let Some((content, replayed, inherited, at)) = self.promoted(power) else {
            self.stats.refused += 1;
            return;
        };
        let last = (self.history.current == at.0).then(|| self.history.sequence.last());
        let checked = self
            .history
            .moments
            .check(at, last, &self.history.ledger, &content);
        match checked {
            None => self.failure(&format!("nothing is known of the moment {at:?}")),
            Some(Err(e)) => self.failure(&format!("a promotion at {at:?}: {e}")),
            Some(Ok(())) => {
                self.stats.promoted += 1;
                self.stats.replayed += u64::from(replayed);
                self.stats.inherited += u64::from(inherited);
            }
        }
    }
}

/// Whether what that host has of a disk is at the moment that the group's record names.
fn is_joined(host: &Host) -> bool {
    let state = host.record.as_ref().map(|record| &record.state);
    matches!(
        state,
        Some(State::Following {
            group: Some(Membership { joined: true, .. }),
            ..
        })
    )
}
