//! Sessions that go on when their server comes back: what is kept of one beside its disk, and what the disk's change
//! tracking knows.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use blockserver::export::LocalRequest;
use mirror::files::{SessionStore, load_session, remove_session, session_path, write_session};
use mirror::net::{CheckpointDone, SourceDriver, SourceHandle};
use mirror::saved::{Saved, put_together};
use mirror::session::{Keep, SourceConfig, Terms};
use mirror::{Micros, Result as MirrorResult};
use uuid::Uuid;
use vdisk::disk::ImageFormat;
use vdisk::format::track::CheckpointName;
use vdisk::storage::FileStorage;
use vdisk::track::{Since, changed};

use super::disk::Opened;
use super::port::ExportPort;
use super::together::Groups;
use super::way_back;

/// A session that can go on.
#[derive(Clone, Debug)]
pub(crate) struct KeptSession {
    /// In its next life; as it was found, if it is of a group, whose disks begin that together.
    saved: Saved,
    /// What its target may not have of the disk as it is now: offset and length.
    parts: Vec<(u64, u64)>,
}

/// What is kept of a session of the disk at `path`, which this process has open and has not changed yet.
pub(super) fn look(path: &Path, kind: ImageFormat) -> Option<KeptSession> {
    let at = session_path(path);
    let found = match load_session(&at) {
        Ok(found) => found?,
        Err(error) => {
            tracing::warn!("{error}; no move goes on");
            return None;
        }
    };
    let next = found.next_life()?;
    let saved = if found.group.is_some() { found } else { next };
    let known = match (&saved.checkpoint, kind) {
        (Some(name), ImageFormat::Vhdx) => changed_since(path, name),
        _ => None,
    };
    let parts = match known {
        Some(mut changed) => {
            changed.extend(&saved.rest);
            let most = changed.len();
            put_together(changed, most)
        }
        None => vec![(0, saved.size)],
    };
    Some(KeptSession { saved, parts })
}

/// What changed since that checkpoint, if it is known.
fn changed_since(path: &Path, checkpoint: &str) -> Option<Vec<(u64, u64)>> {
    let mut parts = Vec::new();
    let since = Since {
        checkpoint,
        until: None,
    };
    let listed = FileStorage::beside(path).and_then(|mut storage| {
        changed(&mut storage, since, &mut |offset, len| {
            parts.push((offset, len));
            Ok(())
        })
    });
    match listed {
        Ok(listed) if listed.known => Some(parts),
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(
                "{}: what changed since {checkpoint} is not known: {error}",
                path.display()
            );
            None
        }
    }
}

/// Nothing is kept of a session of the disk at `path` any more.
pub(super) fn forget(path: &Path) {
    if let Err(error) = remove_session(&session_path(path)) {
        tracing::warn!("{}: {error}", session_path(path).display());
    }
}

/// What lets a session of `opened` be kept.
pub(super) fn keep(opened: &Opened) -> (Keep, SessionStore) {
    let spare = Uuid::new_v4();
    let store = SessionStore::open(session_path(&opened.path));
    (Keep::Session { spare }, store)
}

/// Go on with the session that was kept of `opened`, if there is one, by itself or in one of the `groups`. Nobody may
/// change the disk before this returns.
pub(super) fn resume(
    port: ExportPort,
    opened: &mut Opened,
    (way_back, groups): (Option<(String, u64)>, &Groups),
) -> Option<SourceHandle> {
    // It may be large, and is of use once. Nobody looks after a way back whose time was over while nobody served the disk.
    let kept = opened.kept.take().filter(|kept| {
        let over = way_back::is_over_at(&opened.path, &kept.saved.wishes.to);
        if over {
            forget(&opened.path);
        }
        !over
    });
    let session = kept.and_then(|kept| {
        let (to, path) = (&kept.saved.wishes.to, opened.path.display());
        match go_on(port, opened, (&kept, way_back, groups)) {
            Ok(session) => {
                tracing::info!("{path}: its move to {to} goes on");
                Some((session, kept.saved.group.is_some()))
            }
            Err(error) => {
                tracing::warn!("{path}: its move to {to} does not go on: {error}");
                if !way_back::joins_others(&opened.path) {
                    groups.is_alone(kept.saved.disk);
                }
                forget(&opened.path);
                None
            }
        }
    });
    let in_group = session.as_ref().is_some_and(|(_, in_group)| *in_group);
    // Who only reads it changes nothing that its group would have to know of, and one that goes back with others joins them.
    if !in_group
        && !opened.read_only
        && !way_back::joins_others(&opened.path)
        && let Some(disk) = opened.lineage()
    {
        groups.is_alone(disk);
    }
    session.map(|(session, _)| session)
}

fn go_on(
    port: ExportPort,
    opened: &Opened,
    (kept, way_back, groups): (&KeptSession, Option<(String, u64)>, &Groups),
) -> MirrorResult<SourceHandle> {
    let saved = &kept.saved;
    let wishes = &saved.wishes;
    let mut description = opened.description.clone();
    description.name.clone_from(&wishes.name);
    let mut config = SourceConfig::new(saved.session, wishes.to.clone(), description);
    config.handover.automatic = wishes.automatic;
    config.replica.follow = wishes.follow;
    config.replica.way_back = way_back;
    config.handover.max_pause = Micros(wishes.max_pause);
    config.rates.clone_from(&wishes.rate);
    config.handover.how = wishes.switchover;
    config.handover.arbiter.clone_from(&wishes.arbiter);
    config.terms = terms(wishes.deadline, wishes.max_slowdown);
    let (keep, store) = keep(opened);
    config.keep = keep;
    if saved.group.is_some() {
        let record = opened.record().load()?;
        let its =
            record.is_some_and(|record| record.disk == saved.disk && record.epoch() == saved.epoch);
        if !its {
            let what = "what is kept is of an earlier stay of the disk here";
            return Err(mirror::Error::new(mirror::ErrorKind::NotOwned, what));
        }
        let goes_home = way_back::goes_to(&opened.path, &wishes.to);
        let place = groups.place_of(saved, goes_home);
        let left = || {
            let what = "the others of its group went on without it";
            mirror::Error::new(mirror::ErrorKind::NotOwned, what)
        };
        config.replica.group = Some(place.ok_or_else(left)?);
    } else {
        let failed = |e| mirror::Error::io(mirror::ErrorKind::Io, "it cannot be kept", e);
        write_session(&session_path(&opened.path), saved).map_err(failed)?;
    }
    let parts = (saved, kept.parts.as_slice());
    SourceDriver::resume(Arc::new(port), opened.record(), (config, store), parts)
}

/// The second of UNIX that is so many from now.
pub(super) fn in_seconds(span: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs()).saturating_add(span)
}

/// What a session has to keep to: to be in step at that second of UNIX.
pub(super) fn terms(until: Option<u64>, max_slowdown: Option<u8>) -> Terms {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs());
    let left = until.map(|until| until.saturating_sub(now));
    Terms {
        within: left.map(Micros::from_secs),
        until,
        max_slowdown,
    }
}

/// Take a checkpoint of a disk that is served, under a name of its own.
pub(super) fn checkpoint(port: &ExportPort, done: CheckpointDone) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let name = format!("mirror-{}", Uuid::new_v4().simple());
    let request = CheckpointName::new(&name).map(|name| LocalRequest::Checkpoint {
        name,
        time: now.map_or(0, |now| now.as_secs()),
    });
    let Ok(request) = request else {
        return done(None);
    };
    port.0.submit(request, move |taken| match taken {
        Ok(_) => done(Some(name)),
        Err(error) => {
            tracing::debug!("changes are not noted for the move: {error}");
            done(None);
        }
    });
}
