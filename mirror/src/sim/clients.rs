//! The clients: they write, zero, flush, read, go where the disk is served, and check what they see.
//!
//! Must never act on what a machine says, only on what a client could know.

use bytes::Bytes;

use super::disk::SECTOR;
use super::host::{Asked, Doing, Front, Op, Request, Want};
use super::ledger::Promise;
use super::plan::Contents;
use super::world::{Event, SOURCE, TARGET, World};
use crate::clock::Micros;

/// One client: one request at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    pub(super) outstanding: bool,
    /// Requests it may still make.
    pub(super) left: u64,
}

impl World {
    /// A client thinks of something to do.
    pub(super) fn client_acts(&mut self, client: usize) {
        let state = &mut self.clients[client];
        if state.outstanding || state.left == 0 {
            return;
        }
        state.outstanding = true;
        state.left -= 1;
        let request = self.make_request(client);
        self.submit(request);
    }

    fn make_request(&mut self, client: usize) -> Request {
        let sectors = (self.plan.size / SECTOR) as u64;
        // A few hot places, so that writes meet each other, chunks and the bitmap.
        let first = if self.rng.percent(60) {
            self.rng.below(24)
        } else {
            self.rng.below(sectors)
        };
        let longest = if self.rng.percent(70) { 4 } else { 24 };
        let count = (1 + self.rng.below(longest)).min(sectors - first);
        let (first, count) = match self.plan.contents {
            Contents::Few => (self.rng.below(12) * 8, 8 << self.rng.below(2)),
            Contents::New => (first, count),
        };
        let (at, len) = (first * SECTOR as u64, count * SECTOR as u64);
        self.next_tag += 1;
        let tag = match self.plan.contents {
            Contents::Few => 1 + self.rng.below(2),
            Contents::New => self.next_tag,
        };
        match self.rng.below(100) {
            0..55 => {
                let data = Bytes::from(tag.to_le_bytes().repeat(len as usize / 8));
                Request {
                    client,
                    want: Want::Write(at, data),
                    tag,
                }
            }
            55..65 => Request {
                client,
                want: Want::Zero(at, len),
                tag: 0,
            },
            65..78 => Request {
                client,
                want: Want::Flush,
                tag: 0,
            },
            _ => Request {
                client,
                want: Want::Read(at, len),
                tag: 0,
            },
        }
    }

    /// Where a client finds the disk now.
    pub(super) fn route(&self) -> Option<usize> {
        let source = &self.hosts[SOURCE];
        match (source.up, &source.front) {
            (true, Front::Serving | Front::Holding(..)) => Some(SOURCE),
            _ => (self.hosts[TARGET].up && self.hosts[TARGET].front == Front::Serving)
                .then_some(TARGET),
        }
    }

    pub(super) fn submit(&mut self, request: Request) {
        match self.route() {
            Some(host) => {
                self.hosts[host].waiting.push_back(request);
                self.start_waiting(host);
            }
            None => self.after(Micros::from_millis(5), Event::Submit(request)),
        }
    }

    /// Begin those requests that wait and need not.
    pub(super) fn start_waiting(&mut self, host: usize) {
        if self.hosts[host].front != Front::Serving {
            return;
        }
        let mut at = 0;
        while let Some(request) = self.hosts[host].waiting.get(at) {
            let blocked = request.want.changes().is_some_and(|(offset, len)| {
                let earlier = self.hosts[host].waiting.iter().take(at);
                let meets = earlier.filter_map(|other| other.want.changes());
                self.hosts[host].overlaps(offset, len)
                    || meets
                        .into_iter()
                        .any(|(a, l)| a < offset + len && offset < a + l)
            });
            if blocked {
                at += 1;
                continue;
            }
            if let Some(request) = self.hosts[host].waiting.remove(at) {
                self.start(host, request);
            }
        }
    }

    fn start(&mut self, host: usize, request: Request) {
        let acked = self.ledger.acked();
        let places = request
            .want
            .changes()
            .map(|(at, len)| self.ledger.begin(at, len, request.tag))
            .unwrap_or_default();
        let doing = match &request.want {
            Want::Write(at, data) => Doing::Write(*at, data.clone()),
            Want::Zero(at, len) => Doing::Zero(*at, *len),
            Want::Flush => Doing::Flush(self.hosts[host].disk.flush_mark()),
            Want::Read(at, len) => Doing::Read(*at, vec![0; *len as usize]),
        };
        if let Some((at, len)) = request.want.changes() {
            self.hosts[host].kept.change(at, len);
        }
        let tapped = self.hosts[host].tap.is_some();
        if self.trace {
            let at = request.want.changes();
            eprintln!(
                "{:>10}   starts at {host}: {at:?} {:#x} tapped {tapped}",
                self.now.0, request.tag
            );
        }
        self.begin_op(host, Asked::Client(request, places, acked, tapped), doing);
    }

    /// A client's operation ended on that host's disk.
    pub(super) fn client_op_done(&mut self, host: usize, op: &Op) {
        let Asked::Client(request, places, acked, tapped) = &op.asked else {
            return;
        };
        if self.trace {
            eprintln!(
                "{:>10}   ended at {host}: {:?}",
                self.now.0,
                request.want.changes()
            );
        }
        if *tapped {
            self.keep_moment();
            self.hosts[host].tell_tap(&request.want);
        }
        match (&request.want, &op.doing) {
            (Want::Flush, _) => self.ledger.secure(acked),
            (Want::Read(at, _), Doing::Read(_, data)) => {
                if let Err(e) = self.ledger.check(*at, data, Promise::At(acked)) {
                    self.failure(&format!("a client of host {host} read: {e}"));
                }
            }
            (want, _) => {
                if let Some((at, len)) = want.changes() {
                    self.ledger.ack(at, len, places);
                    self.stats.acked += 1;
                }
            }
        }
        self.client_free(request.client);
        self.start_waiting(host);
    }

    /// The client's request is over, or its connection broke.
    pub(super) fn client_free(&mut self, client: usize) {
        self.clients[client].outstanding = false;
        // Who writes more than the link carries can not be moved: in the end they write less.
        let busy = if self.calm() {
            self.plan.think.0.max(6_000) * 60
        } else {
            self.plan.think.0
        };
        let pause = Micros(self.rng.below(busy));
        self.after(pause, Event::Client(client));
    }
}
