//! A disk moves with its machine: as far as it can without deciding, which the machine's record does.

use std::sync::Arc;

use bytes::Bytes;
use mirror::Micros;
use mirror::net::{DiskPort, Done, ReadDone, ServedDisk, Signal, SourceHandle, StatusDone};
use mirror::record::{Lead, Ownership, State};
use mirror::switchover::Part;
use uuid::Uuid;
use vdisk::engine::Mark;
use vdisk::tap::WriteTap;

use super::{Moving, Site};
use mirror::session::SourceConfig;

use crate::failure::{Exit, Failure, Result};
use crate::moving;
use crate::site::disk::Opened;
use crate::site::port::ExportPort;

/// How long a disk waits for the others: whoever moves them gives up before.
pub(crate) const PATIENCE: Micros = Micros::from_secs(24 * 3600);

impl Site {
    /// Begin to move a disk to `to`, with the machine whose record is `lead`.
    pub(crate) fn join(&self, name: &str, to: &str, lead: &Lead) -> Result<SourceHandle> {
        let disk = self.disk(name)?;
        let mut moving = disk.lock();
        disk.stays(moving.as_ref())?;
        let old = moving.take().inspect(|old| disk.over(old));
        if let Some(beside) = old.and_then(|old| old.beside) {
            let failed = |e| Failure::io("what an earlier move left cannot be closed", &e);
            beside.abandon().map_err(failed)?;
        }
        let mut description = disk.opened().description.clone();
        description.size = disk.export.size();
        description.name = moving::disk_name(name);
        let mut config = SourceConfig::new(Uuid::new_v4(), to.to_owned(), description);
        config.recorded = Some(moving::recorded(to));
        config.part = Part::Member(lead.clone());
        config.handover.give_up_after = PATIENCE;
        let port = Arc::new(Member(ExportPort(disk.export.clone())));
        let session = disk.session(port, config)?;
        *moving = Some(Moving::to(session.clone()));
        Ok(session)
    }
}

/// Refuse a disk that went elsewhere with its machine: no client can be sent there.
pub(super) fn refuse_gone(opened: &Opened, record: &Ownership) -> Result<()> {
    let State::Released { to, .. } = &record.state else {
        return Ok(());
    };
    let Some(to) = moving::went_with_machine(to) else {
        return Ok(());
    };
    let what = format!("{}: went to {to} with its machine", opened.path.display());
    let hint = "`diskferry run` of that machine here tells the other host until it runs there";
    Err(Failure::new(Exit::InUse, what).hint(hint))
}

/// The disk of a machine that moves: where it goes nobody is forwarded, the machine has gone there itself.
struct Member(ExportPort);

impl DiskPort for Member {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, offset: u64, len: u32, done: ReadDone) {
        self.0.read(offset, len, done);
    }

    fn write(&self, offset: u64, data: Bytes, done: Done) {
        self.0.write(offset, data, done);
    }

    fn zero(&self, offset: u64, len: u64, done: Done) {
        self.0.zero(offset, len, done);
    }

    fn flush(&self, done: Done) {
        self.0.flush(done);
    }

    fn status(&self, offset: u64, len: u64, done: StatusDone) {
        self.0.status(offset, len, done);
    }

    fn park(&self, mark: Option<Mark>, done: Done) {
        self.0.park(mark, done);
    }
}

impl ServedDisk for Member {
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

    fn forward(&self, _address: &str) {}
}
