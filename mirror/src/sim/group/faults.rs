//! What breaks: links, disk by disk, and the processes and the power of both hosts.

use super::super::host::{Asked, Doing, Front, Machine};
use super::super::network::{TO_SOURCE, TO_TARGET, through_the_codec};
use super::super::world::{SOURCE, TARGET};
use super::{Event, World};
use crate::clock::Micros;
use crate::session::{ConnId, SourceEvent, TargetEvent};
use crate::wire::Message;

impl World {
    /// A connection that the source at hand names so, by a name that no other source of the disk gives.
    pub(super) fn outside(&self, disk: usize, conn: ConnId) -> ConnId {
        ConnId(self.disks[disk].sources << 32 | conn.0)
    }

    fn with_inside(
        &mut self,
        disk: usize,
        conn: ConnId,
        event: impl FnOnce(ConnId) -> SourceEvent,
    ) {
        if conn.0 >> 32 == self.disks[disk].sources {
            self.source_event(disk, event(ConnId(conn.0 & 0xffff_ffff)));
        }
    }

    pub(super) fn connect(&mut self, disk: usize, conn: ConnId, lane: u16) {
        let state = &mut self.disks[disk];
        let life = state.hosts[SOURCE].life;
        let span = Micros(self.rng.between(50, 2 * state.net.delay.0 + 60));
        if !state.net.is_whole() || !state.hosts[TARGET].up {
            self.after(span, Event::ConnClosed(disk, SOURCE, life, conn));
        } else {
            state.net.open(conn, lane, &mut self.rng);
            self.after(span, Event::ConnUp(disk, conn, life));
        }
    }

    pub(super) fn conn_up(&mut self, disk: usize, conn: ConnId, life: u64) {
        let state = &self.disks[disk];
        if state.hosts[SOURCE].life == life && state.net.arrives(conn, TO_SOURCE) {
            self.with_inside(disk, conn, SourceEvent::Connected);
        }
    }

    /// One end closes; what it sent before still arrives, then the other end hears of it.
    pub(super) fn close(&mut self, (disk, side): (usize, usize), conn: ConnId) {
        let (mine, other) = if side == SOURCE {
            (TO_SOURCE, TARGET)
        } else {
            (TO_TARGET, SOURCE)
        };
        let net = &mut self.disks[disk].net;
        let at = net.send(conn, 1 - mine, self.now, &mut self.rng);
        let at = at.filter(|_| !net.blocked[1 - mine]);
        if let Some(state) = net.conns.get_mut(&conn) {
            state.dead[mine] = true;
        }
        let life = self.disks[disk].hosts[other].life;
        if let Some(at) = at {
            self.at(at, Event::ConnClosed(disk, other, life, conn));
        }
    }

    pub(super) fn conn_closed(&mut self, (disk, side): (usize, usize), life: u64, conn: ConnId) {
        let host = &self.disks[disk].hosts[side];
        if host.life != life || !host.up {
            return;
        }
        self.disks[disk].net.kill(conn);
        if side == SOURCE {
            let why = "the connection ended";
            self.with_inside(disk, conn, |conn| SourceEvent::Closed(conn, why.into()));
        } else {
            self.target_event(disk, TargetEvent::Closed(conn));
        }
    }

    pub(super) fn send(&mut self, disk: usize, conn: ConnId, (way, message): (usize, &Message)) {
        let message = Box::new(through_the_codec(message));
        let net = &mut self.disks[disk].net;
        if let Some(at) = net.send(conn, way, self.now, &mut self.rng) {
            self.at(at, Event::Deliver(disk, conn, way, message));
        }
    }

    pub(super) fn deliver(&mut self, disk: usize, conn: ConnId, way: usize, message: Message) {
        let side = if way == TO_TARGET { TARGET } else { SOURCE };
        let state = &mut self.disks[disk];
        if state.net.conns.get(&conn).is_none_or(|conn| conn.dead[way]) {
            return;
        }
        if state.net.blocked[way] {
            if state.net.lose(conn, way, &mut self.rng) {
                self.announce(disk, conn);
            }
            return;
        }
        if !state.hosts[side].up {
            return state.net.kill(conn);
        }
        if way == TO_TARGET {
            self.target_event(disk, TargetEvent::Message(conn, message));
        } else {
            self.with_inside(disk, conn, |conn| SourceEvent::Message(conn, message));
        }
    }

    /// Both ends hear that a connection is gone.
    fn announce(&mut self, disk: usize, conn: ConnId) {
        for side in [SOURCE, TARGET] {
            let life = self.disks[disk].hosts[side].life;
            let span = Micros(self.rng.below(20_000));
            self.after(span, Event::ConnClosed(disk, side, life, conn));
        }
    }

    /// Every connection of that disk breaks; the ends hear of it, or not.
    fn cut(&mut self, disk: usize, loud: bool) {
        for conn in self.disks[disk].net.kill_all() {
            for side in [SOURCE, TARGET] {
                if loud && self.rng.percent(80) {
                    let life = self.disks[disk].hosts[side].life;
                    let span = Micros(self.rng.below(20_000));
                    self.after(span, Event::ConnClosed(disk, side, life, conn));
                }
            }
        }
    }

    pub(super) fn maybe_crash_soon(&mut self) {
        if !self.breaks() {
            return;
        }
        let span = Micros(self.rng.below(self.plan.op_time.0 * 3));
        if self.plan.crashes && self.rng.percent(70) {
            let often = if self.history.parting.is_some() {
                50
            } else {
                15
            };
            let side = [TARGET, SOURCE][usize::from(self.rng.percent(often))];
            let power = self.plan.power && self.rng.percent(60);
            self.after(span, Event::Crash(side, power));
        } else if self.plan.cuts {
            let disk = self.rng.below(self.disks.len() as u64) as usize;
            self.cut(disk, true);
        }
    }

    pub(super) fn fault(&mut self) {
        self.check_promotion(true);
        if self.calm() {
            self.disks.iter_mut().for_each(|disk| disk.net.heal());
            return;
        }
        let next = Micros(self.rng.between(5_000, self.plan.fault_gap.0));
        self.after(next, Event::Fault);
        let disk = self.rng.below(self.disks.len() as u64) as usize;
        match self.rng.below(10) {
            0..=1 if self.plan.cuts => self.cut(disk, true),
            2 if self.plan.cuts => self.cut(disk, false),
            3..=4 if self.plan.cuts => {
                self.disks[disk].net.block(&mut self.rng);
                let span = Micros(self.rng.between(1_000, 600_000));
                self.after(span, Event::Heal(disk));
            }
            5..=6 if self.plan.crashes => {
                let side = if self.rng.percent(15) { SOURCE } else { TARGET };
                let power = self.plan.power && self.rng.percent(60);
                self.crash(side, power);
            }
            7 => self.stand_still(),
            _ => {}
        }
    }

    /// The process or the power of a host ends, for all disks at once.
    pub(super) fn crash(&mut self, side: usize, power: bool) {
        if !self.disks[0].hosts[side].up || !self.may_crash() {
            return;
        }
        // What nobody has flushed is in no moment's way then.
        let power = power && !(side == SOURCE && self.history.parting.is_some());
        self.stats.crashes += 1;
        self.still_until[side] = Micros(0);
        self.keep_moment();
        let mut free = Vec::new();
        for disk in 0..self.disks.len() {
            self.disks[disk].back.take_if(|_| side == SOURCE);
            let host = &mut self.disks[disk].hosts[side];
            host.up = false;
            host.life += 1;
            if let Machine::Source(source) = std::mem::replace(&mut host.machine, Machine::None) {
                self.stats.given_up += source.progress().given_up;
                self.stats.fallen_back += source.progress().fallen_back;
            }
            host.front = Front::Closed;
            host.tap = None;
            host.attaching = None;
            let ops = std::mem::take(&mut host.ops);
            let waiting = std::mem::take(&mut host.waiting);
            free.extend(waiting.into_iter().map(|request| request.client));
            let mut ended = false;
            for (_, mut op) in ops {
                let appends = matches!(&op.doing, Doing::Journal(op) if op.appends());
                while op.effects > 0 && !(appends && ended) && self.rng.percent(50) {
                    host.effect(&mut op, &mut self.rng);
                }
                ended |= appends && op.effects > 0;
                if let Asked::Client(request, ..) = &op.asked {
                    free.push(request.client);
                }
            }
            if power {
                host.disk.power_cut(&mut self.rng);
                host.journal.power_cut(&mut self.rng);
            } else {
                host.journal.cut_off();
            }
        }
        if side == TARGET && self.rng.percent(50) {
            self.group_effect();
        }
        self.writing.take_if(|_| side == TARGET);
        self.check_promotion(true);
        self.after_source_crash(side, power);
        for client in free {
            self.client_free(client);
        }
        for disk in 0..self.disks.len() {
            self.cut(disk, true);
        }
        let span = Micros(self.rng.between(1_000, 300_000));
        self.after(span, Event::Restart(side));
    }

    /// Nothing has a number for a while. After a power cut what the source's disks hold is all that counts from now on.
    fn after_source_crash(&mut self, side: usize, power: bool) {
        if side != SOURCE {
            return;
        }
        self.history.moments.freeze(&self.history.ledger);
        if !power {
            return;
        }
        let content = self.at_source();
        self.history.ledger.restart_from(&content);
        self.check_promotion(true);
    }
}
