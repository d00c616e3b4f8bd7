//! The source's side of the link: one ordered lane, bulk lanes, incarnations, heartbeats.
//!
//! Must never decide what is sent, only over what.

use super::ConnId;
use crate::clock::Micros;

/// How often each side says that it lives when it has nothing else to say.
pub(super) const BEAT_EVERY: Micros = Micros::from_millis(250);
/// Silence of the target after which the source opens fresh connections.
///
/// Only the target's beats count, and nothing bulky travels in their direction: a link that is slow
/// because it is full is not taken for one that is dead.
const DEAD_AFTER: Micros = Micros::from_millis(800);
/// How long a connection may take to be there.
const CONNECT_WITHIN: Micros = Micros::from_secs(5);
/// A bulk lane with chunks on it and no acknowledgement for so long is opened anew.
const LANE_DEAD_AFTER: Micros = Micros::from_secs(30);
const RETRY_FIRST: Micros = Micros::from_millis(50);
const RETRY_MOST: Micros = Micros::from_secs(2);

/// How far the ordered lane has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Down,
    Connecting(ConnId),
    /// The greeting is sent.
    Greeting(ConnId),
    /// Greeted; what follows was asked for.
    Beginning(ConnId),
    Up(ConnId),
}

/// What the link wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkAction {
    Connect(ConnId, u16),
    Close(ConnId),
}

#[derive(Debug)]
struct Bulk {
    conn: Option<ConnId>,
    ready: bool,
    retry_at: Micros,
    /// Bytes on the way, and when the last of them was acknowledged.
    load: u64,
    moved_at: Micros,
}

#[derive(Debug)]
pub(super) struct Link {
    control: Control,
    bulk: Vec<Bulk>,
    next_conn: u64,
    incarnation: u64,
    heard: Micros,
    spoke: Micros,
    retry_at: Micros,
    retry_after: Micros,
}

impl Link {
    pub(super) fn new(lanes: u16) -> Self {
        let bulk = (0..lanes.max(1))
            .map(|_| Bulk {
                conn: None,
                ready: false,
                retry_at: Micros(0),
                load: 0,
                moved_at: Micros(0),
            })
            .collect();
        Self {
            control: Control::Down,
            bulk,
            next_conn: 0,
            incarnation: 0,
            heard: Micros(0),
            spoke: Micros(0),
            retry_at: Micros(0),
            retry_after: RETRY_FIRST,
        }
    }

    /// They are counted from there on. To be said before the first one.
    pub(super) fn count_from(&mut self, incarnation: u64) {
        self.incarnation = incarnation;
    }

    pub(super) fn control(&self) -> Control {
        self.control
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.control, Control::Up(_))
    }

    /// The ordered lane's connection once it was greeted or is being greeted.
    pub(super) fn control_conn(&self) -> Option<ConnId> {
        match self.control {
            Control::Down => None,
            Control::Connecting(c)
            | Control::Greeting(c)
            | Control::Beginning(c)
            | Control::Up(c) => Some(c),
        }
    }

    fn fresh(&mut self) -> ConnId {
        self.next_conn += 1;
        ConnId(self.next_conn)
    }

    /// Everything down; a fresh incarnation is tried after a while. What to close.
    pub(super) fn reset(&mut self, now: Micros) -> Vec<LinkAction> {
        let mut actions: Vec<LinkAction> = self
            .control_conn()
            .map(LinkAction::Close)
            .into_iter()
            .collect();
        self.control = Control::Down;
        for lane in &mut self.bulk {
            actions.extend(lane.conn.take().map(LinkAction::Close));
            lane.ready = false;
            lane.load = 0;
            lane.retry_at = Micros(0);
        }
        self.retry_at = now + self.retry_after;
        self.retry_after = Micros((self.retry_after.0 * 2).min(RETRY_MOST.0));
        actions
    }

    /// Whether the ordered lane has to be given up for silence.
    pub(super) fn is_dead(&self, now: Micros) -> bool {
        match self.control {
            Control::Down => false,
            // The greeting may wait for what the target still has to write down.
            Control::Connecting(_) | Control::Greeting(_) => now.since(self.heard) > CONNECT_WITHIN,
            Control::Beginning(_) | Control::Up(_) => now.since(self.heard) > DEAD_AFTER,
        }
    }

    /// Lanes to open now.
    pub(super) fn connect(&mut self, now: Micros) -> Vec<LinkAction> {
        let mut actions = Vec::new();
        if self.control == Control::Down && now >= self.retry_at {
            let conn = self.fresh();
            self.incarnation += 1;
            self.control = Control::Connecting(conn);
            self.heard = now;
            actions.push(LinkAction::Connect(conn, 0));
        }
        if self.is_up() {
            for at in 0..self.bulk.len() {
                let conn = ConnId(self.next_conn + 1);
                let Some(lane) = self.bulk.get_mut(at) else {
                    continue;
                };
                if lane.conn.is_none() && now >= lane.retry_at {
                    lane.conn = Some(conn);
                    lane.ready = false;
                    lane.load = 0;
                    lane.moved_at = now;
                    self.next_conn += 1;
                    actions.push(LinkAction::Connect(conn, at as u16 + 1));
                }
            }
        }
        actions
    }

    /// A connection is there: its lane, `None` when it is not wanted any more.
    pub(super) fn connected(&mut self, conn: ConnId, now: Micros) -> Option<u16> {
        if self.control == Control::Connecting(conn) {
            self.control = Control::Greeting(conn);
            self.heard = now;
            self.spoke = now;
            return Some(0);
        }
        let at = self.bulk.iter().position(|lane| lane.conn == Some(conn))?;
        let lane = self.bulk.get_mut(at)?;
        lane.ready = true;
        lane.moved_at = now;
        Some(at as u16 + 1)
    }

    /// The target has greeted.
    pub(super) fn greeted(&mut self) {
        if let Control::Greeting(conn) = self.control {
            self.control = Control::Beginning(conn);
        }
    }

    /// The target is set.
    pub(super) fn begun(&mut self) {
        if let Control::Beginning(conn) = self.control {
            self.control = Control::Up(conn);
            self.retry_after = RETRY_FIRST;
        }
    }

    pub(super) fn heard(&mut self, now: Micros) {
        self.heard = now;
    }

    pub(super) fn spoke(&mut self, now: Micros) {
        self.spoke = now;
    }

    pub(super) fn should_beat(&self, now: Micros) -> bool {
        matches!(self.control, Control::Beginning(_) | Control::Up(_))
            && now.since(self.spoke) >= BEAT_EVERY
    }

    /// A bulk lane ended or was closed: forget it and try again later. Whether it was one.
    pub(super) fn lane_down(&mut self, conn: ConnId, now: Micros) -> bool {
        let Some(lane) = self.bulk.iter_mut().find(|lane| lane.conn == Some(conn)) else {
            return false;
        };
        lane.conn = None;
        lane.ready = false;
        lane.load = 0;
        lane.retry_at = now + Micros::from_millis(200);
        true
    }

    /// Bulk lanes that have stood still for too long.
    pub(super) fn stuck_lanes(&self, now: Micros) -> Vec<ConnId> {
        self.bulk
            .iter()
            .filter(|lane| now.since(lane.moved_at) > LANE_DEAD_AFTER)
            .filter(|lane| lane.load > 0 || !lane.ready)
            .filter_map(|lane| lane.conn)
            .collect()
    }

    /// The bulk lane with the least on it.
    pub(super) fn lightest(&self) -> Option<ConnId> {
        let ready = self.bulk.iter().filter(|lane| lane.ready);
        ready
            .min_by_key(|lane| lane.load)
            .and_then(|lane| lane.conn)
    }

    pub(super) fn load(&mut self, conn: ConnId, bytes: u64, now: Micros) {
        if let Some(lane) = self.bulk.iter_mut().find(|lane| lane.conn == Some(conn)) {
            if lane.load == 0 {
                lane.moved_at = now;
            }
            lane.load += bytes;
        }
    }

    pub(super) fn unload(&mut self, conn: ConnId, bytes: u64, now: Micros) {
        if let Some(lane) = self.bulk.iter_mut().find(|lane| lane.conn == Some(conn)) {
            lane.load = lane.load.saturating_sub(bytes);
            lane.moved_at = now;
        }
    }
}
