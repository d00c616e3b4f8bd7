//! A site whose disks come and go while it listens.
//!
//! Must never forget a disk with anything of it still under way.

use std::sync::mpsc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::TargetHandle;
use super::disk::{DiskTask, Happened};

impl TargetHandle {
    /// The host has another disk now: if its record asks for something, that is begun with. Blocks.
    pub fn take_up(&self, name: &str) {
        let _runtime = self.runtime.enter();
        self.router.take_up(&[name.to_owned()]);
    }

    /// The host takes no disk of that name any more ([`super::TargetHost::takes`]): end what is under way with it as if the
    /// process had died, and wait until nothing is. A disk that is served stays served.
    pub fn forget(&self, name: &str) {
        let entry = self.router.lock().remove(name);
        let Some(task) = entry.and_then(|entry| entry.task) else {
            return;
        };
        let (told, ended) = mpsc::channel();
        if task.send(Happened::Forgotten(told)).is_ok() {
            // It is dropped when the task has ended, in whichever way.
            let _ = ended.recv();
        }
    }
}

impl DiskTask {
    /// End without a word; what the disk was asked for before is waited for.
    pub(super) async fn break_off(mut self, mut incoming: UnboundedReceiver<Happened>) {
        for (_, lane) in std::mem::take(&mut self.lanes) {
            lane.close(&mut self.closing);
        }
        while self.asked > 0 {
            match incoming.recv().await {
                Some(Happened::Event(_) | Happened::Opened(_) | Happened::Served(_)) => {
                    self.asked -= 1;
                }
                Some(_) => {}
                None => break,
            }
        }
        self.closing.shutdown().await;
    }
}
