//! The region table (MS-VHDX 2.2.3): where the BAT and the metadata lie, in two copies that change
//! only through the log.

use crate::error::{Error, ErrorKind, Result};
use crate::units::{FileOffset, MIB};

use super::field::{array, guid_at, put, u32_at, u64_at};
use super::{Code, Finding, Guid, MAX_FILE_OFFSET, checksum};

/// Bytes of one copy.
pub const TABLE_BYTES: usize = 64 << 10;

/// Where the first copy lies.
pub const COPY_ONE: FileOffset = FileOffset(192 << 10);

/// Where the second copy lies.
pub const COPY_TWO: FileOffset = FileOffset(256 << 10);

/// The block allocation table.
pub const BAT_REGION: Guid = Guid::known(0x2DC2_7766_F623_4200_9D64_115E_9BFD_4A08);

/// The metadata region.
pub const METADATA_REGION: Guid = Guid::known(0x8B7C_A206_4790_4B9A_B8FE_575F_050F_886E);

const SIGNATURE: [u8; 4] = *b"regi";
const CHECKSUM_AT: usize = 4;
const COUNT_AT: usize = 8;
const ENTRIES_AT: usize = 16;
const ENTRY_BYTES: usize = 32;
const MAX_ENTRIES: u32 = 2047;

/// A range of the file that belongs to one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub at: FileOffset,
    /// How many bytes.
    pub len: u64,
}

impl Region {
    /// The byte after the last one.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.at.0.saturating_add(self.len)
    }

    /// Whether they share a byte.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.at.0 < other.end() && other.at.0 < self.end()
    }
}

/// One region of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionEntry {
    /// What kind of region.
    pub id: Guid,
    /// Where it lies; offset and length are multiples of 1 MiB.
    pub place: Region,
    /// Whether a reader that does not know it must refuse the file.
    pub required: bool,
}

/// A region table that keeps the rules: known regions once each, nothing overlapping, nothing
/// unknown that is required.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionTable {
    /// All entries, unknown optional ones too, in the order of the file.
    pub entries: Vec<RegionEntry>,
    bat: Region,
    metadata: Region,
}

impl RegionTable {
    /// The table of a new image.
    #[must_use]
    pub fn new(bat: Region, metadata: Region) -> Self {
        let entry = |id, place| RegionEntry {
            id,
            place,
            required: true,
        };
        Self {
            entries: vec![entry(METADATA_REGION, metadata), entry(BAT_REGION, bat)],
            bat,
            metadata,
        }
    }

    /// Where the BAT lies.
    #[must_use]
    pub fn bat(&self) -> Region {
        self.bat
    }

    /// The same table with the BAT elsewhere.
    #[must_use]
    pub fn with_bat(&self, bat: Region) -> Self {
        let mut table = self.clone();
        table.bat = bat;
        for entry in &mut table.entries {
            if entry.id == BAT_REGION {
                entry.place = bat;
            }
        }
        table
    }

    /// Where the metadata lies.
    #[must_use]
    pub fn metadata(&self) -> Region {
        self.metadata
    }

    /// The same table with the metadata elsewhere.
    #[must_use]
    pub fn with_metadata(&self, metadata: Region) -> Self {
        let mut table = self.clone();
        table.metadata = metadata;
        for entry in &mut table.entries {
            if entry.id == METADATA_REGION {
                entry.place = metadata;
            }
        }
        table
    }

    /// One copy as it is written.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut table = vec![0; TABLE_BYTES];
        put(&mut table, 0, &SIGNATURE);
        put(
            &mut table,
            COUNT_AT,
            &(self.entries.len() as u32).to_le_bytes(),
        );
        for (entry, at) in self.entries.iter().zip((ENTRIES_AT..).step_by(ENTRY_BYTES)) {
            put(&mut table, at, &entry.id.0);
            put(&mut table, at + 16, &entry.place.at.0.to_le_bytes());
            put(&mut table, at + 24, &(entry.place.len as u32).to_le_bytes());
            put(
                &mut table,
                at + 28,
                &u32::from(entry.required).to_le_bytes(),
            );
        }
        let crc = checksum(&table, CHECKSUM_AT);
        put(&mut table, CHECKSUM_AT, &crc.to_le_bytes());
        table
    }

    /// Reads the copy that lies at `at`.
    pub fn decode(table: &[u8], at: FileOffset) -> Result<Self> {
        let entries =
            entries(intact(table, at)?, at).map_err(|error| error.coded(Code::RegionInvalid))?;
        disjoint(&entries, at)?;
        let find = |id: Guid, name: &str| {
            entries
                .iter()
                .find(|entry| entry.id == id)
                .map(|entry| entry.place)
                .ok_or_else(|| {
                    Error::corrupt(format!("the region table names no {name} region"))
                        .coded(Code::RegionMissing)
                        .at(at.0)
                })
        };
        let (bat, metadata) = (find(BAT_REGION, "BAT")?, find(METADATA_REGION, "metadata")?);
        Ok(Self {
            entries,
            bat,
            metadata,
        })
    }

    /// Reads both copies and takes the first one that is intact, with a warning where they differ.
    pub fn choose(copy1: &[u8], copy2: &[u8]) -> Result<(Self, Vec<Finding>)> {
        let warn = |code: Code, message: String, at: FileOffset| {
            Finding::warning(
                code,
                "region table",
                message,
                "the intact copy is used; other programs may refuse the image",
            )
            .at(at.0)
        };
        match (intact(copy1, COPY_ONE), intact(copy2, COPY_TWO)) {
            (Ok(one), Ok(two)) => {
                let table = Self::decode(one, COPY_ONE)?;
                let differ = one != two;
                let code = Code::RegionCopiesDiffer;
                let warning = || warn(code, "the two region tables differ".into(), COPY_TWO);
                Ok((table, differ.then(warning).into_iter().collect()))
            }
            (Ok(one), Err(error)) => {
                let table = Self::decode(one, COPY_ONE)?;
                Ok((
                    table,
                    vec![warn(Code::RegionCopyDamaged, error.to_string(), COPY_TWO)],
                ))
            }
            (Err(error), Ok(two)) => {
                let table = Self::decode(two, COPY_TWO)?;
                Ok((
                    table,
                    vec![warn(Code::RegionCopyDamaged, error.to_string(), COPY_ONE)],
                ))
            }
            (Err(one), Err(two)) => Err(Error::corrupt(format!(
                "both region tables are damaged: {one}; {two}"
            ))
            .coded(Code::RegionTablesDamaged)
            .at(COPY_ONE.0)),
        }
    }
}

/// What of an intact table is off the specification and ignored by readers: whether the known
/// regions lack the flag "required", and whether reserved bits or bytes are set.
#[must_use]
pub fn oddities(table: &[u8]) -> (bool, bool) {
    let count = u32_at(table, COUNT_AT).unwrap_or(0).min(MAX_ENTRIES) as usize;
    let flags = (ENTRIES_AT..).step_by(ENTRY_BYTES).take(count).map(|at| {
        let known = guid_at(table, at).is_ok_and(|id| id == BAT_REGION || id == METADATA_REGION);
        (known, u32_at(table, at + 28).unwrap_or(0))
    });
    let (mut not_required, mut reserved) = (false, u32_at(table, 12).is_ok_and(|word| word != 0));
    for (known, flags) in flags {
        not_required |= known && flags & 1 == 0;
        reserved |= flags & !1 != 0;
    }
    let rest = table.get(ENTRIES_AT + count * ENTRY_BYTES..);
    reserved |= rest.unwrap_or_default().iter().any(|byte| *byte != 0);
    (not_required, reserved)
}

/// Signature and checksum.
fn intact(table: &[u8], at: FileOffset) -> Result<&[u8]> {
    let table = table
        .get(..TABLE_BYTES)
        .ok_or_else(|| Error::corrupt("the region table is cut short").at(at.0))?;
    let signature: [u8; 4] = array(table, 0)?;
    if signature != SIGNATURE {
        return Err(Error::corrupt(format!(
            "region table signature is {signature:02x?}, not \"regi\""
        ))
        .at(at.0));
    }
    let (stored, actual) = (u32_at(table, CHECKSUM_AT)?, checksum(table, CHECKSUM_AT));
    if stored != actual {
        return Err(Error::corrupt(format!(
            "region table checksum is {stored:#010x}, its bytes give {actual:#010x}"
        ))
        .at(at.0));
    }
    Ok(table)
}

fn entries(table: &[u8], at: FileOffset) -> Result<Vec<RegionEntry>> {
    let count = u32_at(table, COUNT_AT)?;
    if count > MAX_ENTRIES {
        return Err(Error::corrupt(format!(
            "region table EntryCount is {count}, at most {MAX_ENTRIES} are allowed"
        ))
        .at(at.0));
    }
    (ENTRIES_AT..)
        .step_by(ENTRY_BYTES)
        .take(count as usize)
        .map(|start| {
            entry(table, start).map_err(|error| error.at(at.0.saturating_add(start as u64)))
        })
        .collect()
}

fn entry(table: &[u8], start: usize) -> Result<RegionEntry> {
    let id = guid_at(table, start)?;
    let place = Region {
        at: FileOffset(u64_at(table, start + 16)?),
        len: u64::from(u32_at(table, start + 24)?),
    };
    let required = u32_at(table, start + 28)? & 1 == 1;
    if place.at.0 < MIB || !place.at.0.is_multiple_of(MIB) || place.at.0 > MAX_FILE_OFFSET {
        return Err(Error::corrupt(format!(
            "region {id} has FileOffset {}: not a multiple of 1 MiB from 1 MiB up",
            place.at
        )));
    }
    if place.len == 0 || !place.len.is_multiple_of(MIB) {
        return Err(Error::corrupt(format!(
            "region {id} has Length {}: not a positive multiple of 1 MiB",
            place.len
        )));
    }
    if required && id != BAT_REGION && id != METADATA_REGION {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("region {id} is required and unknown: a newer program made this image"),
        )
        .coded(Code::RegionUnknown));
    }
    Ok(RegionEntry {
        id,
        place,
        required,
    })
}

/// No two regions with one GUID, none that overlap.
fn disjoint(entries: &[RegionEntry], at: FileOffset) -> Result<()> {
    let mut by_id: Vec<&RegionEntry> = entries.iter().collect();
    by_id.sort_by_key(|entry| entry.id);
    let mut by_place = by_id.clone();
    by_place.sort_by_key(|entry| entry.place.at);
    for pair in by_id.windows(2) {
        if let [a, b] = pair
            && a.id == b.id
        {
            return Err(
                Error::corrupt(format!("the region table names region {} twice", a.id))
                    .coded(Code::RegionTwice)
                    .at(at.0),
            );
        }
    }
    for pair in by_place.windows(2) {
        if let [a, b] = pair
            && a.place.overlaps(&b.place)
        {
            return Err(Error::corrupt(format!(
                "regions {} at {} and {} at {} overlap",
                a.id, a.place.at, b.id, b.place.at
            ))
            .coded(Code::StructureOverlap)
            .at(at.0));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
