//! Disks of one folder that follow together: has their record written, and tells them.
//!
//! Must never decide which moment is one of the group: [`crate::group`] does.

use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use super::Router;
use super::disk::Happened;
use crate::files::GroupStore;
use crate::group::{Gathering, GroupAction, GroupRecord};
use crate::record::{Membership, Ownership, State};
use crate::session::TargetEvent;

/// How long after a failed write of a group's record it is written again.
const WRITE_AGAIN: Duration = Duration::from_millis(500);

impl Router {
    /// Of the group to which the disk of that name belongs.
    fn group_store(&self, name: &str, group: Uuid) -> GroupStore {
        // Of whichever of its disks: all lie in one folder.
        GroupStore::beside(&self.host.record_path(name), group)
    }

    /// What the record of its group says of a disk that has joined it.
    pub(super) fn cut_of(&self, name: &str, record: Option<&Ownership>) -> Option<(Uuid, u64)> {
        let Some(State::Following {
            group: Some(Membership { id, joined: true }),
            ..
        }) = record.map(|record| &record.state)
        else {
            return None;
        };
        match self.group_store(name, *id).load() {
            Ok(group) => group?.cut_of(name),
            Err(e) => {
                tracing::error!("{name}: {e}; nothing is carried over into it");
                None
            }
        }
    }

    /// Tell that group, of which the disk of that name is, something, and do what comes of it.
    pub(super) fn with_group(
        self: &Arc<Self>,
        (name, group): (&str, Uuid),
        tell: impl FnOnce(&mut Gathering),
    ) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let gathering = groups.entry(group).or_insert_with(|| {
            let known = self.group_store(name, group).load();
            let known = known.inspect_err(|e| tracing::error!("{e}"));
            Gathering::new(group, known.ok().flatten())
        });
        tell(gathering);
        let actions: Vec<GroupAction> = std::iter::from_fn(|| gathering.poll_action()).collect();
        drop(groups);
        for action in actions {
            match action {
                GroupAction::Write(record) => self.write_group(&record),
                GroupAction::Tell(member, cut) => {
                    self.tell_disk(&member.name, TargetEvent::Cut(member.session, cut));
                }
                GroupAction::Settled(name, cut) => {
                    self.tell_disk(&name, TargetEvent::Left(cut));
                }
            }
        }
    }

    fn tell_disk(&self, name: &str, event: TargetEvent) {
        let disks = self.lock();
        if let Some(task) = disks.get(name).and_then(|entry| entry.task.as_ref()) {
            let _ = task.send(Happened::OfGroup(event));
        }
    }

    fn write_group(self: &Arc<Self>, record: &GroupRecord) {
        let (router, group) = (Arc::clone(self), record.group);
        let Some(name) = record.disks.first().map(|member| member.name.clone()) else {
            return;
        };
        let store = self.group_store(&name, group);
        let done = move |result: std::io::Result<()>| {
            let Err(e) = result else {
                return router.with_group((&name, group), |all| all.recorded(true));
            };
            tracing::error!("the record of the group {group} cannot be written: {e}");
            // Not on the thread that writes the records of all others.
            let again = move || {
                thread::sleep(WRITE_AGAIN);
                router.with_group((&name, group), |all| all.recorded(false));
            };
            if let Err(e) = thread::Builder::new().spawn(again) {
                tracing::error!("the record of a group is not written again: {e}");
            }
        };
        store.persist(record, done);
    }
}
