//! What an arbiter decides, and in which words: one register for each attempt to switch over, written once.
//!
//! In a fast switchover the source makes its offer durable and then tells the target that it may claim the disk. From
//! that moment neither side knows by itself who goes on with it: both ask a third place, and whoever asks first has it,
//! for ever. Asking again gives the same answer, so a lost answer costs a question. Places that decide are in
//! [`crate::net::arbiter`].
//!
//! Must never have two answers for one [`Ballot`].

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::{Ownership, State};

/// One attempt to switch over: what is decided about. Never used again, whoever gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot {
    /// The disk's lineage.
    pub disk: Uuid,
    /// The session that moves it.
    pub session: Uuid,
    /// The attempt of that session.
    pub attempt: u64,
}

/// Who goes on with the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The host that had offered it.
    Source,
    /// The host that it was offered to.
    Target,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// An arbiter as a host knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArbiterName {
    /// What it calls itself, wherever it is: two hosts that mean the same one find the same name.
    pub id: Uuid,
    /// Where this host finds it.
    pub at: String,
}

/// How to switch over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switchover {
    /// The source decides once it hears that the target has everything: one and a half round trips.
    #[default]
    Safe,
    /// The target takes over when it has everything and the arbiter says so: half a round trip, and one to the arbiter.
    Fast,
}

impl Switchover {
    /// Whether it is the usual one.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        *self == Self::Safe
    }
}

impl Ownership {
    /// What this record leaves to an arbiter, and to which.
    #[must_use]
    pub fn ballot(&self) -> Option<(&ArbiterName, Ballot)> {
        let (State::Offered {
            arbiter,
            session,
            attempt,
            ..
        }
        | State::Prepared {
            claim: Some(arbiter),
            session,
            attempt,
            ..
        }) = &self.state
        else {
            return None;
        };
        let ballot = Ballot {
            disk: self.disk,
            session: *session,
            attempt: *attempt,
        };
        Some((arbiter, ballot))
    }

    /// The record of a host that had offered the disk, once the arbiter has said who has it. `None` for any other record.
    #[must_use]
    pub fn settled(&self, side: Side) -> Option<Self> {
        let State::Offered {
            epoch,
            session,
            attempt,
            to,
            came,
            ..
        } = &self.state
        else {
            return None;
        };
        let state = match side {
            Side::Source => State::Owner {
                epoch: epoch.saturating_sub(1),
                session: *came,
            },
            Side::Target => State::Released {
                epoch: *epoch,
                session: *session,
                attempt: *attempt,
                to: to.clone(),
            },
        };
        Some(Self {
            disk: self.disk,
            state,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_ends_as_one_of_the_two_and_nothing_else_is_left_to_an_arbiter() {
        let arbiter = ArbiterName {
            id: Uuid::from_u128(5),
            at: "file:/third".into(),
        };
        let came = Some(Uuid::from_u128(3));
        let session = Uuid::from_u128(9);
        let offered = Ownership {
            disk: Uuid::from_u128(7),
            state: State::Offered {
                epoch: 4,
                session,
                attempt: 2,
                to: "tcp:b:9000".into(),
                came,
                arbiter: arbiter.clone(),
            },
        };
        let (name, ballot) = offered.ballot().unwrap();
        assert_eq!((name, ballot.attempt), (&arbiter, 2));
        let back = offered.settled(Side::Source).unwrap();
        assert_eq!(
            back.state,
            State::Owner {
                epoch: 3,
                session: came
            }
        );
        let gone = offered.settled(Side::Target).unwrap();
        assert!(matches!(gone.state, State::Released { epoch: 4, .. }));
        for other in [back, gone] {
            assert!(other.ballot().is_none() && other.settled(Side::Target).is_none());
        }
    }
}
