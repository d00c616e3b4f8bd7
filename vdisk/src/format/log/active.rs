//! Which entries of the log count (MS-VHDX 2.3.3).
//!
//! The text walks from every sector and keeps the walk that ends at the greatest sequence number.
//! Here each sector is looked at once: an entry begins with a signature that no other sector of an
//! entry begins with, so valid entries never share a sector, each has at most one predecessor, and
//! the walks are the maximal chains. A 64 MiB log is checked in one pass.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::format::{Code, PAGE};

use super::entry::{self, Entry, LogPlace, decode_entry};

/// The entries that must be replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveSequence {
    /// From the tail to the head, at least one.
    pub entries: Vec<Entry>,
}

impl ActiveSequence {
    /// The newest entry, whose two file lengths count.
    #[must_use]
    pub fn head(&self) -> Option<&Entry> {
        self.entries.last()
    }
}

/// The active sequence of a whole log: the chain of valid entries with the greatest number at its
/// head, whose tail is one of them; only what is from that tail on.
///
/// None although the header says that the log is in use: the image is corrupt.
pub fn find_active(log: &[u8], place: &LogPlace) -> Result<ActiveSequence> {
    let entries = valid_entries(log, place);
    let next = |entry: &Entry| {
        let at = (u64::from(entry.at) + u64::from(entry.len)).checked_rem(log.len() as u64)?;
        entries
            .get(&(at as u32))
            .filter(|next| entry.sequence.checked_add(1) == Some(next.sequence))
    };
    let followers: BTreeSet<u32> = entries.values().filter_map(next).map(|e| e.at).collect();
    let starts = entries.values().filter(|e| !followers.contains(&e.at));
    let mut best: Option<Vec<Entry>> = None;
    for start in starts {
        let chain: Vec<Entry> = std::iter::successors(Some(start), |entry| next(entry))
            .copied()
            .collect();
        let Some(head) = chain.last().copied() else {
            continue;
        };
        let newer = best
            .as_ref()
            .and_then(|best| best.last())
            .is_none_or(|best| best.sequence < head.sequence);
        let from = chain.iter().position(|entry| entry.at == head.tail);
        if let (true, Some(from)) = (newer, from) {
            best = Some(chain.into_iter().skip(from).collect());
        }
    }
    best.map(|entries| ActiveSequence { entries })
        .ok_or_else(|| {
            Error::corrupt(format!(
                "the log {} is in use and has no valid sequence of entries ({} valid entries)",
                place.guid,
                entries.len()
            ))
            .coded(Code::LogDamaged)
            .at(place.at.0)
        })
}

fn valid_entries(log: &[u8], place: &LogPlace) -> BTreeMap<u32, Entry> {
    (0..)
        .step_by(PAGE)
        .zip(log.chunks_exact(PAGE))
        .filter(|(_, sector)| sector.starts_with(&entry::SIGNATURE))
        .filter_map(|(at, _)| decode_entry(log, at, place).ok())
        .map(|entry| (entry.at, entry))
        .collect()
}
