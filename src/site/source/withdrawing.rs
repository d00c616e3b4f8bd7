//! A disk that is served no more, while its server goes on.
//!
//! Must never let go of a file that is still written to.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::{Site, SiteDisk};
use crate::failure::{Exit, Failure, Result};
use crate::site::beside::Beside;

impl Site {
    /// Get ready to serve a disk no more. One that is being moved stays.
    pub(crate) fn withdraw(self: &Arc<Self>, name: &str) -> Result<Withdrawn> {
        let disk = self.disk(name)?;
        let moving = disk.lock();
        if let Some(moving) = moving.as_ref()
            && !moving.session.status().ended
        {
            let what = format!("`{name}` is being moved");
            let hint = "wait for it, or end it with `diskferry mirror cancel`";
            return Err(Failure::new(Exit::InUse, what).hint(hint));
        }
        if disk.leaving.swap(true, Ordering::SeqCst) {
            let what = format!("`{name}` is being removed already");
            return Err(Failure::new(Exit::InUse, what));
        }
        drop(moving);
        let site = Arc::clone(self);
        Ok(Withdrawn { site, disk })
    }
}

/// A disk that is about to go; it stays when this is dropped.
pub(crate) struct Withdrawn {
    site: Arc<Site>,
    disk: Arc<SiteDisk>,
}

impl Withdrawn {
    /// Serve the disk no more: what it is still asked fails. The image is closed cleanly, and others may have the
    /// file.
    pub(crate) fn close(self) -> Result<()> {
        let disk = &self.disk;
        let _alone = disk.changing();
        let moving = disk.lock().take();
        let beside = moving.and_then(|moving| {
            moving.session.stop();
            moving.beside
        });
        let closed = self.site.server.remove_export(&disk.export);
        let beside = beside.map_or(Ok(()), Beside::abandon);
        let opened = disk.opened();
        opened.unlock();
        let mut disks = self
            .site
            .disks
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        disks.retain(|other| !Arc::ptr_eq(other, disk));
        closed.and(beside).map_err(|e| {
            let what = format!("{}: could not be closed cleanly", opened.path.display());
            Failure::io(what, &e)
        })
    }
}

impl Drop for Withdrawn {
    fn drop(&mut self) {
        self.disk.leaving.store(false, Ordering::SeqCst);
    }
}
