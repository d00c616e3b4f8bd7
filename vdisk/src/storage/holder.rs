//! Who has a lock of a file, for messages.
//!
//! Driver. Reads what Linux says of the processes of this host (`proc(5)`, `/proc/PID/fdinfo`). The answer
//! may be out of date when it is given, and says nothing of processes that may not be looked at or run on
//! another host: nothing may be decided by it.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// More are not named.
const MOST: usize = 4;

/// A process that has a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The number of the process.
    pid: u32,
    /// What it calls itself.
    name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

/// The processes that have a lock of the file at `path`, as far as this one can see.
pub(crate) fn holders(path: &Path) -> Vec<Holder> {
    let (Ok(file), Ok(processes)) = (fs::metadata(path), fs::read_dir("/proc")) else {
        return Vec::new();
    };
    let wanted = (file.dev(), file.ino());
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| has_lock(*pid, wanted))
        .map(|pid| Holder {
            pid,
            name: name_of(pid),
        })
        .take(MOST)
        .collect()
}

/// Whether the process has the file of this device and inode open with a lock.
fn has_lock(pid: u32, wanted: (u64, u64)) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    open.flatten().any(|entry| {
        let same = fs::metadata(entry.path()).is_ok_and(|file| (file.dev(), file.ino()) == wanted);
        let info = Path::new("/proc").join(pid.to_string()).join("fdinfo");
        same && fs::read_to_string(info.join(entry.file_name()))
            .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
    })
}

/// The name that a process goes by; it chose that, so nothing of it may confuse a terminal.
fn name_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let shown: String = name.trim().chars().filter(|c| !c.is_control()).collect();
    if shown.is_empty() {
        return "a process".to_owned();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Hold, lock, unlock};

    #[test]
    fn whoever_has_a_lock_is_named_and_whoever_has_none_is_not() {
        let place = tempfile::NamedTempFile::new().expect("a temporary file");
        let own = |holders: Vec<Holder>| holders.iter().any(|h| h.pid == std::process::id());
        assert!(!own(holders(place.path())), "open is not locked");
        for hold in [Hold::Shared, Hold::Exclusive] {
            lock(place.as_file(), hold).expect("nobody else");
            assert!(own(holders(place.path())), "{hold:?}");
            unlock(place.as_file()).expect("unlocked");
            assert!(!own(holders(place.path())));
        }
    }
}
