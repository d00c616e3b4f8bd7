//! What is kept beside a disk of its way back, and what is made of it when the disk is taken up.
//!
//! Must never decide who owns a disk: its record alone says that.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use mirror::files::{load_way_back, way_back_path, write_way_back};
use mirror::way_back::{Side, WayBack};
use mirror::wire::WayHome;

use super::disk::Opened;
use crate::identity;

/// The second of UNIX.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// What is kept of the way back of the disk at `path`.
pub(super) fn kept_of(path: &Path) -> Option<WayBack> {
    load_way_back(&way_back_path(path)).unwrap_or_else(|error| {
        tracing::warn!("{error}; there is no way back");
        None
    })
}

/// The same of a disk that is about to be served; there is none for who only reads, or takes it by force.
pub(super) fn found(opened: &Opened, take_over: bool) -> Option<WayBack> {
    if opened.read_only {
        return None;
    }
    let found = kept_of(&opened.path)?;
    if take_over {
        keep(&opened.path, None);
        return None;
    }
    Some(found)
}

/// Keep that, or nothing; whether it is kept durably.
pub(super) fn keep(path: &Path, way: Option<&WayBack>) -> bool {
    let kept = write_way_back(&way_back_path(path), way);
    if let Err(error) = &kept {
        let path = path.display();
        tracing::warn!("{path}: its way back is not kept over a restart: {error}");
    }
    kept.is_ok()
}

/// What the target of a session that goes on is told.
pub(super) fn told(way: Option<&WayBack>) -> Option<(String, u64)> {
    let way = way?;
    match &way.side {
        Side::Home { listen, .. } if way.until.is_none() => Some((listen.clone(), way.span)),
        _ => None,
    }
}

/// Whether the disk goes back together with others that came with it.
pub(super) fn joins_others(path: &Path) -> bool {
    let side = kept_of(path).map(|way| way.side);
    matches!(side, Some(Side::Away { together, .. }) if together.len() > 1)
}

/// Whether that is where the disk may go back to.
pub(super) fn goes_to(path: &Path, at: &str) -> bool {
    let side = kept_of(path).map(|way| way.side);
    matches!(side, Some(Side::Away { to, .. }) if to == at)
}

/// Whether that is where the disk could have gone back to, and its time is over.
pub(super) fn is_over_at(path: &Path, at: &str) -> bool {
    kept_of(path).is_some_and(|way| {
        let there = matches!(&way.side, Side::Away { to, .. } if to == at);
        there && way.is_over(now())
    })
}

/// What is left of it for the owner of the disk: nothing of one that was to open with a move that does not go on.
pub(super) fn of_owner(path: &Path, way: Option<WayBack>, moves: bool) -> Option<WayBack> {
    let mut way = way?;
    let unopened = matches!(way.side, Side::Home { .. }) && way.until.is_none();
    if (unopened && !moves) || way.is_over(now()) {
        keep(path, None);
        return None;
    }
    if matches!(way.side, Side::Away { .. }) && way.until.is_none() {
        way.until = Some(now().saturating_add(way.span));
        keep(path, Some(&way));
    }
    Some(way)
}

/// What is left of it for a host that has handed the disk over.
pub(super) fn of_gone(path: &Path, way: Option<WayBack>) -> Option<WayBack> {
    let way = way?;
    if matches!(way.side, Side::Home { .. }) {
        return Some(way);
    }
    keep(path, None);
    None
}

/// The source of the disk that comes to `path` says where it will wait for it, or that it will not.
pub(super) fn told_of(path: &Path, way_back: Option<WayHome>, plain: bool) {
    let way = way_back.and_then(|way| {
        let to = way.address;
        if let Err(refused) = identity::allowed(&to, plain) {
            tracing::warn!("{}: no way back: {}", path.display(), refused.what);
            return None;
        }
        Some(WayBack {
            span: way.seconds,
            until: None,
            side: Side::Away {
                to,
                together: way.together,
            },
        })
    });
    keep(path, way.as_ref());
}
