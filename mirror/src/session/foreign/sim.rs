//! A source, its clients and a server that knows nothing of moves, in one thread, from one seed.
//!
//! The server does requests in any order, loses what was not flushed when it crashes, may still do what it was sent over a
//! connection that was lost (for less than [`SETTLE`]), and refuses now and then. The source crashes too. Checked is, at
//! the commit point, that clients are held, and that the server has this disk, durably, whatever it does from then on; and
//! that there is never a second owner.

mod server;

use std::sync::Arc;

use uuid::Uuid;
use vdisk::engine::Extent;
use vdisk::tap::{Change, WriteTap as _};
use vdisk::units::GuestOffset;

use self::server::{Content, Request, Server, bytes_of, granules};
use super::pieces::Kind;
use super::{Foreign, ForeignAbilities, ForeignAction, ForeignEvent, ForeignExport, Link, SETTLE};
use crate::GRANULE;
use crate::chance::Rng;
use crate::clock::Micros;
use crate::record::{Ownership, State};
use crate::seeds::seeds;
use crate::session::{OpId, SourceConfig};
use crate::tracker::Tracker;
use crate::wire::{DiskDescription, DiskFormat};

/// A rule that a test breaks on purpose, to see that the simulation notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// F1: two changes of one byte are under way.
    TwoAtOnce,
    /// F2: what was not answered is taken for done.
    ForgetFlying,
    /// F2: what was not flushed is taken for durable.
    ForgetVolatile,
    /// F3: a flush covers what was answered after it was asked for.
    FlushCoversAll,
    /// F4: data is copied while parts wait to be made zero.
    DataBeforeZeroes,
    /// F5: the disk is handed over without the last flush.
    CommitUnflushed,
    /// F5: clients are sent away before the record is durable.
    ForwardBeforeRecord,
    /// F6: the server is written to at once after a lost connection.
    NoRest,
}

type Lost = Vec<(Kind, u64, u64)>;

impl Foreign {
    pub(super) fn is_broken(&self, rule: Broken) -> bool {
        self.end.broken == Some(rule)
    }

    pub(super) fn forget(&mut self, lost: (Lost, Lost), now: Micros) -> (Lost, Lost) {
        if self.is_broken(Broken::NoRest) {
            self.link.1 = Link::Down(now);
        }
        let (mut volatile, mut flying) = lost;
        if self.is_broken(Broken::ForgetVolatile) {
            volatile.clear();
        }
        if self.is_broken(Broken::ForgetFlying) {
            flying.clear();
        }
        (volatile, flying)
    }

    pub(super) fn flush_too_much(&mut self) {
        if self.is_broken(Broken::FlushCoversAll) {
            self.pieces.forget_answered();
        }
    }
}

const GRANULES: u64 = 48;
const SIZE: u64 = GRANULES * GRANULE;
/// Steps after which a run is taken for one that never ends.
const MOST_STEPS: u64 = 60_000;

struct World {
    rng: Rng,
    now: Micros,
    machine: Foreign,
    tracker: Arc<Tracker>,
    disk: Content,
    /// Writes under way: the granule, and whether the disk has it.
    clients: Vec<(usize, u64, bool)>,
    held: Option<u64>,
    server: Server,
    record: Ownership,
    /// What is on its way back to the machine.
    coming: Vec<Coming>,
    faults: (u64, Option<Broken>),
    versions: u64,
}

enum Coming {
    Event(ForeignEvent),
    Read(OpId, u64, u32),
    /// What is allocated, as it was when it was asked, or as it is.
    Status(OpId, u64, u64, Option<Vec<Extent>>),
    Persist(Ownership),
}

impl World {
    fn new(seed: u64, broken: Option<Broken>) -> Self {
        let mut rng = Rng::new(seed);
        let content = |rng: &mut Rng| -> Content {
            (0..GRANULES)
                .map(|_| {
                    if rng.percent(40) {
                        0
                    } else {
                        1 + rng.below(50)
                    }
                })
                .collect()
        };
        let (disk, there) = (content(&mut rng), content(&mut rng));
        let can = ForeignAbilities {
            write: true,
            flush: rng.percent(80),
            zero: rng.percent(70),
            tell: rng.percent(70),
        };
        let record = Ownership::first(Uuid::from_u128(7));
        let (mut machine, tracker) = session(&mut rng, &record, (can, broken));
        // Nothing was there before it that the server could still be at work on.
        machine.link.1 = Link::Down(Micros(1));
        Self {
            now: Micros::from_secs(60),
            machine,
            tracker,
            disk,
            clients: Vec::new(),
            held: None,
            server: Server {
                link: 0,
                requests: Vec::new(),
                late: Vec::new(),
                visible: there.clone(),
                durable: there.clone(),
                answered: there,
                can,
            },
            record,
            coming: Vec::new(),
            faults: (rng.below(12), broken),
            versions: 1000,
            rng,
        }
    }

    fn run(mut self) -> Result<u64, String> {
        self.handle(ForeignEvent::Tick)?;
        for step in 0..MOST_STEPS {
            if self.machine.is_over() && self.coming.is_empty() {
                self.machine
                    .outcome()
                    .expect("it is over")
                    .as_ref()
                    .map_err(ToString::to_string)?;
                self.has_moved()?;
                return Ok(step);
            }
            if matches!(self.record.state, State::Released { .. }) && self.rng.percent(5) {
                // The source crashes after the commit point: what it finds is that the disk has moved.
                self.has_moved()?;
                return Ok(step);
            }
            if self.step()? {
                return Ok(step);
            }
        }
        Err(format!("it does not end: {:?}", self.machine.progress()))
    }

    /// Whether it is over.
    fn step(&mut self) -> Result<bool, String> {
        match self.rng.below(20) {
            0..=5 => self.deliver()?,
            6..=9 => self.serve()?,
            10..=14 => self.client()?,
            15 if self.rng.percent(25) && self.faults.0 > 0 => return self.fault(),
            _ => self.pass()?,
        }
        Ok(false)
    }

    /// Time passes.
    fn pass(&mut self) -> Result<(), String> {
        self.now += Micros::from_millis(self.rng.below(60));
        self.end_late();
        self.handle(ForeignEvent::Tick)
    }

    /// Do what was sent over lost connections, and is due.
    fn end_late(&mut self) {
        let mut late = std::mem::take(&mut self.server.late);
        late.retain(|request| {
            let due = request.until <= self.now;
            if due {
                self.server.end(&request.order, &request.answered);
            }
            !due
        });
        self.server.late = late;
    }

    fn deliver(&mut self) -> Result<(), String> {
        if self.coming.is_empty() {
            return Ok(());
        }
        let at = self.rng.below(self.coming.len() as u64) as usize;
        let event = match self.coming.swap_remove(at) {
            Coming::Event(event) => event,
            Coming::Read(op, offset, len) => {
                let data = bytes_of(&self.disk[granules(offset, len.into())]);
                ForeignEvent::Read(op, Ok(data))
            }
            Coming::Status(op, offset, len, early) => {
                let extents = early.unwrap_or_else(|| self.status(offset, len));
                ForeignEvent::Status(op, Ok(extents))
            }
            Coming::Persist(record) => {
                self.record = record;
                ForeignEvent::Persisted(Ok(()))
            }
        };
        self.handle(event)
    }

    /// What is allocated, some of it perhaps.
    fn status(&mut self, offset: u64, len: u64) -> Vec<Extent> {
        let mut range = granules(offset, len);
        if range.len() > 1 && self.rng.percent(50) {
            range.end = range.start + 1 + self.rng.below(range.len() as u64 - 1) as usize;
        }
        let extent = |granule: usize| Extent {
            len: GRANULE,
            allocated: self.disk[granule] != 0,
            zero: false,
        };
        range.map(extent).collect()
    }

    fn serve(&mut self) -> Result<(), String> {
        if self.server.requests.is_empty() {
            return Ok(());
        }
        let at = self.rng.below(self.server.requests.len() as u64) as usize;
        if !self.server.requests[at].done {
            let (order, answered) = {
                let request = &mut self.server.requests[at];
                request.done = true;
                (request.order.clone(), request.answered.clone())
            };
            self.server.apply(&order, &answered);
            return Ok(());
        }
        let request = self.server.requests.swap_remove(at);
        let answer = self.server.answer(&request.order);
        let event = ForeignEvent::Answered(self.server.link, request.op, Ok(answer));
        self.handle(event)
    }

    fn client(&mut self) -> Result<(), String> {
        if self.clients.is_empty() || self.rng.percent(30) {
            let granule = match self.rng.below(3) {
                0 => self.rng.below(GRANULES),
                _ => self.rng.below(6),
            } as usize;
            let busy = self.clients.iter().any(|(other, ..)| *other == granule);
            // Fewer when there are no faults any more, so that it can come to an end.
            let rests = self.faults.0 == 0 && self.rng.percent(90);
            if self.held.is_some() || busy || self.clients.len() > 3 || rests {
                return Ok(());
            }
            if matches!(self.record.state, State::Released { .. }) {
                return Err("a client writes here although the disk was handed over".into());
            }
            self.versions += 1;
            let version = if self.rng.percent(30) {
                0
            } else {
                self.versions
            };
            self.clients.push((granule, version, false));
            return Ok(());
        }
        let at = self.rng.below(self.clients.len() as u64) as usize;
        let (granule, version, there) = self.clients[at];
        if !there {
            self.disk[granule] = version;
            self.clients[at].2 = true;
            return Ok(());
        }
        self.clients.swap_remove(at);
        let change = match version {
            0 => Change::Zeroes(GRANULE),
            _ => Change::Data(bytes_of(&[version])),
        };
        self.tracker
            .changed(GuestOffset(granule as u64 * GRANULE), change);
        self.drained();
        Ok(())
    }

    fn drained(&mut self) {
        if let Some(attempt) = self.held
            && self.clients.is_empty()
        {
            self.coming.push(Coming::Event(ForeignEvent::Held(attempt)));
        }
    }

    /// Whether it is over with that.
    fn fault(&mut self) -> Result<bool, String> {
        self.faults.0 -= 1;
        match self.rng.below(5) {
            0 => return self.source_crashes(),
            1 => self.server_refuses()?,
            2 => self.server_crashes()?,
            _ => {
                self.cut();
                let link = self.server.link;
                self.handle(ForeignEvent::Lost(link, "cut".into()))?;
            }
        }
        Ok(false)
    }

    /// The connections end; what was sent may be done now, soon, or never.
    fn cut(&mut self) {
        for mut request in std::mem::take(&mut self.server.requests) {
            match self.rng.below(4) {
                _ if request.done => drop(self.server.answer(&request.order)),
                0 => {}
                1 => self.server.end(&request.order, &request.answered),
                _ => {
                    let rest = Micros(self.rng.below(SETTLE.0));
                    request.until = self.now + rest;
                    self.server.late.push(request);
                }
            }
        }
    }

    fn server_crashes(&mut self) -> Result<(), String> {
        if !self.server.can.flush && self.machine.switch.decided() {
            // Of such a server nothing is promised any more.
            return Ok(());
        }
        self.cut();
        self.server.late.clear();
        let server = &mut self.server;
        for (visible, durable) in server.visible.iter_mut().zip(&server.durable) {
            if self.rng.percent(50) {
                *visible = *durable;
            }
        }
        server.durable.clone_from(&server.visible);
        server.answered.clone_from(&server.visible);
        let link = server.link;
        self.handle(ForeignEvent::Lost(link, "crashed".into()))
    }

    fn server_refuses(&mut self) -> Result<(), String> {
        let Some(request) = self.server.requests.pop() else {
            return Ok(());
        };
        let link = self.server.link;
        let refused = ForeignEvent::Answered(link, request.op, Err("no".into()));
        self.handle(refused)
    }

    /// The session is lost with it, and begun anew unless the record says that the disk has moved: then it is over. Clients'
    /// writes under way are never answered.
    fn source_crashes(&mut self) -> Result<bool, String> {
        for coming in std::mem::take(&mut self.coming) {
            if let Coming::Persist(record) = coming
                && self.rng.percent(50)
            {
                self.record = record;
            }
        }
        self.clients.clear();
        self.held = None;
        if matches!(self.record.state, State::Released { .. }) {
            self.has_moved()?;
            return Ok(true);
        }
        self.cut();
        self.server.link += 1000;
        self.server.answered.clone_from(&self.server.visible);
        let what = (self.server.can, self.faults.1);
        (self.machine, self.tracker) = session(&mut self.rng, &self.record, what);
        self.machine.link.0 = self.server.link;
        self.handle(ForeignEvent::Tick)?;
        Ok(false)
    }

    fn handle(&mut self, event: ForeignEvent) -> Result<(), String> {
        self.machine.handle(self.now, event);
        while let Some(action) = self.machine.poll_action() {
            self.act(action)?;
        }
        Ok(())
    }

    fn act(&mut self, action: ForeignAction) -> Result<(), String> {
        let event = match action {
            ForeignAction::Open(link) => {
                self.server.link = link;
                let export = ForeignExport {
                    size: SIZE,
                    min_block: 1,
                    max_payload: 32 << 20,
                    can: self.server.can,
                };
                Coming::Event(ForeignEvent::Opened(link, Ok(export)))
            }
            ForeignAction::Close => {
                self.cut();
                return Ok(());
            }
            ForeignAction::Ask(op, order) => {
                self.server.requests.push(Request {
                    op,
                    order,
                    done: false,
                    answered: self.server.answered.clone(),
                    until: self.now,
                });
                return Ok(());
            }
            ForeignAction::AttachTap => Coming::Event(ForeignEvent::Attached),
            ForeignAction::DetachTap => return Ok(()),
            ForeignAction::Read(op, offset, len) => Coming::Read(op, offset, len),
            ForeignAction::Status(op, offset, len) => {
                let early = self.rng.percent(60).then(|| self.status(offset, len));
                Coming::Status(op, offset, len, early)
            }
            ForeignAction::Hold(attempt) => {
                self.held = Some(attempt);
                self.drained();
                return Ok(());
            }
            ForeignAction::Release => {
                self.held = None;
                let owner = matches!(self.record.state, State::Owner { .. });
                let decides = self.coming.iter().any(|c| matches!(c, Coming::Persist(_)));
                return (owner && !decides)
                    .then_some(())
                    .ok_or_else(|| "clients go on here although the disk may have moved".into());
            }
            ForeignAction::Park(_) => Coming::Event(ForeignEvent::Parked(Ok(()))),
            ForeignAction::Persist(record) => {
                self.has_moved()?;
                Coming::Persist(record)
            }
            ForeignAction::Forward => {
                return match self.record.state {
                    State::Released { .. } => self.has_moved(),
                    _ => Err("clients are sent away before the record says so".into()),
                };
            }
        };
        self.coming.push(event);
        Ok(())
    }

    /// Whether the server has the disk, for good, and nobody writes here.
    fn has_moved(&self) -> Result<(), String> {
        if !self.clients.is_empty() {
            return Err("a client still writes here".into());
        }
        let late = self.server.late.iter();
        let late: Vec<_> = late.map(|request| &request.order).collect();
        if self.server.visible != self.disk {
            let what = "the server has something else";
            return Err(format!("{what}: {:?} {:?}", self.server.visible, self.disk));
        }
        if self.server.can.flush && self.server.durable != self.disk {
            return Err("the server may lose what it has".into());
        }
        if late.is_empty() {
            return Ok(());
        }
        Err(format!("old requests are still under way: {late:?}"))
    }
}

fn session(
    rng: &mut Rng,
    record: &Ownership,
    (can, broken): (ForeignAbilities, Option<Broken>),
) -> (Foreign, Arc<Tracker>) {
    let description = DiskDescription {
        name: "disk".into(),
        size: SIZE,
        block_size: 1 << 20,
        logical_sector: 512,
        physical_sector: 4096,
        format: DiskFormat::Raw,
    };
    let mut config = SourceConfig::new(
        Uuid::from_u128(rng.next().into()),
        "nbd://there".into(),
        description,
    );
    config.handover.automatic = true;
    config.limits.chunk = 4 * GRANULE;
    config.limits.reads = 1 + rng.below(4) as usize;
    config.limits.window = 16 * GRANULE;
    let tracker = Arc::new(Tracker::with_regions(SIZE, 0, 8 * GRANULE));
    let machine = Foreign::new(config, record, Arc::clone(&tracker), !can.flush);
    let mut machine = machine.expect("this host owns the disk");
    machine.end.broken = broken;
    (machine, tracker)
}

#[test]
fn whatever_happens_the_server_has_the_disk_when_it_is_handed_over() {
    for seed in seeds(1000) {
        if let Err(e) = World::new(seed, None).run() {
            panic!("seed {seed} (run it alone with DISKFERRY_SEED={seed}): {e}");
        }
    }
}

#[test]
fn connections_of_which_one_is_lost_before_all_are_there_are_made_again() {
    let mut world = World::new(1, None);
    let machine = &mut world.machine;
    let mut tell = |millis, event| {
        machine.handle(world.now + Micros::from_millis(millis), event);
        let actions: Vec<_> = std::iter::from_fn(|| machine.poll_action()).collect();
        let opens = actions.iter().find_map(|action| match action {
            ForeignAction::Open(link) => Some(*link),
            _ => None,
        });
        (opens, machine.progress().connected)
    };
    let (first, _) = tell(0, ForeignEvent::Tick);
    let first = first.expect("connections");
    tell(1, ForeignEvent::Lost(first, "closed".into()));
    let export = ForeignExport {
        size: SIZE,
        min_block: 1,
        max_payload: 32 << 20,
        can: world.server.can,
    };
    let late = tell(2, ForeignEvent::Opened(first, Ok(export)));
    assert_eq!(late, (None, false));
    let (again, _) = tell(3 + SETTLE.0 / 1000, ForeignEvent::Tick);
    assert_eq!(again, Some(first + 1));
}

/// A check that cannot fail is none.
#[test]
fn a_rule_that_is_broken_is_noticed() {
    for rule in [
        Broken::TwoAtOnce,
        Broken::ForgetFlying,
        Broken::ForgetVolatile,
        Broken::FlushCoversAll,
        Broken::DataBeforeZeroes,
        Broken::CommitUnflushed,
        Broken::ForwardBeforeRecord,
        Broken::NoRest,
    ] {
        let found = (0..50_000).find_map(|seed| World::new(seed, Some(rule)).run().err());
        println!("{rule:?}: {found:?}");
        assert!(found.is_some(), "{rule:?} was never noticed");
    }
}
