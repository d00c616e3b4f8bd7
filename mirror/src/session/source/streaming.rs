//! Records and markers as the source of one disk sends them.
//!
//! Must never call a marker consistent while something is to be copied, and never send what lies beyond a cut before it.

use super::{ConnId, Control, Message, Micros, Source};
use crate::sequence::Place;
use crate::wire::Marker;

impl Source {
    pub(super) fn pump_stream(&mut self, now: Micros) {
        let Control::Up(conn) = self.link.control() else {
            return;
        };
        if self.local.final_sent {
            return;
        }
        let floor = self.copy.floor();
        let every = self.config.limits.marker_every;
        let alone = self.config.replica.follow && self.config.replica.group.is_none();
        // No further than where the next marker can be a consistent one.
        let due = alone && self.stream.marker_due(now, every, false);
        let whole = due
            .then(|| self.stream.through(&self.tracker))
            .and_then(|through| self.tracker.whole_again(through));
        self.pump_records(now, conn, (floor, whole));
        if self.pump_cut(now, conn, floor) {
            self.pump_records(now, conn, (floor, whole));
        }
        // A disk that nobody writes to has to be called consistent as well.
        let news = alone && !self.stream.ends_consistent() && self.nothing_left();
        let awaited = self.copy.awaits_marker() || news;
        let through = self.stream.through(&self.tracker);
        // A marker beyond a cut that is still to be placed would go before it.
        let waits = self.pending_cut().is_some_and(|cut| cut <= through);
        if !waits && self.stream.marker_due(now, every, awaited) {
            let mut marker = self.marker(now, (through, floor));
            marker.consistent &= alone;
            if marker.consistent {
                self.stream.sent_consistent();
            }
            self.send(now, conn, Message::Marker(marker));
        }
    }

    /// Send what there is of records, but none beyond a cut that is to be placed, or `last` if there is one.
    fn pump_records(&mut self, now: Micros, conn: ConnId, (floor, last): (u64, Option<u64>)) {
        loop {
            let group = self.config.replica.group.as_ref();
            // Asked when the number is known: a cut that was asked for later is beyond it.
            let may = |seq| {
                let cut = group.and_then(Place::pending);
                cut.into_iter().chain(last).all(|last| seq <= last)
            };
            let Some(record) = self.stream.next(&self.tracker, floor, may) else {
                return;
            };
            self.send(now, conn, record);
        }
    }

    /// Whether nothing is to be copied or on the way to be.
    pub(super) fn nothing_left(&self) -> bool {
        self.copy.scan_complete() && self.copy.landed() && self.tracker.figures().dirty == 0
    }

    /// A marker, consistent if nothing is left to be copied and no chunk holds anything later.
    pub(super) fn marker(&mut self, now: Micros, (seq, floor): (u64, u64)) -> Marker {
        let mut marker = self.stream.marker(now, &self.tracker, (seq, floor));
        // Asked after the number was taken: what is changed from here on has a higher one.
        let nothing_left = self.nothing_left();
        let settled = marker.seq >= self.copy.saw();
        #[cfg(test)]
        let settled = settled || self.broken(crate::session::Sabotage::ConsistentTooEarly);
        let whole = self.tracker.whole_again(marker.seq).is_none();
        #[cfg(test)]
        let whole = whole || self.broken(crate::session::Sabotage::ConsistentInAGap);
        marker.consistent = nothing_left && settled && whole;
        marker
    }
}
