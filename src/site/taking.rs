//! What a receiving site takes: which disks, how large, and how many bytes of the host they may fill.
//!
//! Must never refuse what a disk that is owned or handed over here needs: only what arrives is counted.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use mirror::session::Admission;

use crate::size;

/// After so many bytes that arrived it is looked again what the files take: bytes of a disk and bytes of its image are not the
/// same.
const LOOK_AGAIN: u64 = 16 << 20;

/// What was said on the command line; nothing of it: everything is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taking {
    /// Names of disks; none: any.
    pub(crate) expected: Vec<String>,
    /// Bytes of the largest disk.
    pub(crate) largest: Option<u64>,
    /// Bytes that the files in the folder may take of the file system.
    pub(crate) quota: Option<u64>,
}

impl Taking {
    /// Whether a session may begin with the disk of that name.
    pub(crate) fn admission(&self, name: &str) -> Admission {
        let known = self.expected.is_empty() || self.expected.iter().any(|other| other == name);
        Admission {
            unexpected: !known,
            largest: self.largest,
        }
    }
}

/// What the files in a folder may take.
///
/// What is on the way when it is looked does not show yet, so they may come to take some tens of MiB more.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    most: Option<u64>,
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    /// What the files took when it was looked last; `None` before that.
    taken: Option<u64>,
    /// What arrived since.
    since: u64,
}

impl Quota {
    pub(crate) fn new(most: Option<u64>) -> Self {
        Self {
            most,
            counted: Mutex::default(),
        }
    }

    /// So many bytes arrive for `folder`. Fails with [`io::ErrorKind::StorageFull`] if they are too many.
    pub(crate) fn make_room(&self, folder: &Path, bytes: u64) -> io::Result<()> {
        let Some(most) = self.most else {
            return Ok(());
        };
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |counted: &Counted| {
            let taken = counted.taken.unwrap_or(u64::MAX);
            taken.saturating_add(counted.since).saturating_add(bytes) <= most
        };
        if counted.since >= LOOK_AGAIN || !fits(&counted) {
            *counted = Counted {
                taken: Some(taken_by_files(folder)?),
                since: 0,
            };
        }
        if fits(&counted) {
            counted.since = counted.since.saturating_add(bytes);
            return Ok(());
        }
        let what = format!(
            "the files in {} take {}, and its `diskferry receive` is told that they may take {} (--quota)",
            folder.display(),
            size::show(counted.taken.unwrap_or_default()),
            size::show(most)
        );
        Err(io::Error::new(io::ErrorKind::StorageFull, what))
    }
}

/// Bytes that the files of a folder, not of those in it, take of the file system.
fn taken_by_files(folder: &Path) -> io::Result<u64> {
    let mut taken = 0_u64;
    for entry in std::fs::read_dir(folder)? {
        match entry?.metadata() {
            Ok(about) if about.is_file() => {
                taken = taken.saturating_add(about.blocks().saturating_mul(512));
            }
            // A record is replaced now and then.
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_taken_and_what_does_not_is_refused_until_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let quota = Quota::new(Some(1 << 20));
        let write = |name: &str, len: usize| {
            std::fs::write(folder.path().join(name), vec![1; len]).unwrap();
        };
        write("a", 600 << 10);
        quota.make_room(folder.path(), 300 << 10).unwrap();
        write("b", 300 << 10);
        let refused = quota.make_room(folder.path(), 300 << 10).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert!(refused.to_string().contains("--quota"), "{refused}");
        std::fs::remove_file(folder.path().join("a")).unwrap();
        quota.make_room(folder.path(), 300 << 10).unwrap();
    }

    #[test]
    fn without_a_quota_nothing_is_looked_at() {
        let nowhere = Path::new("/there/is/no/such/folder");
        Quota::new(None).make_room(nowhere, u64::MAX).unwrap();
    }

    #[test]
    fn expected_names_are_taken_as_they_are_written() {
        let taking = Taking {
            expected: vec!["db.vhdx".to_owned()],
            ..Taking::default()
        };
        assert!(!taking.admission("db.vhdx").unexpected);
        assert!(taking.admission("DB.vhdx").unexpected);
        assert!(!Taking::default().admission("any.vhdx").unexpected);
    }
}
