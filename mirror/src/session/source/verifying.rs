//! Verifying, as the source carries it out: what is looked at, and what comes of it, is in `session/verify.rs`.
//!
//! Must never take anything from the session it is part of: it looks only while the target is in step.

use super::{ConnId, Micros, Phase, Source, SourceAction};
use crate::session::verify::{Step, Verify};
use crate::wire::Message;

impl Source {
    /// The user wants to know whether both have the same.
    pub(super) fn verify(&mut self, now: Micros) {
        let size = self.config.description.size;
        self.local.verify.begin(size, now, &self.tracker);
    }

    /// What went over a lane that is gone comes to nothing.
    pub(super) fn lane_lost(&mut self, conn: ConnId) {
        self.copy.lane_lost(conn, &self.tracker);
        self.local.verify.lane_lost(conn);
    }

    pub(super) fn on_seen(&mut self, now: Micros, id: u64, blocks: (u128, u128)) {
        if let Some((conn, weight)) = self.local.verify.seen(id, blocks, &self.tracker) {
            self.link.unload(conn, weight, now);
        }
    }

    pub(super) fn pump_verify(&mut self, now: Micros) {
        if self.switch.phase() != Phase::Owner {
            return;
        }
        if self.local.cutover.is_none() && !self.config.handover.automatic {
            self.local.verify.pause(false);
        }
        if let Some(until) = self.local.verify.awaits(now)
            && self.nothing_left()
            && !self.copy.awaits_marker()
            && self.stream.is_durable_through(until, &self.tracker)
        {
            self.local.verify.go_on();
        }
        let chunk = self.config.limits.chunk;
        while let Some(conn) = self.link.lightest()
            && self.pace.bucket.open(now)
            && let Some(step) = self.local.verify.next(conn, chunk)
        {
            match step {
                Step::Status(op, offset, len) => {
                    self.actions
                        .push_back(SourceAction::Status(op, offset, len));
                }
                Step::Read(op, offset, len) => {
                    self.actions.push_back(SourceAction::Read(op, offset, len));
                }
                Step::Send(look, weight) => {
                    self.send_chunk(now, conn, (Message::Look(look), weight));
                }
            }
        }
        self.local.verify.settle(now, &self.tracker);
    }

    /// Whether that operation was one of a verification; what was read is sent on.
    pub(super) fn verified(
        &mut self,
        now: Micros,
        op: crate::session::OpId,
        data: Option<&bytes::Bytes>,
    ) -> bool {
        if !Verify::owns(op) {
            return false;
        }
        let conn = self.link.lightest().filter(|_| self.link.is_up());
        let with = (conn, self.config.limits.block);
        if let (Some((look, weight)), Some(conn)) =
            (self.local.verify.read_done(op, data, with), conn)
        {
            self.send_chunk(now, conn, (Message::Look(look), weight));
        }
        true
    }
}
