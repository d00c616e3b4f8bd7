//! The ownership record: the durable word on who may write a disk.
//!
//! It lives in a small sidecar file beside the image, as JSON with a check over its content, and
//! is only ever replaced whole. Every rule about *when* it changes is in [`crate::switchover`];
//! this file is only its form. Must never guess: a record that does not check is an error, not an
//! absent record.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::arbiter::ArbiterName;
use crate::error::{Error, ErrorKind, Result};

/// Version of the sidecar's form.
pub const VERSION: u32 = 1;
/// The longest sidecar that is read, in bytes.
pub const MAX_LEN: usize = 16 * 1024;

/// Who may write a disk, as far as this host durably knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ownership {
    /// The disk's lineage: the same on every host it ever moves to.
    pub disk: Uuid,
    /// The state.
    pub state: State,
}

/// The states of a disk on one host. [`crate::switchover`] draws the transitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase", deny_unknown_fields)]
pub enum State {
    /// This host owns the disk under `epoch`: it may serve it.
    Owner {
        /// The ownership epoch, from 1.
        epoch: u64,
        /// The session through which it came here, if it did.
        session: Option<Uuid>,
    },
    /// This host has handed the disk over, for ever, and may only point to the new owner.
    Released {
        /// The new owner's epoch.
        epoch: u64,
        /// The session that moved it.
        session: Uuid,
        /// The attempt of that session.
        attempt: u64,
        /// The new owner's address for migration sessions, to grant it again after a restart.
        to: String,
    },
    /// This host owns the disk or has handed it over, which an arbiter says: [`crate::arbiter`].
    Offered {
        /// The new owner's epoch, if it has it.
        epoch: u64,
        /// The session that moves it.
        session: Uuid,
        /// The attempt of that session.
        attempt: u64,
        /// The new owner's address, as in a record of a disk that was handed over.
        to: String,
        /// The session through which it had come here, if it did.
        came: Option<Uuid>,
        /// Who decides.
        arbiter: ArbiterName,
    },
    /// This host owns the disk or has handed it over, which the record of a machine says that moves with it:
    /// [`crate::joint`].
    Bound {
        /// The new owner's epoch, if it was handed over.
        epoch: u64,
        /// The session that moves it.
        session: Uuid,
        /// The attempt of that session.
        attempt: u64,
        /// The new owner's address, as in a record of a disk that was handed over.
        to: String,
        /// Whose record decides.
        lead: Lead,
    },
    /// A session is about to empty the disk here: what the image holds means nothing.
    Emptying {
        /// The session.
        session: Uuid,
        /// The source's epoch.
        epoch: u64,
    },
    /// A session fills the disk here: it is not complete.
    Receiving {
        /// The session.
        session: Uuid,
        /// The source's epoch.
        epoch: u64,
    },
    /// The disk here and its journal hold the source's disk as it was at a moment, and follow it from one such moment
    /// to the next: [`crate::journal`].
    Following {
        /// The session.
        session: Uuid,
        /// The source's epoch.
        epoch: u64,
        /// The disks whose moments are the same as this one's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<Membership>,
    },
    /// The disk here is complete and durable and waits for the source's word, or for an arbiter's.
    Prepared {
        /// The session.
        session: Uuid,
        /// The attempt to switch over.
        attempt: u64,
        /// The epoch it will own.
        epoch: u64,
        /// Who may be asked for it, if the source has offered it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        claim: Option<ArbiterName>,
    },
}

/// What a disk that follows has to do with a group: [`crate::group`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The group.
    pub id: Uuid,
    /// The group's record says up to which moment this disk may be carried over, and nothing later is in it. Else the
    /// disk goes by its own journal, and is at a moment of its own.
    pub joined: bool,
}

/// The record that decides for a disk that is bound to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lead {
    /// Where it lies on this host: an absolute path.
    pub record: String,
    /// The session that moves it.
    pub session: Uuid,
    /// The epoch of its next owner.
    pub epoch: u64,
}

/// The file's outer form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    diskferry_ownership: u32,
    check: String,
    record: Ownership,
}

fn check_of(record: &Ownership) -> Result<String> {
    let bytes = serde_json::to_vec(record)
        .map_err(|e| Error::new(ErrorKind::Record, format!("cannot write the record: {e}")))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

impl Ownership {
    /// A disk that never moved.
    #[must_use]
    pub fn first(disk: Uuid) -> Self {
        Self {
            disk,
            state: State::Owner {
                epoch: 1,
                session: None,
            },
        }
    }

    /// An image that was brought here another way, to be compared with a disk that comes under its name. Of which
    /// lineage that is nobody knows yet.
    #[must_use]
    pub fn seed() -> Self {
        Self {
            disk: Uuid::nil(),
            state: State::Receiving {
                session: Uuid::nil(),
                epoch: 0,
            },
        }
    }

    /// Whether it is that.
    #[must_use]
    pub fn is_seed(&self) -> bool {
        *self == Self::seed()
    }

    /// The bytes of the sidecar file.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let envelope = Envelope {
            diskferry_ownership: VERSION,
            check: check_of(self)?,
            record: self.clone(),
        };
        let mut bytes = serde_json::to_vec_pretty(&envelope)
            .map_err(|e| Error::new(ErrorKind::Record, format!("cannot write the record: {e}")))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The record in the bytes of a sidecar file.
    ///
    /// Fails with [`ErrorKind::Record`] when they are damaged or of another version. Then the disk
    /// may not be served without the user's explicit word.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_LEN {
            let what = format!("the ownership record is longer than {MAX_LEN} bytes");
            return Err(Error::new(ErrorKind::Record, what));
        }
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| {
            Error::new(
                ErrorKind::Record,
                format!("the ownership record is damaged: {e}"),
            )
        })?;
        if envelope.diskferry_ownership != VERSION {
            let what = format!(
                "the ownership record has version {}; this program knows version {VERSION}",
                envelope.diskferry_ownership
            );
            return Err(Error::new(ErrorKind::Record, what));
        }
        if check_of(&envelope.record)? != envelope.check {
            let what = "the ownership record is damaged: its check does not match its content";
            return Err(Error::new(ErrorKind::Record, what));
        }
        Ok(envelope.record)
    }

    /// The highest epoch this record knows of.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        match self.state {
            State::Owner { epoch, .. }
            | State::Released { epoch, .. }
            | State::Offered { epoch, .. }
            | State::Bound { epoch, .. }
            | State::Emptying { epoch, .. }
            | State::Receiving { epoch, .. }
            | State::Following { epoch, .. }
            | State::Prepared { epoch, .. } => epoch,
        }
    }

    /// The record by which a user takes a disk by force, against whatever this one says.
    ///
    /// Its epoch is two above all that this host knows of, so that it also lies above the epoch
    /// that the other side may have been granted.
    #[must_use]
    pub fn forced(&self) -> Self {
        let epoch = self.epoch().saturating_add(2);
        Self {
            disk: self.disk,
            state: State::Owner {
                epoch,
                session: None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arbiter() -> ArbiterName {
        ArbiterName {
            id: Uuid::from_u128(11),
            at: "file:/mnt/third".into(),
        }
    }

    fn samples() -> Vec<Ownership> {
        let disk = Uuid::from_u128(7);
        let session = Uuid::from_u128(9);
        [
            State::Owner {
                epoch: 1,
                session: None,
            },
            State::Owner {
                epoch: 4,
                session: Some(session),
            },
            State::Released {
                epoch: 5,
                session,
                attempt: 2,
                to: "tcp:b:9000".into(),
            },
            State::Bound {
                epoch: 5,
                session,
                attempt: 2,
                to: "tcp:b:9000".into(),
                lead: Lead {
                    record: "/vm/vm.toml.ownership".into(),
                    session: Uuid::from_u128(10),
                    epoch: 3,
                },
            },
            State::Emptying { session, epoch: 3 },
            State::Receiving { session, epoch: 3 },
            State::Following {
                session,
                epoch: 3,
                group: None,
            },
            State::Following {
                session,
                epoch: 3,
                group: Some(Membership {
                    id: Uuid::from_u128(12),
                    joined: true,
                }),
            },
            State::Prepared {
                session,
                attempt: 1,
                epoch: 4,
                claim: None,
            },
            State::Prepared {
                session,
                attempt: 1,
                epoch: 4,
                claim: Some(arbiter()),
            },
            State::Offered {
                epoch: 5,
                session,
                attempt: 2,
                to: "tcp:b:9000".into(),
                came: None,
                arbiter: arbiter(),
            },
        ]
        .map(|state| Ownership { disk, state })
        .into()
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        for record in samples() {
            let bytes = record.to_bytes().unwrap();
            assert!(bytes.len() < MAX_LEN);
            assert_eq!(Ownership::from_bytes(&bytes).unwrap(), record);
        }
    }

    #[test]
    fn a_damaged_record_is_an_error_and_never_another_record() {
        for record in samples() {
            let bytes = record.to_bytes().unwrap();
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                if let Ok(read) = Ownership::from_bytes(&damaged) {
                    assert_eq!(read, record, "byte {at} changed the record unnoticed");
                }
                assert!(Ownership::from_bytes(&bytes[..at]).is_err() || at + 1 == bytes.len());
            }
        }
    }

    #[test]
    fn a_record_of_a_later_version_is_refused_by_name() {
        let text = String::from_utf8(samples()[0].to_bytes().unwrap()).unwrap();
        let later = text.replace("\"diskferry_ownership\": 1", "\"diskferry_ownership\": 2");
        let error = Ownership::from_bytes(later.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("version 2"), "{error}");
    }
}
