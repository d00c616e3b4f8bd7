//! What the machine reads: of the disk, and of the site's templates.

use std::io;
use std::sync::Arc;

use super::disk::DiskTask;
use super::zeroes;
use crate::net::port::DiskPort;
use crate::session::{TargetAction, TargetEvent};

impl DiskTask {
    /// For an action that reads.
    pub(super) fn read(&mut self, action: &TargetAction) {
        match *action {
            TargetAction::Read(op, offset, len) => {
                let done = self.answer(move |result| TargetEvent::Read(op, result));
                match self.open_port() {
                    Ok(port) => port.read(offset, len, done),
                    Err(e) => done(Err(e)),
                }
            }
            TargetAction::Zeroes(op, offset, len) => {
                let done = self.answer(move |result| TargetEvent::Zeroes(op, result));
                match self.open_port() {
                    Ok(port) => zeroes::are_zero(port, (offset, len), done),
                    Err(e) => done(Err(e)),
                }
            }
            #[rustfmt::skip]
            TargetAction::ReadTemplate { op, number, offset, len } => {
                let done = self.answer(move |result| TargetEvent::OfTemplate(op, result));
                match self.host().templates().get(number) {
                    Some(template) => template.read(offset, len, done),
                    None => done(Err(io::Error::other("there is no such template"))),
                }
            }
            _ => {}
        }
    }

    fn open_port(&self) -> io::Result<Arc<dyn DiskPort>> {
        let port = self.port().cloned();
        port.ok_or_else(|| io::Error::other("the disk is not open"))
    }
}
