//! Connections between the two hosts: they carry, are slow, break, and are heard of to break, or not.

use super::network::{TO_SOURCE, TO_TARGET, through_the_codec};
use super::world::{Event, SOURCE, TARGET, World};
use crate::clock::Micros;
use crate::session::{ConnId, SourceEvent, TargetEvent};
use crate::wire::{Begin, Message, Start};

impl World {
    /// A connection that the source at hand names so, by a name that no other source gives.
    pub(super) fn outside(&self, conn: ConnId) -> ConnId {
        ConnId(self.sources << 32 | conn.0)
    }

    /// Tell the source at hand of one of its connections.
    pub(super) fn with_inside(&mut self, conn: ConnId, event: impl FnOnce(ConnId) -> SourceEvent) {
        if conn.0 >> 32 == self.sources {
            self.source_event(event(ConnId(conn.0 & 0xffff_ffff)));
        }
    }

    pub(super) fn connect(&mut self, conn: ConnId, lane: u16) {
        let life = self.hosts[SOURCE].life;
        let span = Micros(self.rng.between(50, 2 * self.net.delay.0 + 60));
        if !self.net.is_whole() || !self.hosts[TARGET].up {
            self.after(span, Event::ConnClosed(SOURCE, life, conn));
        } else {
            self.net.open(conn, lane, &mut self.rng);
            self.after(span, Event::ConnUp(conn, life));
        }
    }

    pub(super) fn conn_up(&mut self, conn: ConnId, life: u64) {
        if self.hosts[SOURCE].life == life && self.net.arrives(conn, TO_SOURCE) {
            self.with_inside(conn, SourceEvent::Connected);
        }
    }

    /// One end closes; what it sent before still arrives, then the other end hears of it.
    pub(super) fn close(&mut self, conn: ConnId, end: usize) {
        let (mine, other) = if end == SOURCE {
            (TO_SOURCE, TARGET)
        } else {
            (TO_TARGET, SOURCE)
        };
        let at = self.net.send(conn, 1 - mine, self.now, &mut self.rng);
        let at = at.filter(|_| !self.net.blocked[1 - mine]);
        if let Some(state) = self.net.conns.get_mut(&conn) {
            state.dead[mine] = true;
        }
        let life = self.hosts[other].life;
        if let Some(at) = at {
            self.at(at, Event::ConnClosed(other, life, conn));
        }
    }

    pub(super) fn conn_closed(&mut self, host: usize, life: u64, conn: ConnId) {
        if self.hosts[host].life != life || !self.hosts[host].up {
            return;
        }
        self.net.kill(conn);
        if host == SOURCE {
            let why = "the connection ended";
            self.with_inside(conn, |conn| SourceEvent::Closed(conn, why.into()));
        } else {
            self.target_event(TargetEvent::Closed(conn));
        }
    }

    pub(super) fn send(&mut self, conn: ConnId, way: usize, message: &Message) {
        let matters = matches!(
            message,
            Message::Final(_)
                | Message::CommitRequest { .. }
                | Message::Grant { .. }
                | Message::Running { .. }
        );
        self.stats.taken += u64::from(matches!(
            message,
            Message::Begin(Begin {
                start: Start::Same,
                ..
            })
        ));
        let message = Box::new(through_the_codec(message));
        if let Some(at) = self.net.send(conn, way, self.now, &mut self.rng) {
            self.at(at, Event::Deliver(conn, way, message));
        }
        if matters {
            self.maybe_crash_soon();
        }
    }

    pub(super) fn deliver(&mut self, conn: ConnId, way: usize, message: Message) {
        let host = if way == TO_TARGET { TARGET } else { SOURCE };
        if self
            .net
            .conns
            .get(&conn)
            .is_none_or(|state| state.dead[way])
        {
            return;
        }
        if self.net.blocked[way] {
            let loud = self.net.lose(conn, way, &mut self.rng);
            return self.announce_both(conn, loud);
        }
        if !self.hosts[host].up {
            return self.net.kill(conn);
        }
        if way == TO_TARGET {
            self.target_event(TargetEvent::Message(conn, message));
        } else {
            self.with_inside(conn, |conn| SourceEvent::Message(conn, message));
        }
    }

    /// Every connection breaks; the ends hear of it, or not.
    pub(super) fn cut_all(&mut self, loud: bool) {
        for conn in self.net.kill_all() {
            self.announce_cut(conn, loud);
        }
        self.stats.cuts += 1;
    }

    pub(super) fn announce_cut(&mut self, conn: ConnId, loud: bool) {
        for host in [SOURCE, TARGET] {
            if loud && self.rng.percent(80) {
                let life = self.hosts[host].life;
                let span = Micros(self.rng.below(20_000));
                self.after(span, Event::ConnClosed(host, life, conn));
            }
        }
    }

    pub(super) fn announce_both(&mut self, conn: ConnId, loud: bool) {
        if !loud {
            return;
        }
        for host in [SOURCE, TARGET] {
            let life = self.hosts[host].life;
            let span = Micros(self.rng.below(20_000));
            self.after(span, Event::ConnClosed(host, life, conn));
        }
    }
}
