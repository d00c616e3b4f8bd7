//! Where disks that come back are waited for: one listener at an address, for as many of them as name it.
//!
//! Disks that come back together have to come to one listener, so that their moments are one. Must never listen for a disk
//! that nobody waits for any more.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use mirror::net::{TargetDriver, TargetHandle};

use super::SiteDisk;
use super::returning::Returning;
use crate::failure::{Exit, Failure, Result};
use crate::site::Reachable;
use crate::site::together::Groups;

/// What the disks of one process have in common.
#[derive(Default)]
pub(super) struct Harbour {
    /// Where clients elsewhere reach what is served here.
    pub(super) reachable: OnceLock<Reachable>,
    /// The groups that go on since this process serves their disks, and those that may go back.
    pub(super) groups: Groups,
    listeners: Mutex<Vec<Weak<Listener>>>,
}

/// One of them.
struct Listener {
    /// The address as it was asked for.
    asked: String,
    host: Arc<Returning>,
    handle: TargetHandle,
}

/// A disk's part of a listener; dropped, it is waited for no more.
pub(super) struct Waiting {
    listener: Arc<Listener>,
    name: String,
}

impl Harbour {
    /// Wait for `disk` at `listen`. It may be asked where it is while this runs.
    pub(super) fn wait_for(
        self: &Arc<Self>,
        disk: &Arc<SiteDisk>,
        listen: &str,
    ) -> Result<Waiting> {
        let name = disk.name_here();
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|known| known.strong_count() > 0);
        let mut known = listeners.iter().filter_map(Weak::upgrade);
        if let Some(listener) = known.find(|known| known.is_at(listen)) {
            listener.host.expect(disk)?;
            let waiting = Waiting { listener, name };
            if disk.way().away {
                waiting.listener.handle.take_up(&waiting.name);
            }
            return Ok(waiting);
        }
        let host = Arc::new(Returning::new(self, listen));
        host.expect(disk)?;
        let handle = TargetDriver::start(listen, Arc::clone(&host) as _)
            .map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
        let listener = Arc::new(Listener {
            asked: listen.to_owned(),
            host,
            handle,
        });
        listeners.push(Arc::downgrade(&listener));
        Ok(Waiting { listener, name })
    }
}

impl Listener {
    /// Whether who asks for that address means this one: not whoever asks for any.
    fn is_at(&self, listen: &str) -> bool {
        let any = listen.ends_with(":0");
        !any && (self.asked == listen || self.handle.site() == listen)
    }
}

impl Waiting {
    pub(super) fn handle(&self) -> &TargetHandle {
        &self.listener.handle
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.listener.host.expect_no_more(&self.name);
        self.listener.handle.forget(&self.name);
    }
}
