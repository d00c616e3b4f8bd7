//! The way back of a disk at the host that has it: who keeps the copy where it came from in step, and hands it back.
//!
//! Must never let a disk's first client in before its session sees what changes, if that takes the other host at its word.

use std::sync::Arc;
use std::time::Duration;

use mirror::ErrorKind;
use mirror::arbiter::Switchover;
use mirror::net::SourceDriver;
use mirror::record::{Ownership, State};
use mirror::sequence::Place;
use mirror::session::{Left, SourceConfig};
use mirror::way_back::{Side, WayBack};
use serde_json::Value;
use uuid::Uuid;

use super::waiting::Harbour;
use super::way::Next;
use super::{ExportPort, Moving, SiteDisk, kept, refused, way_back};
use crate::failure::{Failure, Result};
use crate::site::together::{Groups, Home};

/// A session that has lasted so long was none that fails again and again, in microseconds.
const LASTED: u64 = 600 * 1_000_000;
/// After so many failures in a row nothing is kept of the next session, since each takes a checkpoint of the disk, which has
/// few; and the disk goes by itself, since the others would begin anew each time.
const MOST_KEPT: u32 = 2;
/// How long disks that came together wait for each other before they go back, in microseconds.
const TOGETHER: u64 = 30 * 1_000_000;

impl SiteDisk {
    pub(super) fn look_when_away(&self, moving: &mut Option<Moving>, kept: &WayBack) -> Next {
        let Side::Away { to, together } = &kept.side else {
            return Next::Nothing;
        };
        let over = kept.is_over(way_back::now());
        let end = || {
            way_back::keep(&self.opened().path, None);
            self.way().kept = None;
            Next::End
        };
        if let Some(moving) = moving.as_mut() {
            let status = moving.session.status();
            // A session that went on after a restart.
            moving.back |= status.to == *to;
            if !status.ended {
                if over && moving.back {
                    moving.session.cancel();
                }
                if moving.back && status.elapsed >= TOGETHER {
                    self.waits_no_more_for_others();
                }
                return Next::Nothing;
            }
            let result = moving.session.wait_for(Duration::ZERO);
            let failed = match result {
                None => return Next::Nothing,
                Some(Ok(_)) => return end(),
                // Also by its user.
                Some(Err(e)) if moving.back && e.kind() == ErrorKind::Cancelled => {
                    return end();
                }
                // Another one's trouble is none of its own.
                Some(Err(e)) => e.kind() != ErrorKind::GroupEnded,
            };
            if failed && moving.back && !std::mem::replace(&mut moving.counted, true) {
                let mut way = self.way();
                let lasted = status.elapsed >= LASTED;
                way.failures = if lasted {
                    0
                } else {
                    way.failures.saturating_add(1)
                };
            }
        }
        if over {
            return end();
        }
        let due = {
            let mut way = self.way();
            let others_wait = together.len() > 1 && way.failures <= MOST_KEPT;
            way.is_due(others_wait)
        };
        if due {
            match self.start_back((to, together), None) {
                Ok(started) => {
                    if let Some(old) = &*moving {
                        self.over(old);
                    }
                    *moving = Some(started);
                }
                Err(failure) => {
                    let name = self.export.name();
                    tracing::warn!("{name}: no copy is kept at {to}: {}", failure.what);
                    let mut way = self.way();
                    way.failures = way.failures.saturating_add(1);
                }
            }
        }
        Next::Nothing
    }

    /// It was granted just now, and nobody has changed it yet: see all that is changed from now on, so that nothing else has
    /// to be compared where it came from.
    pub(super) fn go_back_from_now_on(&self, kept: &WayBack, harbour: &Arc<Harbour>) {
        let Side::Away { to, together } = &kept.side else {
            return;
        };
        let left = match self.opened().record().load() {
            Ok(Some(Ownership {
                state:
                    State::Owner {
                        epoch,
                        session: Some(session),
                    },
                ..
            })) => Left { session, epoch },
            _ => return,
        };
        let mut moving = self.lock();
        if moving.is_none() {
            // Who does not begin here begins a little later, and compares.
            self.way().harbour = Some(Arc::clone(harbour));
            *moving = self.start_back((to, together), Some(left)).ok();
        }
    }

    /// Keep the disk that it has come from in step, with those that it has come together with.
    fn start_back(&self, (to, together): (&str, &[Uuid]), left: Option<Left>) -> Result<Moving> {
        let opened = self.opened();
        let mut description = opened.description.clone();
        description.size = self.export.size();
        description.name = self.name_here();
        let mut config = SourceConfig::new(Uuid::new_v4(), to.to_owned(), description);
        config.replica.follow = true;
        config.replica.left = left;
        config.replica.group = self.place_home(to, together);
        let (keep, kept) = kept::keep(&opened);
        if self.way().failures <= MOST_KEPT {
            config.keep = keep;
        }
        // Its clients' requests come to the disk there besides those that pass here.
        self.export.write_through();
        let port = Arc::new(ExportPort(self.export.clone()));
        let session = SourceDriver::start_kept(port, opened.record(), (config, kept));
        let session = session.map_err(|e| {
            self.gives_its_place_back();
            refused(&e)
        })?;
        Ok(Moving {
            back: true,
            ..Moving::to(session)
        })
    }

    /// Its place among those that it has come together with, if they go back together.
    fn place_home(&self, to: &str, together: &[Uuid]) -> Option<Place> {
        let (harbour, failures) = {
            let way = self.way();
            (way.harbour.clone()?, way.failures)
        };
        let opened = self.opened();
        let disk = opened.lineage()?;
        if failures > MOST_KEPT {
            // Each failure of its own has all others begin anew.
            harbour.groups.goes_alone(disk);
            return None;
        }
        harbour.groups.place_home(&Home {
            disk,
            path: &opened.path,
            together,
            to,
        })
    }

    /// Those that have not come by now go back by themselves.
    fn waits_no_more_for_others(&self) {
        self.tell_groups(Groups::waits_no_more);
    }

    /// No session began with the place that it was given.
    fn gives_its_place_back(&self) {
        self.tell_groups(Groups::gives_back);
    }

    fn tell_groups(&self, tell: impl FnOnce(&Groups, Uuid)) {
        let harbour = self.way().harbour.clone();
        if let (Some(harbour), Some(disk)) = (harbour, self.opened().lineage()) {
            tell(&harbour.groups, disk);
        }
    }

    /// Hand the disk back to where it came from.
    pub(super) fn roll_back(&self) -> Result<Value> {
        let moving = self.lock();
        let name = self.export.name();
        let way = self.way();
        if let Some(WayBack {
            side: Side::Home { clients, .. },
            ..
        }) = way.kept.as_ref().filter(|_| way.away)
        {
            let at = clients.as_deref().unwrap_or("its new owner");
            let what = format!("`{name}` is served at {at} now");
            return Err(Failure::usage(what).hint("`diskferry mirror rollback` is said there"));
        }
        drop(way);
        let back = moving.as_ref().filter(|moving| moving.back);
        let Some(moving) = back.filter(|moving| !moving.session.status().ended) else {
            let what = format!("there is no way back for `{name}`");
            let hint =
                "`mirror start --way-back` opens one for a while; see `diskferry mirror status`";
            return Err(Failure::usage(what).hint(hint));
        };
        moving.session.cutover(None, Some(Switchover::Safe));
        self.state_of(moving)
    }
}
