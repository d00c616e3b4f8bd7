//! Connections between the hosts: each direction in order, all else by chance.
//!
//! Must never deliver anything of a connection that is dead in that direction.

use std::collections::BTreeMap;

use super::rng::Rng;
use crate::clock::Micros;
use crate::session::ConnId;
use crate::wire::{self, Decoder, Message};

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) lane: u16,
    /// Nothing more arrives at the target, at the source.
    pub(super) dead: [bool; 2],
    /// When the last message of each direction arrives.
    last: [Micros; 2],
    delay: Micros,
}

#[derive(Debug)]
pub(super) struct Network {
    pub(super) conns: BTreeMap<ConnId, Conn>,
    /// Nothing gets through to the target, to the source.
    pub(super) blocked: [bool; 2],
    pub(super) delay: Micros,
}

/// Direction of a message.
pub(super) const TO_TARGET: usize = 0;
/// Direction of a message.
pub(super) const TO_SOURCE: usize = 1;

impl Network {
    pub(super) fn new(delay: Micros) -> Self {
        Self {
            conns: BTreeMap::new(),
            blocked: [false; 2],
            delay,
        }
    }

    pub(super) fn open(&mut self, conn: ConnId, lane: u16, rng: &mut Rng) {
        let delay = Micros(rng.between(self.delay.0 / 2, self.delay.0 * 2 + 1));
        let dead = [false; 2];
        self.conns.insert(
            conn,
            Conn {
                lane,
                dead,
                last: [Micros(0); 2],
                delay,
            },
        );
    }

    /// When a message sent now arrives; `None` when it never will.
    pub(super) fn send(
        &mut self,
        conn: ConnId,
        way: usize,
        now: Micros,
        rng: &mut Rng,
    ) -> Option<Micros> {
        let conn = self.conns.get_mut(&conn)?;
        if conn.dead[way] {
            return None;
        }
        let mut jitter = rng.below(conn.delay.0 / 2 + 1);
        if rng.percent(2) {
            jitter += rng.below(conn.delay.0 * 20 + 1);
        }
        let at = (now + conn.delay + Micros(jitter)).max(conn.last[way]);
        conn.last[way] = at;
        Some(at)
    }

    pub(super) fn arrives(&self, conn: ConnId, way: usize) -> bool {
        !self.blocked[way] && self.conns.get(&conn).is_some_and(|c| !c.dead[way])
    }

    /// Nothing gets through for a while, or nothing in one direction.
    pub(super) fn block(&mut self, rng: &mut Rng) {
        self.blocked = [[true, true], [true, false], [false, true]][rng.below(3) as usize];
    }

    pub(super) fn heal(&mut self) {
        self.blocked = [false; 2];
    }

    /// Whether connections can be made.
    pub(super) fn is_whole(&self) -> bool {
        self.blocked == [false; 2]
    }

    /// A message is lost: a stream never skips, so it is the last one in that direction. Whether the ends hear of it, once
    /// it was sent in vain often enough: the silence of an ordered lane they find by beats, that of another in time.
    pub(super) fn lose(&mut self, conn: ConnId, way: usize, rng: &mut Rng) -> bool {
        let Some(conn) = self.conns.get_mut(&conn) else {
            return false;
        };
        conn.dead[way] = true;
        rng.percent(if conn.lane > 0 { 95 } else { 50 })
    }

    pub(super) fn kill(&mut self, conn: ConnId) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.dead = [true; 2];
        }
    }

    pub(super) fn kill_all(&mut self) -> Vec<ConnId> {
        let all: Vec<ConnId> = self.conns.keys().copied().collect();
        for conn in &all {
            self.kill(*conn);
        }
        all
    }
}

/// Through the codec, as on a real link.
pub(super) fn through_the_codec(message: &Message) -> Message {
    let frame = wire::encode(message);
    let mut decoder = Decoder::default();
    decoder.feed(&frame.head);
    decoder.feed(&frame.payload);
    match decoder.next() {
        Ok(Some(message)) => message,
        other => panic!("{message:?} did not come through the codec: {other:?}"),
    }
}
