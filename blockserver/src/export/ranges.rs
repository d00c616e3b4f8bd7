//! Locks on ranges of a disk, so that overlapping changes happen one after the other.
//!
//! Held only while a tap is on. First come, first served: a range waits for every earlier one that
//! it overlaps, whether that is granted or waiting itself, so nobody starves and no cycle arises.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Who holds a range: a worker and its name for the request.
pub(crate) type Owner = (u16, u32);

#[derive(Debug)]
struct Entry {
    start: u64,
    end: u64,
    owner: Owner,
    granted: bool,
}

/// The ranges of one export, oldest first.
#[derive(Debug, Default)]
pub(crate) struct RangeLocks {
    entries: Mutex<VecDeque<Entry>>,
}

impl RangeLocks {
    /// Ask for `len` bytes at `start`; whether they are granted at once. If not, a later
    /// [`Self::release`] of somebody else grants them.
    pub(crate) fn acquire(&self, owner: Owner, start: u64, len: u64) -> bool {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let end = start.saturating_add(len);
        let granted = !entries.iter().any(|e| e.start < end && start < e.end);
        entries.push_back(Entry {
            start,
            end,
            owner,
            granted,
        });
        granted
    }

    /// Give back what `owner` holds; answers whose requests are granted by that.
    pub(crate) fn release(&self, owner: Owner) -> Vec<Owner> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(position) = entries.iter().position(|e| e.owner == owner) else {
            return Vec::new();
        };
        let Some(gone) = entries.remove(position) else {
            return Vec::new();
        };
        let mut granted = Vec::new();
        for index in position..entries.len() {
            let (start, end) = (entries[index].start, entries[index].end);
            let concerned = !entries[index].granted && start < gone.end && gone.start < end;
            let blocked = entries
                .iter()
                .take(index)
                .any(|e| e.start < end && start < e.end);
            if concerned && !blocked {
                entries[index].granted = true;
                granted.push(entries[index].owner);
            }
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_ranges_are_granted_in_the_order_they_were_asked_for() {
        let locks = RangeLocks::default();
        assert!(locks.acquire((0, 1), 0, 10));
        assert!(locks.acquire((0, 2), 10, 10));
        assert!(!locks.acquire((1, 3), 5, 10));
        assert!(!locks.acquire((1, 4), 0, 6), "it overlaps one that waits");
        assert_eq!(locks.release((0, 1)), []);
        assert_eq!(locks.release((0, 2)), [(1, 3)]);
        assert_eq!(locks.release((1, 3)), [(1, 4)]);
        assert_eq!(locks.release((1, 4)), []);
        assert!(locks.acquire((0, 1), 0, u64::MAX));
    }

    #[test]
    fn one_release_may_grant_several() {
        let locks = RangeLocks::default();
        assert!(locks.acquire((0, 0), 0, 100));
        assert!(!locks.acquire((0, 1), 0, 10));
        assert!(!locks.acquire((0, 2), 50, 10));
        assert!(!locks.acquire((0, 3), 5, 10));
        assert_eq!(locks.release((0, 0)), [(0, 1), (0, 2)]);
    }
}
