//! The record stream of the source: what was sent, what is durable at the target, the markers.
//!
//! Must never forget a record before the target has said that it is durable.

use std::collections::VecDeque;

use crate::clock::Micros;
use crate::tracker::{Tracker, cost};
use crate::wire::{Marker, Message, Record, StreamDigest};

/// Records that may go ahead of the oldest chunk on the way: bounds what the target has to remember.
const SPAN: u64 = 1 << 18;
/// Markers that may await their answer.
const MARKERS_OPEN: usize = 4;
/// Cost of records after which a marker follows whatever the time.
const MARKER_BYTES: u64 = 8 << 20;

#[derive(Debug, Default)]
struct Markers {
    /// On the way: number, last record before it.
    open: VecDeque<(u64, u64)>,
    /// The last consistent one of them.
    consistent: Option<u64>,
    /// Whether the last one of all was consistent.
    ends_consistent: bool,
    /// How many there were.
    count: u64,
    /// When the last one was made.
    made_at: Micros,
    /// The last cut that one of them was, and when it or one that was let go by was dealt with.
    cut: u64,
    cut_at: Micros,
}

#[derive(Debug)]
pub(super) struct RecordStream {
    /// Taken from the tracker and not yet durable at the target, oldest first.
    unacked: VecDeque<Record>,
    /// How many of them were sent in this incarnation.
    sent: usize,
    /// What those cost.
    sent_cost: u64,
    /// Bytes of all that is not durable at the target.
    unacked_bytes: u64,
    window: u64,
    digest: StreamDigest,
    cost_since_marker: u64,
    markers: Markers,
    /// Everything up to this number is durable at the target.
    acked: u64,
    streamed: u64,
}

impl RecordStream {
    pub(super) fn new() -> Self {
        Self {
            unacked: VecDeque::new(),
            sent: 0,
            sent_cost: 0,
            unacked_bytes: 0,
            window: 0,
            digest: StreamDigest::default(),
            cost_since_marker: 0,
            markers: Markers::default(),
            acked: 0,
            streamed: 0,
        }
    }

    pub(super) fn acked(&self) -> u64 {
        self.acked
    }

    /// Bytes of records that became durable at the target.
    pub(super) fn streamed(&self) -> u64 {
        self.streamed
    }

    /// A fresh incarnation: everything that is not durable is sent again.
    pub(super) fn restart(&mut self, window: u64) {
        self.sent = 0;
        self.sent_cost = 0;
        self.window = window;
        self.digest = StreamDigest::default();
        self.cost_since_marker = 0;
        self.markers.open.clear();
        self.markers.consistent = None;
        self.markers.ends_consistent = false;
        self.markers.cut = 0;
    }

    /// The last marker is a consistent one.
    pub(super) fn sent_consistent(&mut self) {
        self.markers.consistent = self.markers.open.back().map(|(id, _)| *id);
        self.markers.ends_consistent = true;
    }

    /// Whether the last marker was a consistent one.
    pub(super) fn ends_consistent(&self) -> bool {
        self.markers.ends_consistent
    }

    /// Whether a consistent marker is on the way. Chunks could overtake it, and what it ends would hold what came later.
    pub(super) fn is_sealing(&self) -> bool {
        self.markers.consistent.is_some()
    }

    /// What records change that the target may not have durably: offset and length.
    pub(super) fn rest(&self) -> impl Iterator<Item = (u64, u64)> {
        let unacked = self.unacked.iter();
        unacked.map(|record| (record.offset, record.content.covers()))
    }

    /// The number of the record that is the next to send, whenever that may be.
    pub(super) fn front(&mut self, tracker: &Tracker) -> Option<u64> {
        if self.sent == self.unacked.len() {
            let record = tracker.take()?;
            self.unacked_bytes += record.content.held();
            self.unacked.push_back(record);
        }
        self.unacked.get(self.sent).map(|record| record.seq)
    }

    /// The next record to send, if the window and the chunks on the way allow one, and `may` does, which is asked about
    /// its number.
    pub(super) fn next(
        &mut self,
        tracker: &Tracker,
        floor: u64,
        may: impl FnOnce(u64) -> bool,
    ) -> Option<Message> {
        if self.sent_cost > 0 && self.sent_cost >= self.window {
            return None;
        }
        let seq = self.front(tracker)?;
        if seq > floor.saturating_add(SPAN) || !may(seq) {
            return None;
        }
        let record = self.unacked.get(self.sent)?;
        self.sent += 1;
        self.sent_cost += cost(record);
        self.cost_since_marker += cost(record);
        self.digest.add(record);
        Some(Message::Record(record.clone()))
    }

    /// Whether every record there is was sent.
    pub(super) fn drained(&self, tracker: &Tracker) -> bool {
        self.sent == self.unacked.len() && !tracker.figures().queued
    }

    /// Whether every change up to that number that is a record is durable at the target.
    pub(super) fn is_durable_through(&self, seq: u64, tracker: &Tracker) -> bool {
        self.acked >= seq || self.unacked.is_empty() && !tracker.figures().queued
    }

    /// Bytes of records the target may not have.
    pub(super) fn outstanding(&self) -> u64 {
        self.unacked_bytes
    }

    /// Whether a marker is due, `awaited` saying whether something else than records awaits one.
    pub(super) fn marker_due(&self, now: Micros, every: Micros, awaited: bool) -> bool {
        let something = self.sent > 0 || awaited;
        // Only a marker's answer opens the window again: it must not wait for the clock.
        let bytes = MARKER_BYTES.min(self.window / 4);
        let many = self.cost_since_marker > 0 && self.cost_since_marker >= bytes;
        let enough = many || now.since(self.markers.made_at) >= every;
        something && enough && self.markers.open.len() < MARKERS_OPEN
    }

    /// The number up to which everything there is was sent.
    pub(super) fn through(&self, tracker: &Tracker) -> u64 {
        // Taken before the queue is looked at, a number would cover a record that is still in it.
        match self.unacked.get(self.sent) {
            Some(unsent) => unsent.seq.saturating_sub(1),
            None => tracker.taken_through(),
        }
    }

    /// A cut was dealt with: placed as the last marker, or let go by.
    pub(super) fn dealt_with_cut(&mut self, now: Micros, placed: Option<u64>) {
        self.markers.cut = placed.unwrap_or(0);
        self.markers.cut_at = now;
    }

    /// Whether so much time passed since the last cut.
    pub(super) fn cut_due(&self, now: Micros, every: Micros) -> bool {
        now.since(self.markers.cut_at) >= every
    }

    /// The cut that was placed last, if it is durable at the target.
    pub(super) fn durable_cut(&self) -> Option<u64> {
        let cut = self.markers.cut;
        (cut > 0 && cut <= self.acked).then_some(cut)
    }

    /// A marker after everything that was sent, which is everything up to the number `seq`; the caller finds out whether it
    /// is a consistent one.
    pub(super) fn marker(
        &mut self,
        now: Micros,
        tracker: &Tracker,
        (seq, floor): (u64, u64),
    ) -> Marker {
        let (digest, count) = self.digest.finish();
        self.markers.count += 1;
        let id = self.markers.count;
        self.markers.open.push_back((id, seq));
        self.markers.made_at = now;
        self.markers.ends_consistent = false;
        self.cost_since_marker = 0;
        Marker {
            id,
            seq,
            count,
            digest,
            floor: floor.min(tracker.figures().seq),
            consistent: false,
            disks: 0,
        }
    }

    /// The target has everything before marker `id` durably: how many bytes of records that
    /// freed, `None` when there was no such marker.
    pub(super) fn durable(&mut self, id: u64, tracker: &Tracker) -> Option<u64> {
        let at = self
            .markers
            .open
            .iter()
            .position(|(marker, _)| *marker == id)?;
        let (_, seq) = self.markers.open.drain(..=at).next_back()?;
        self.acked = self.acked.max(seq);
        self.markers.consistent = self
            .markers
            .consistent
            .filter(|consistent| *consistent > id);
        let mut freed = 0;
        while let Some(record) = self.unacked.front() {
            if record.seq > seq || self.sent == 0 {
                break;
            }
            tracker.settle(record);
            freed += record.content.held();
            self.sent -= 1;
            self.sent_cost = self.sent_cost.saturating_sub(cost(record));
            self.unacked.pop_front();
        }
        self.unacked_bytes = self.unacked_bytes.saturating_sub(freed);
        self.streamed += freed;
        Some(freed)
    }
}
