//! What a host may do with a disk that it finds, by its record and the mark in the image.
//!
//! Pure. Must never say that a disk may be served which another host may own.

use uuid::Uuid;
use vdisk::engine::Mark;

use crate::record::{Ownership, State};

/// What a host may do with a disk that it finds, by its record and the mark in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Serve it.
    Serve {
        /// A mark is still in the image and has to be removed first.
        remove_mark: bool,
    },
    /// It was handed over: never serve it; repeat the grant to the new owner and forward to it.
    Forward {
        /// The session that moved it.
        session: Uuid,
        /// Its attempt.
        attempt: u64,
        /// The new owner's epoch.
        epoch: u64,
        /// The new owner's address for migration sessions.
        to: String,
    },
    /// Refuse, and say this.
    Refuse(String),
}

/// What this host may do with a disk after a start.
#[must_use]
pub fn verdict(record: Option<&Ownership>, mark: Option<Mark>) -> Verdict {
    let Some(record) = record else {
        return match mark {
            None => Verdict::Serve { remove_mark: false },
            Some(Mark::Incomplete) => Verdict::Refuse(
                "the image is the incomplete target of a migration and its ownership record is \
                 missing; mirror it again, or override if you are sure"
                    .into(),
            ),
            Some(Mark::HandedOver) => Verdict::Refuse(
                "the disk was handed over to another host and its ownership record is missing; \
                 use the copy there, or override if you are sure"
                    .into(),
            ),
        };
    };
    match &record.state {
        State::Owner { .. } => Verdict::Serve {
            remove_mark: mark.is_some(),
        },
        State::Released {
            epoch,
            session,
            attempt,
            to,
        } => Verdict::Forward {
            session: *session,
            attempt: *attempt,
            epoch: *epoch,
            to: to.clone(),
        },
        State::Offered { arbiter, .. } => Verdict::Refuse(format!(
            "the disk was offered to another host, and the arbiter at {} says whether it has taken it; serve it, and \
             that is asked",
            arbiter.at
        )),
        State::Bound { lead, .. } => Verdict::Refuse(format!(
            "the disk is about to move with a machine, and {} says whether it has; run the machine",
            lead.record
        )),
        State::Emptying { .. } | State::Receiving { .. } => Verdict::Refuse(
            "the disk is the incomplete target of a migration; let the source finish it".into(),
        ),
        State::Following { .. } => Verdict::Refuse(
            "the disk is the incomplete target of a migration, whose source it follows; let the source finish it, or, \
             if that is lost for good, `receive --promote-at-last-epoch`"
                .into(),
        ),
        State::Prepared {
            claim: Some(arbiter),
            ..
        } => Verdict::Refuse(format!(
            "the disk is complete, and the arbiter at {} says whether it is this host's; receive there, and that is \
             asked",
            arbiter.at
        )),
        State::Prepared { .. } => Verdict::Refuse(
            "the disk is complete but the source has not handed it over yet; let the two hosts \
             reach each other, or override if the source is lost for good"
                .into(),
        ),
    }
}
