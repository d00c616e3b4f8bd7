//! A disk that is served no more, while its server goes on.
//!
//! Must never let go of a file that is still written to.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Site, SiteDisk};
use crate::failure::{Exit, Failure, Result};

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
        let path = self.disk.opened().path.clone();
        let closed = self.site.close(self.disk.export.name());
        closed.map_err(|e| {
            let what = format!("{}: could not be closed cleanly", path.display());
            Failure::io(what, &e)
        })
    }
}

impl Drop for Withdrawn {
    fn drop(&mut self) {
        self.disk.leaving.store(false, Ordering::SeqCst);
    }
}
