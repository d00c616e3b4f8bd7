//! What the source's own disk answers.

use bytes::Bytes;
use vdisk::engine::Extent;

use super::{Error, ErrorKind, Micros, OpId, Source, SourceAction};
use crate::session::verify::Verify;

impl Source {
    pub(super) fn on_attached(&mut self, now: Micros, result: std::io::Result<()>) {
        match result {
            Ok(()) => self.local.attached = true,
            Err(e) => {
                let what = "cannot watch the disk's writes";
                self.fail(now, Error::io(ErrorKind::Disk, what, e));
            }
        }
    }

    pub(super) fn on_read(&mut self, now: Micros, op: OpId, result: std::io::Result<Bytes>) {
        if self.verified(now, op, result.as_ref().ok()) {
            return;
        }
        let data = match result {
            Ok(data) => data,
            Err(e) => {
                self.copy.give_back(op, &self.tracker);
                let what = "cannot read the disk to copy it";
                self.fail(now, Error::io(ErrorKind::Disk, what, e));
                return;
            }
        };
        let conn = if self.link.is_up() {
            self.link.lightest()
        } else {
            None
        };
        let last = self.tracker.figures().seq;
        let block = self.config.limits.block;
        match (self.copy.read_done(op, data, conn, (last, block)), conn) {
            (Some((message, weight)), Some(conn)) => {
                #[cfg(test)]
                let message = self.late_base(message);
                self.send_chunk(now, conn, (message, weight));
            }
            _ => self.copy.give_back(op, &self.tracker),
        }
    }

    pub(super) fn on_status(
        &mut self,
        now: Micros,
        op: OpId,
        result: std::io::Result<Vec<Extent>>,
    ) {
        if Verify::owns(op) {
            let extents = result.as_deref().ok();
            self.local.verify.answer(op, extents);
            return;
        }
        match result {
            Ok(extents) => {
                if !self.copy.answer(op, &extents, &self.tracker) {
                    let what = "the disk does not say what is allocated";
                    self.fail(now, Error::new(ErrorKind::Disk, what));
                }
            }
            Err(e) => {
                let what = "cannot ask the disk what is allocated";
                self.fail(now, Error::io(ErrorKind::Disk, what, e));
            }
        }
    }

    /// End the session with an error, unless the disk is handed over already.
    pub(super) fn fail(&mut self, now: Micros, e: Error) {
        self.end.trouble = Some(e.to_string());
        if self.switch.decided() {
            // No way back: the grant goes on being repeated over fresh connections.
            self.lose_link(now);
            return;
        }
        if self.end.outcome.is_some() {
            return;
        }
        self.send_control(
            now,
            crate::wire::Message::Abandon {
                text: e.to_string(),
            },
        );
        self.give_up(now);
        let actions = self.link.reset(now);
        self.push_link(actions);
        self.actions.push_back(SourceAction::DetachTap);
        self.end.outcome = Some(Err(e));
    }

    #[cfg(test)]
    fn late_base(&self, mut message: crate::wire::Message) -> crate::wire::Message {
        if let crate::wire::Message::Chunk(chunk) = &mut message
            && self.broken(crate::session::Sabotage::LateBase)
        {
            chunk.base = self.tracker.figures().seq;
        }
        message
    }
}
