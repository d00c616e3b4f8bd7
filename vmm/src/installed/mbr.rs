//! The partition table of a master boot record, and of the extended records behind it.
//!
//! Codec: 512 bytes to checked places; sectors are counted, not bytes. What was never a table yields none.

/// Types of a partition that holds more partitions.
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
/// The partition that stands for a GUID partition table.
const PROTECTIVE: u8 = 0xEE;
/// Bytes of a record.
pub(super) const BYTES: usize = 512;
const TABLE: usize = 446;
const ENTRY: usize = 16;

/// An entry in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// 0 to 3.
    pub(super) slot: u8,
    /// Whether a boot loader starts from it.
    pub(super) active: bool,
    /// What it says it holds.
    pub(super) kind: u8,
    /// First sector, as the entry says.
    pub(super) first: u32,
    /// Sectors, at least one.
    pub(super) sectors: u32,
}

impl Entry {
    /// Whether it holds more partitions.
    pub(super) fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    /// Whether it stands for a GUID partition table.
    pub(super) fn is_protective(&self) -> bool {
        self.kind == PROTECTIVE
    }
}

/// The entries of a record that are in use; none if it is no record.
pub(super) fn entries(record: &[u8; BYTES]) -> Vec<Entry> {
    if record.get(510..) != Some(&[0x55, 0xAA]) {
        return Vec::new();
    }
    let entries = (0..4).map(|slot| {
        let at = TABLE + usize::from(slot) * ENTRY;
        Entry {
            slot,
            active: record.get(at) == Some(&0x80),
            kind: record.get(at + 4).copied().unwrap_or_default(),
            first: field(record, at + 8),
            sectors: field(record, at + 12),
        }
    });
    // A boot sector of a file system has the same last bytes, and text where the table would be.
    let states = (0..4).map(|slot| record.get(TABLE + slot * ENTRY));
    if states.flatten().any(|state| !matches!(state, 0 | 0x80)) {
        return Vec::new();
    }
    entries
        .filter(|entry| entry.kind != 0 && entry.sectors != 0)
        .collect()
}

fn field(record: &[u8; BYTES], at: usize) -> u32 {
    let bytes = record.get(at..at + 4).and_then(|bytes| bytes.first_chunk());
    u32::from_le_bytes(bytes.copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(of: &[(usize, u8, u32, u32)]) -> [u8; BYTES] {
        let mut record = [0; BYTES];
        record[510..].copy_from_slice(&[0x55, 0xAA]);
        for &(slot, kind, first, sectors) in of {
            let at = TABLE + slot * ENTRY;
            record[at + 4] = kind;
            record[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
            record[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        }
        record
    }

    #[test]
    fn what_is_in_use_is_found_with_its_place() {
        let record = record(&[(0, 0x83, 2048, 100), (2, 5, 4096, 10), (3, 0x83, 0, 0)]);
        let found = entries(&record);
        let places: Vec<_> = found.iter().map(|e| (e.slot, e.first, e.sectors)).collect();
        assert_eq!(places, [(0, 2048, 100), (2, 4096, 10)]);
        assert!(found[1].is_extended() && !found[0].is_extended());
    }

    #[test]
    fn what_is_no_table_has_no_entries() {
        assert!(entries(&[0; BYTES]).is_empty());
        let mut text = record(&[(0, 0x83, 2048, 100)]);
        text[TABLE] = b'm';
        assert!(entries(&text).is_empty());
    }
}
