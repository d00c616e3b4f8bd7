//! The way back of a disk that has moved: what either side keeps of it, over a restart.
//!
//! The form of a file beside the disk, `NAME.way-back`. It decides nothing: who owns the disk stands in the ownership
//! record alone. Must never let a damaged file pass for a whole one. Specified in `docs/mirror-protocol.md`, "The way back".

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};

/// Version of the file's form.
const VERSION: u32 = 1;

/// What is kept of a way back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WayBack {
    /// For how many seconds it is open, once the disk has moved.
    pub span: u64,
    /// The second of UNIX at which it closes; `None` until the disk has moved.
    pub until: Option<u64>,
    /// On which side of it this host is.
    pub side: Side,
}

/// The two sides of a way back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase", deny_unknown_fields)]
pub enum Side {
    /// The disk has left, or will leave, and this host waits for it.
    Home {
        /// Where it listens for it.
        listen: String,
        /// The NBD address to which its clients are sent meanwhile, once that is known.
        clients: Option<String>,
    },
    /// The disk has come, or will come, and may go back.
    Away {
        /// Where the other host waits for it.
        to: String,
        /// The lineages of the disks that it moved together with, its own among them; none if it moved by itself.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        together: Vec<Uuid>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    diskferry_way_back: u32,
    check: String,
    way_back: WayBack,
}

impl WayBack {
    /// Whether it is closed at that second of UNIX.
    #[must_use]
    pub fn is_over(&self, now: u64) -> bool {
        self.until.is_some_and(|until| now >= until)
    }

    fn check(&self) -> Result<String> {
        let bytes = serde_json::to_vec(self).map_err(|e| failure(&format!("has no form: {e}")))?;
        Ok(blake3::hash(&bytes).to_hex().to_string())
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let envelope = Envelope {
            diskferry_way_back: VERSION,
            check: self.check()?,
            way_back: self.clone(),
        };
        serde_json::to_vec_pretty(&envelope).map_err(|e| failure(&format!("has no form: {e}")))
    }

    /// What stands in such a file.
    ///
    /// Fails with [`ErrorKind::Record`] when it is damaged or of another version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let envelope: Envelope =
            serde_json::from_slice(bytes).map_err(|e| failure(&format!("is damaged: {e}")))?;
        if envelope.diskferry_way_back != VERSION {
            return Err(failure("is of another version"));
        }
        if envelope.check != envelope.way_back.check()? {
            return Err(failure("is damaged"));
        }
        Ok(envelope.way_back)
    }
}

fn failure(what: &str) -> Error {
    Error::new(
        ErrorKind::Record,
        format!("what is kept of a way back {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_way_back_comes_back_or_is_an_error() {
        let sides = [
            Side::Home {
                listen: "tls:a:9001".into(),
                clients: Some("nbd://b/disk".into()),
            },
            Side::Away {
                to: "tls:a:9001".into(),
                together: Vec::new(),
            },
            Side::Away {
                to: "tls:a:9001".into(),
                together: vec![Uuid::from_u128(3), Uuid::from_u128(4)],
            },
        ];
        for side in sides {
            let kept = WayBack {
                span: 3600,
                until: Some(1_800_000_000),
                side,
            };
            assert!(kept.is_over(1_800_000_000) && !kept.is_over(1_799_999_999));
            let bytes = kept.to_bytes().unwrap();
            assert_eq!(WayBack::from_bytes(&bytes).unwrap(), kept);
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                if let Ok(read) = WayBack::from_bytes(&damaged) {
                    assert_eq!(read, kept, "byte {at} changed it unnoticed");
                }
            }
        }
    }
}
