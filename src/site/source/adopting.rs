//! Disks that came here through a session, from the moment they are owned: they join those that a site serves.
//!
//! Must never take up a disk that is not durably owned here or handed on from here.

use std::sync::{Arc, PoisonError};

use blockserver::export::ExportHandle;
use mirror::net::SourceHandle;
use mirror::way_back::WayBack;

use super::{Beside, Moving, Opened, Site, SiteDisk, way_back};
use crate::failure::Result;

impl Site {
    pub(super) fn push(&self, disk: SiteDisk) -> Arc<SiteDisk> {
        let disk = Arc::new(disk);
        let mut disks = self.disks.write().unwrap_or_else(PoisonError::into_inner);
        disks.push(Arc::clone(&disk));
        disk
    }

    /// A disk that has arrived, with the session that its last server kept of it, if there was one, or `granted` just now,
    /// when nobody has changed it yet. It is held, and whoever calls lets its clients go on.
    pub(crate) fn adopt(
        &self,
        opened: Arc<Opened>,
        export: ExportHandle,
        (session, granted): (Option<SourceHandle>, bool),
    ) {
        let way = way_back::kept_of(&opened.path);
        let way = way_back::of_owner(&opened.path, way, session.is_some());
        let disk = SiteDisk::new(opened, export, session.map(Moving::to));
        let disk = SiteDisk {
            arrived: true,
            ..disk
        };
        if let Some(way) = way.as_ref().filter(|_| granted) {
            disk.go_back_from_now_on(way, &self.harbour);
        }
        let disk = self.push(disk);
        if let Some(way) = way {
            disk.go_on_with(&way, &self.harbour);
        }
    }

    /// Go on with a disk that was handed on, for the clients that still come here.
    pub(crate) fn adopt_handed_on(
        &self,
        opened: Opened,
        record: &mirror::record::Ownership,
        held: ExportHandle,
    ) -> Result<()> {
        self.harbour.groups.is_gone(record);
        super::kept::forget(&opened.path);
        let way = way_back::of_gone(&opened.path, way_back::kept_of(&opened.path));
        // Others change it there besides, whose requests may pass here as well.
        held.write_through();
        let moving = self.follow(&held, &opened, record)?;
        let disk = SiteDisk::new(Arc::new(opened), held, Some(moving));
        let disk = self.push(SiteDisk {
            arrived: true,
            ..disk
        });
        if let Some(way) = way {
            disk.go_on_with(&way, &self.harbour);
        }
        Ok(())
    }

    /// Go on with a disk that is on its way back here: its clients are sent to who has it, and it is waited for.
    pub(crate) fn adopt_away(&self, opened: Opened, held: ExportHandle, way: &WayBack) {
        held.write_through();
        let disk = SiteDisk::new(Arc::new(opened), held, None);
        let disk = self.push(SiteDisk {
            arrived: true,
            ..disk
        });
        disk.go_on_with(way, &self.harbour);
    }

    /// Whether the disk of that name has left, and is brought back where it is waited for.
    pub(crate) fn awaits(&self, name: &str) -> bool {
        self.disk(name)
            .is_ok_and(|disk| disk.lock().is_none() && disk.way().away)
    }

    /// Whether a disk of that name is served here, and not elsewhere by now.
    pub(crate) fn serves(&self, name: &str) -> bool {
        self.disk(name).is_ok_and(|disk| !disk.has_gone())
    }

    /// Close the disk of that name, if there is one, whoever uses it: another one comes in its place. The image is
    /// closed cleanly, and others may have the file.
    pub(crate) fn close(&self, name: &str) -> std::io::Result<()> {
        let Ok(disk) = self.disk(name) else {
            return Ok(());
        };
        let _alone = disk.changing();
        disk.wait_no_more();
        let moving = disk.lock().take();
        let beside = moving.and_then(|moving| {
            moving.session.stop();
            moving.beside
        });
        let closed = self.server.remove_export(&disk.export);
        let beside = beside.map_or(Ok(()), Beside::abandon);
        disk.opened().unlock();
        let mut disks = self.disks.write().unwrap_or_else(PoisonError::into_inner);
        disks.retain(|other| !Arc::ptr_eq(other, &disk));
        closed.and(beside)
    }
}

impl SiteDisk {
    /// Whether it was handed over, and its clients are sent to who has it now.
    pub(super) fn has_gone(&self) -> bool {
        let moving = self.lock();
        self.way().away || moving.as_ref().is_some_and(Moving::is_done)
    }
}

impl Moving {
    /// Whether the disk is served elsewhere, durably, and requests go there.
    pub(super) fn is_done(&self) -> bool {
        let status = self.session.status();
        status.ended && status.error.is_none()
    }
}
