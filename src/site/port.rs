//! An export of the block server as a migration session reaches it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use blockserver::export::{ExportHandle, LocalReply, LocalRequest};
use bytes::Bytes;
use mirror::net::{CheckpointDone, DiskPort, Done, ReadDone, ServedDisk, Signal, StatusDone};
use vdisk::engine::Mark;
use vdisk::tap::WriteTap;

/// A disk behind an export.
#[derive(Clone, Debug)]
pub(crate) struct ExportPort(pub(crate) ExportHandle);

fn unexpected() -> io::Error {
    io::Error::other("the server answered something else than was asked")
}

impl ExportPort {
    fn change(&self, request: LocalRequest, done: Done) {
        self.0.submit(request, move |result| done(result.map(drop)));
    }
}

impl DiskPort for ExportPort {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn logical_sector(&self) -> Option<u32> {
        Some(self.0.block_device(1, 1).logical_sector)
    }

    fn read(&self, offset: u64, len: u32, done: ReadDone) {
        let request = LocalRequest::Read {
            offset,
            len: u64::from(len),
        };
        self.0.submit(request, move |result| {
            done(result.and_then(|reply| match reply {
                LocalReply::Data(data) => Ok(data),
                _ => Err(unexpected()),
            }));
        });
    }

    fn write(&self, offset: u64, data: Bytes, done: Done) {
        self.change(LocalRequest::Write { offset, data }, done);
    }

    fn zero(&self, offset: u64, len: u64, done: Done) {
        self.change(LocalRequest::Zero { offset, len }, done);
    }

    fn flush(&self, done: Done) {
        self.change(LocalRequest::Flush, done);
    }

    fn status(&self, offset: u64, len: u64, done: StatusDone) {
        self.0
            .submit(LocalRequest::Status { offset, len }, move |result| {
                done(result.and_then(|reply| match reply {
                    LocalReply::Extents(extents) => Ok(extents),
                    _ => Err(unexpected()),
                }));
            });
    }

    fn park(&self, mark: Option<Mark>, done: Done) {
        self.change(LocalRequest::Park { mark }, done);
    }

    fn may_return(&self, limit: Option<Duration>) -> bool {
        self.0.may_come_back(limit)
    }

    fn stays_away(&self) {
        self.0.stay_away();
    }
}

impl ServedDisk for ExportPort {
    fn attach_tap(&self, tap: Arc<dyn WriteTap>, attached: Signal) {
        self.0.attach_tap(tap, attached);
    }

    fn detach_tap(&self, detached: Signal) {
        self.0.detach_tap(detached);
    }

    fn hold(&self, held: Signal) {
        self.0.hold(held);
    }

    fn release(&self) {
        self.0.release();
    }

    fn brake(&self, bytes: Option<u64>) {
        self.0.brake(bytes);
    }

    fn checkpoint(&self, done: CheckpointDone) {
        super::kept::checkpoint(self, done);
    }

    fn expect(&self, address: &str) {
        // What is no address will be said again, and told then.
        if let Ok(address) = address.parse() {
            self.0.expect(address);
        }
    }

    fn is_expected_up(&self) -> bool {
        self.0.is_expected_up()
    }

    fn forward_ahead(&self, address: &str) {
        if let Ok(address) = address.parse() {
            self.0.forward(address);
        }
    }

    fn forward(&self, address: &str) {
        match address.parse() {
            Ok(address) => self.0.forward(address),
            // Held requests stay held: nothing is lost, and the operator is told.
            Err(error) => {
                tracing::error!(%address, %error, "the new owner gave no address of a disk");
            }
        }
    }
}
