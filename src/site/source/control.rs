//! What the control socket asks of a site, disk by disk.
//!
//! Must never do more than find the disk and hand the request on.

use std::os::unix::fs::MetadataExt as _;
use std::sync::{MutexGuard, PoisonError};

use blockserver::throttle::Limits;
use mirror::net::SourceHandle;
use mirror::picture::Picture;

use super::super::kept;
use super::{Moving, Site, SiteDisk};
use crate::control::{
    Checkpoint, Compact, CompactState, Control, CutoverNow, DiskState, MirrorDeadline, MirrorRate,
    Resize, StartMirror, TakeSnapshot,
};
use crate::failure::{Failure, Result};
use crate::metrics::{Ends, Observed, ObservedDisk};

impl Control for Site {
    fn disks(&self) -> Vec<DiskState> {
        self.all().iter().map(|disk| disk.state()).collect()
    }

    fn resize(&self, disk: &str, resize: Resize) -> Result<DiskState> {
        let found = self.disk(disk)?;
        found.resize(resize)?;
        if let Some(call) = self.resized.get() {
            call(disk);
        }
        Ok(found.state())
    }

    fn limit(&self, disk: &str, limits: Limits) -> Result<DiskState> {
        let disk = self.disk(disk)?;
        disk.export.set_limits(limits);
        Ok(disk.state())
    }

    fn compact(&self, disk: &str, compact: Compact) -> Result<CompactState> {
        self.disk(disk)?.compact(compact)
    }

    fn checkpoint(&self, disk: &str, checkpoint: &Checkpoint) -> Result<DiskState> {
        let disk = self.disk(disk)?;
        disk.checkpoint(checkpoint)?;
        Ok(disk.state())
    }

    fn snapshot(&self, disk: &str, wanted: &TakeSnapshot) -> Result<DiskState> {
        let disk = self.disk(disk)?;
        disk.snapshot(wanted)?;
        Ok(disk.state())
    }

    fn start_mirror(&self, disk: &str, start: &StartMirror) -> Result<serde_json::Value> {
        self.begin(disk, start)
    }

    fn mirror(&self, disk: &str) -> Result<serde_json::Value> {
        self.disk(disk)?.with_session(|_| {})
    }

    fn picture(&self, disk: &str, cells: usize) -> Result<Picture> {
        self.disk(disk)?.picture(cells)
    }

    fn observe(&self) -> Observed {
        Observed {
            disks: self.all().iter().map(|disk| disk.observe()).collect(),
            targets: self.received.get().map_or_else(Vec::new, |ask| ask()),
        }
    }

    fn cutover(&self, disk: &str, now: CutoverNow) -> Result<serde_json::Value> {
        self.disk(disk)?.switch_over(now)
    }

    fn rollback(&self, disk: &str) -> Result<serde_json::Value> {
        self.disk(disk)?.roll_back()
    }

    fn cancel(&self, disk: &str) -> Result<serde_json::Value> {
        self.disk(disk)?.with_session(SourceHandle::cancel)
    }

    fn verify(&self, disk: &str) -> Result<serde_json::Value> {
        let found = self.disk(disk)?;
        if found.is_foreign() {
            let what = format!("`{disk}` moves to an NBD server, which cannot say what it has");
            let hint = "`diskferry compare` reads both once nobody writes";
            return Err(Failure::usage(what).hint(hint));
        }
        found.with_session(SourceHandle::verify)
    }

    fn rate(&self, disk: &str, rate: MirrorRate) -> Result<serde_json::Value> {
        let disk = self.disk(disk)?;
        disk.with_session(|session| session.set_rates(rate.rate))
    }

    fn deadline(&self, disk: &str, wish: MirrorDeadline) -> Result<serde_json::Value> {
        if wish.max_slowdown.is_some_and(|most| most > 100) {
            return Err(Failure::usage(
                "nobody can be slowed down by more than 100 percent",
            ));
        }
        let found = self.disk(disk)?;
        if found.is_foreign() {
            let what = format!("`{disk}` moves to an NBD server, which keeps to no deadline");
            return Err(Failure::usage(what));
        }
        let terms = kept::terms(wish.deadline_s.map(kept::in_seconds), wish.max_slowdown);
        found.with_session(|session| session.set_terms(terms))
    }
}

impl SiteDisk {
    /// Whether its newest move is one to a server that is not ours.
    fn is_foreign(&self) -> bool {
        let moving = self.lock();
        let status = moving.as_ref().map(|moving| moving.session.status());
        status.is_some_and(|status| status.not_promised.is_some())
    }

    pub(super) fn with_session(
        &self,
        order: impl FnOnce(&SourceHandle),
    ) -> Result<serde_json::Value> {
        let moving = self.lock();
        let moving = moving.as_ref().ok_or_else(|| self.not_moving())?;
        order(&moving.session);
        self.state_of(moving)
    }

    fn not_moving(&self) -> Failure {
        let name = self.export.name();
        match self.export.forwards_to().filter(|_| self.way().away) {
            Some(at) => Failure::usage(format!("`{name}` has moved; it is served at {at}")),
            None => Failure::usage(format!("`{name}` is not being moved")),
        }
    }

    fn picture(&self, cells: usize) -> Result<Picture> {
        let session = self.lock().as_ref().map(|moving| moving.session.clone());
        // Its thread is waited for: others do not wait for it with us.
        Ok(session.ok_or_else(|| self.not_moving())?.picture(cells))
    }

    fn observe(&self) -> ObservedDisk {
        let moving = self.lock();
        let moving = moving.as_ref().map(|moving| moving.session.status());
        let mut ends = *self.ends();
        if let Some(status) = &moving {
            ends.count(status);
        }
        let opened = self.opened();
        let file = std::fs::metadata(&opened.path).ok();
        ObservedDisk {
            name: self.export.name().to_owned(),
            size: self.export.size(),
            // In units of 512 bytes, whatever the file system's are.
            file: file
                .filter(|_| !opened.disk.is_elsewhere())
                .map(|file| file.blocks().saturating_mul(512)),
            statistics: self.export.statistics(),
            throttled: self.export.throttled(),
            moving,
            ends,
        }
    }

    /// A move has another one after it: how it ended goes on being counted.
    pub(super) fn over(&self, moving: &Moving) {
        self.ends().count(&moving.session.status());
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
