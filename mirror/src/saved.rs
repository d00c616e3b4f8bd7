//! What a source keeps of its session, so that the session goes on when its process or its host comes back.
//!
//! A small file beside the disk, JSON with a check over its content, replaced whole. It names parts of the disk (*the
//! rest*) and a checkpoint of the disk's change tracking: outside of the rest, and of what changed since the checkpoint,
//! the target durably has what the source has. Without a checkpoint nothing is known, and all is compared. This file is
//! only the form; when it is written is in `session/source/keeping.rs`. Must never guess: a file that does not check is
//! an error.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::arbiter::{ArbiterName, Switchover};
use crate::error::{Error, ErrorKind, Result};
use crate::timetable::Timetable;
use crate::wire::{MAX_DISKS, MAX_NAME};

/// Version of the form.
pub const VERSION: u32 = 1;
/// The longest file that is read, in bytes.
pub const MAX_LEN: usize = 1 << 20;
/// The most parts that are named; more are put together.
pub const MOST_PARTS: usize = 8192;
/// The most lives of a session.
const MOST_LIVES: u64 = 1 << 16;
/// The longest path of a disk of a group, in bytes.
const MAX_PATH: usize = 4096;

/// A session as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// The session.
    pub session: Uuid,
    /// The disk's lineage.
    pub disk: Uuid,
    /// The ownership epoch under which the source serves it.
    pub epoch: u64,
    /// How often the source came back: whatever it counts it counts on from there.
    pub life: u64,
    /// Bytes of the disk.
    pub size: u64,
    /// What was asked for.
    pub wishes: Wishes,
    /// The checkpoint since which the disk's changes are known, by its name.
    pub checkpoint: Option<String>,
    /// Parts that the target may not have as they were at the checkpoint: offset and length in bytes.
    pub rest: Vec<(u64, u64)>,
    /// The disks that it goes on with, if it is one of a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Together>,
}

/// Disks that were started together, and go on together or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Together {
    /// The group.
    pub id: Uuid,
    /// Which start of it: the name of what its disks counted by then.
    pub start: Uuid,
    /// Those that were not handed over, this one among them.
    pub disks: Vec<Kin>,
    /// The lineages of all that were started together; empty in what an older version kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub all: Vec<Uuid>,
}

/// A disk of a group, as the others know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kin {
    /// Its lineage.
    pub disk: Uuid,
    /// Its name at the target.
    pub name: String,
    /// Where it was when it was started.
    pub path: String,
}

impl Together {
    /// The lineages of all that were started together, as far as they are known.
    #[must_use]
    pub fn lineages(&self) -> Vec<Uuid> {
        if self.all.is_empty() {
            return self.disks.iter().map(|kin| kin.disk).collect();
        }
        self.all.clone()
    }

    /// Whether it is a group that the disk of that lineage can be of.
    #[must_use]
    pub fn holds(&self, disk: Uuid) -> bool {
        let short = |kin: &Kin| kin.name.len() <= MAX_NAME && kin.path.len() <= MAX_PATH;
        let most = usize::from(MAX_DISKS);
        let few = self.disks.len() <= most && self.all.len() <= most;
        let mut each: Vec<Uuid> = self.disks.iter().map(|kin| kin.disk).collect();
        each.sort_unstable();
        let once = each.is_sorted_by(|a, b| a < b);
        few && once && self.disks.iter().all(short) && each.contains(&disk)
    }
}

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wishes {
    /// The target's address for migration sessions.
    pub to: String,
    /// The disk's name there.
    pub name: String,
    /// Switch over without being asked.
    pub automatic: bool,
    /// Have the target follow.
    pub follow: bool,
    /// The longest estimated pause with which to begin a switchover, in microseconds.
    pub max_pause: u64,
    /// Bytes a second for the copy.
    pub rate: Timetable,
    /// How to switch over.
    #[serde(default, skip_serializing_if = "Switchover::is_safe")]
    pub switchover: Switchover,
    /// Who decides in a fast switchover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arbiter: Option<ArbiterName>,
    /// When the target is to be in step, in seconds of UNIX.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
    /// By how many of a hundred clients' writes may be slowed down for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_slowdown: Option<u8>,
}

/// The file's outer form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    diskferry_mirror: u32,
    check: String,
    saved: Saved,
}

fn check_of(saved: &Saved) -> Result<String> {
    let bytes = serde_json::to_vec(saved).map_err(|e| bad(&format!("has no form: {e}")))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::Record, format!("the kept session {what}"))
}

impl Saved {
    /// The bytes of the file.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let envelope = Envelope {
            diskferry_mirror: VERSION,
            check: check_of(self)?,
            saved: self.clone(),
        };
        let bytes = serde_json::to_vec(&envelope);
        bytes.map_err(|e| bad(&format!("has no form: {e}")))
    }

    /// The session in the bytes of a file.
    ///
    /// Fails with [`ErrorKind::Record`] when they are damaged, of another version, or say what cannot be.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_LEN {
            return Err(bad(&format!("is longer than {MAX_LEN} bytes")));
        }
        let envelope: Envelope =
            serde_json::from_slice(bytes).map_err(|e| bad(&format!("is damaged: {e}")))?;
        if envelope.diskferry_mirror != VERSION {
            let version = envelope.diskferry_mirror;
            return Err(bad(&format!(
                "has version {version}; this program knows version {VERSION}"
            )));
        }
        let saved = envelope.saved;
        if check_of(&saved)? != envelope.check {
            return Err(bad("is damaged: its check does not match its content"));
        }
        let fits = |(offset, len): &(u64, u64)| {
            let end = offset.checked_add(*len);
            end.is_some_and(|end| end <= saved.size)
        };
        if saved.rest.len() > MOST_PARTS || !saved.rest.iter().all(fits) {
            return Err(bad("names parts that the disk does not have"));
        }
        let group = saved.group.as_ref();
        if !group.is_none_or(|group| group.holds(saved.disk)) {
            return Err(bad("is of a group that cannot be"));
        }
        Ok(saved)
    }

    /// The same in its next life; `None` when there were too many, and a new session has to begin.
    #[must_use]
    pub fn next_life(&self) -> Option<Self> {
        let life = self.life + 1;
        (life < MOST_LIVES).then(|| Self {
            life,
            ..self.clone()
        })
    }
}

/// Parts in order, none adjoining another, at most `most` of them: the smallest gaps are filled.
#[must_use]
pub fn put_together(mut parts: Vec<(u64, u64)>, most: usize) -> Vec<(u64, u64)> {
    parts.retain(|(_, len)| *len > 0);
    parts.sort_unstable();
    let mut gap = 0;
    loop {
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(parts.len().min(most + 1));
        for (offset, len) in parts {
            let end = offset.saturating_add(len);
            match joined.last_mut() {
                Some((start, so_far))
                    if offset <= start.saturating_add(*so_far).saturating_add(gap) =>
                {
                    *so_far = (*so_far).max(end - *start);
                }
                _ => joined.push((offset, len)),
            }
        }
        if joined.len() <= most.max(1) {
            return joined;
        }
        parts = joined;
        gap = (gap * 2).max(crate::GRANULE);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Saved {
        Saved {
            session: Uuid::from_u128(1),
            disk: Uuid::from_u128(2),
            epoch: 3,
            life: 4,
            size: 1 << 40,
            wishes: Wishes {
                to: "tcp:b:9000".into(),
                name: "a.vhdx".into(),
                automatic: true,
                follow: false,
                max_pause: 300_000,
                rate: "20M,08:00-18:00=5M".parse().unwrap(),
                switchover: Switchover::Safe,
                arbiter: None,
                deadline: None,
                max_slowdown: None,
            },
            checkpoint: Some("mirror-1".into()),
            rest: vec![(0, 4096), (1 << 30, 1 << 20)],
            group: None,
        }
    }

    fn of_group(disks: u128) -> Saved {
        let kin = |disk| Kin {
            disk: Uuid::from_u128(disk),
            name: "a.vhdx".into(),
            path: "/disks/a.vhdx".into(),
        };
        let group = Together {
            id: Uuid::from_u128(7),
            start: Uuid::from_u128(8),
            disks: (1..=disks).map(kin).collect(),
            all: (1..=disks).map(Uuid::from_u128).collect(),
        };
        Saved {
            group: Some(group),
            ..sample()
        }
    }

    #[test]
    fn a_session_comes_back_as_it_was_kept_and_never_as_another() {
        let bytes = sample().to_bytes().unwrap();
        assert_eq!(Saved::from_bytes(&bytes).unwrap(), sample());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            if let Ok(read) = Saved::from_bytes(&damaged) {
                assert_eq!(read, sample(), "byte {at} changed it unnoticed");
            }
        }
    }

    #[test]
    fn what_an_older_program_does_not_know_is_written_only_where_it_was_asked_for() {
        let text = String::from_utf8(sample().to_bytes().unwrap()).unwrap();
        let new = ["switchover", "arbiter", "deadline", "slowdown", "group"];
        assert!(new.iter().all(|word| !text.contains(word)));
        let mut fast = sample();
        fast.wishes.switchover = Switchover::Fast;
        fast.wishes.arbiter = Some(ArbiterName {
            id: Uuid::from_u128(4),
            at: "file:/third".into(),
        });
        fast.wishes.deadline = Some(1_800_000_000);
        fast.wishes.max_slowdown = Some(50);
        assert_eq!(Saved::from_bytes(&fast.to_bytes().unwrap()).unwrap(), fast);
    }

    #[test]
    fn parts_beyond_the_disk_and_too_many_of_them_are_refused() {
        let beyond = Saved {
            rest: vec![(1 << 40, 1)],
            ..sample()
        };
        assert!(Saved::from_bytes(&beyond.to_bytes().unwrap()).is_err());
        let many = Saved {
            rest: vec![(0, 1); MOST_PARTS + 1],
            ..sample()
        };
        assert!(Saved::from_bytes(&many.to_bytes().unwrap()).is_err());
    }

    #[test]
    fn a_group_that_the_disk_is_not_of_or_that_names_one_twice_is_refused() {
        let read = |saved: &Saved| Saved::from_bytes(&saved.to_bytes().unwrap());
        let group = of_group(2);
        assert_eq!(read(&group).unwrap(), group);
        assert!(read(&of_group(1)).is_err(), "it is of another disk");
        let mut twice = of_group(2);
        if let Some(group) = &mut twice.group {
            group.disks.push(group.disks[0].clone());
        }
        assert!(read(&twice).is_err());
        assert!(read(&of_group(u128::from(MAX_DISKS) + 1)).is_err());
    }

    #[test]
    fn as_many_parts_as_may_be_fit_the_longest_file() {
        let rest = (0..MOST_PARTS as u64).map(|at| ((at + 1) << 45, 1 << 44));
        let saved = Saved {
            size: u64::MAX,
            rest: rest.collect(),
            ..of_group(u128::from(MAX_DISKS))
        };
        let paths = usize::from(MAX_DISKS) * MAX_PATH;
        assert!(saved.to_bytes().unwrap().len() + paths < MAX_LEN);
    }

    proptest! {
        #[test]
        fn putting_together_leaves_nothing_out_and_keeps_to_the_bound(
            parts in prop::collection::vec((0_u64..1 << 20, 0_u64..9000), 0..60),
            most in 1_usize..20,
        ) {
            let together = put_together(parts.clone(), most);
            prop_assert!(together.len() <= most);
            prop_assert!(together.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0));
            for (offset, len) in parts.into_iter().filter(|(_, len)| *len > 0) {
                let covers = |(a, l): &(u64, u64)| *a <= offset && offset + len <= a + l;
                prop_assert!(together.iter().any(covers));
            }
            // No more than has to be: with room enough nothing is filled.
            let exact = put_together(together.clone(), usize::MAX - 1);
            prop_assert_eq!(exact, together);
        }
    }
}
