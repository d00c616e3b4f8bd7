//! How a disk changes its owner, as its user wants it.

use mirror::arbiter::{ArbiterName, Switchover};
use mirror::net::SiteAddress;
use mirror::net::arbiter::find;

use super::{SiteDisk, refused};
use crate::control::{CutoverNow, StartMirror};
use crate::failure::{Failure, Result};

/// The arbiter that a move is told of. It has to be there, and may take a while to answer.
pub(super) fn arbiter(start: &StartMirror) -> Result<Option<ArbiterName>> {
    if start.switchover == Switchover::Fast && start.arbiter.is_none() {
        let what = "a fast switchover needs an arbiter";
        return Err(Failure::usage(what).hint("say which with --arbiter"));
    }
    let Some(at) = &start.arbiter else {
        return Ok(None);
    };
    if !SiteAddress::is_written(&start.to) {
        let what = "a move needs an arbiter only to another host that runs `diskferry receive`";
        return Err(Failure::usage(what));
    }
    let found = find(at).map_err(|e| refused(&e))?;
    Ok(Some(found))
}

impl SiteDisk {
    /// Switch over as soon as the target is in step.
    pub(super) fn switch_over(&self, now: CutoverNow) -> Result<serde_json::Value> {
        if now.switchover == Some(Switchover::Fast) && !self.has_arbiter() {
            let what = "the move was started without an arbiter";
            return Err(
                Failure::usage(what).hint("a fast switchover needs `mirror start --arbiter`")
            );
        }
        self.with_session(|session| session.cutover(None, now.switchover))
    }

    fn has_arbiter(&self) -> bool {
        let moving = self.lock();
        let moving = moving.as_ref();
        moving.is_some_and(|moving| moving.session.status().arbiter.is_some())
    }
}
