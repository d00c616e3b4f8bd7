//! The two headers (MS-VHDX 2.2.2): which is current, and the image of the next one.
//!
//! A header is replaced by writing the other slot and flushing; the caller does that. This module
//! never decides *when*.

use crate::error::{Error, ErrorKind, Result};
use crate::units::FileOffset;

use super::field::{array, guid_at, put, u16_at, u32_at, u64_at};
use super::{Code, Guid, PAGE, checksum};

const SIGNATURE: [u8; 4] = *b"head";
const SIGNATURE_AT: usize = 0;
const CHECKSUM_AT: usize = 4;
const SEQUENCE_AT: usize = 8;
const FILE_WRITE_AT: usize = 16;
const DATA_WRITE_AT: usize = 32;
const LOG_GUID_AT: usize = 48;
const LOG_VERSION_AT: usize = 64;
const VERSION_AT: usize = 66;
const LOG_LENGTH_AT: usize = 68;
const LOG_OFFSET_AT: usize = 72;
/// What follows is reserved.
const RESERVED_AT: usize = 80;

/// The only version of the format there is (the product calls it version 2).
pub const VERSION: u16 = 1;

/// Which of the two places of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// At 64 KiB.
    One,
    /// At 128 KiB.
    Two,
}

impl Slot {
    /// Where in the file.
    #[must_use]
    pub const fn at(self) -> FileOffset {
        match self {
            Self::One => FileOffset(64 << 10),
            Self::Two => FileOffset(128 << 10),
        }
    }

    /// The place in which the next header goes.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::One => Self::Two,
            Self::Two => Self::One,
        }
    }
}

/// The content of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The header with the greater number is current.
    pub sequence: u64,
    /// Changes before the first modification of the file in each writable open.
    pub file_write: Guid,
    /// Changes before the first modification a guest could see in each writable open.
    pub data_write: Guid,
    /// Zero: the log is empty. Else only log entries that carry it are valid.
    pub log_guid: Guid,
    /// Must be 0 unless the log is empty.
    pub log_version: u16,
    /// Must be [`VERSION`].
    pub version: u16,
    /// Bytes of the log, a multiple of 1 MiB.
    pub log_len: u32,
    /// Where the log begins, a multiple of 1 MiB.
    pub log_at: FileOffset,
}

impl Header {
    /// The header as it is written.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        put(&mut page, SIGNATURE_AT, &SIGNATURE);
        put(&mut page, SEQUENCE_AT, &self.sequence.to_le_bytes());
        put(&mut page, FILE_WRITE_AT, &self.file_write.0);
        put(&mut page, DATA_WRITE_AT, &self.data_write.0);
        put(&mut page, LOG_GUID_AT, &self.log_guid.0);
        put(&mut page, LOG_VERSION_AT, &self.log_version.to_le_bytes());
        put(&mut page, VERSION_AT, &self.version.to_le_bytes());
        put(&mut page, LOG_LENGTH_AT, &self.log_len.to_le_bytes());
        put(&mut page, LOG_OFFSET_AT, &self.log_at.0.to_le_bytes());
        let crc = checksum(&page, CHECKSUM_AT);
        put(&mut page, CHECKSUM_AT, &crc.to_le_bytes());
        page
    }

    /// Reads one header: signature and checksum must be right; what it says is not judged.
    pub fn decode(page: &[u8]) -> Result<Self> {
        let page: &[u8; PAGE] = page
            .first_chunk()
            .ok_or_else(|| Error::corrupt("the header is cut short"))?;
        let signature: [u8; 4] = array(page, SIGNATURE_AT)?;
        if signature != SIGNATURE {
            return Err(Error::corrupt(format!(
                "header signature is {signature:02x?}, not \"head\""
            )));
        }
        let (stored, actual) = (u32_at(page, CHECKSUM_AT)?, checksum(page, CHECKSUM_AT));
        if stored != actual {
            return Err(Error::corrupt(format!(
                "header checksum is {stored:#010x}, its bytes give {actual:#010x}"
            )));
        }
        Ok(Self {
            sequence: u64_at(page, SEQUENCE_AT)?,
            file_write: guid_at(page, FILE_WRITE_AT)?,
            data_write: guid_at(page, DATA_WRITE_AT)?,
            log_guid: guid_at(page, LOG_GUID_AT)?,
            log_version: u16_at(page, LOG_VERSION_AT)?,
            version: u16_at(page, VERSION_AT)?,
            log_len: u32_at(page, LOG_LENGTH_AT)?,
            log_at: FileOffset(u64_at(page, LOG_OFFSET_AT)?),
        })
    }

    /// The same content with the next sequence number, for the other slot.
    pub fn next(&self) -> Result<Self> {
        let sequence = self.sequence.checked_add(1).ok_or_else(|| {
            Error::corrupt("header SequenceNumber is at its end; it cannot be raised")
        })?;
        Ok(Self {
            sequence,
            ..self.clone()
        })
    }

    fn supported(&self, slot: Slot) -> Result<()> {
        if self.version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("header Version is {}, only 1 is known", self.version),
            )
            .coded(Code::HeaderVersion)
            .at(slot.at().0));
        }
        if self.log_version != 0 && !self.log_guid.is_zero() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "header LogVersion is {} and the log is not empty; only 0 can be replayed",
                    self.log_version
                ),
            )
            .coded(Code::LogVersion)
            .at(slot.at().0));
        }
        Ok(())
    }
}

/// Whether reserved bytes of a header are set; readers ignore them.
#[must_use]
pub fn reserved_set(page: &[u8]) -> bool {
    let reserved = page.get(RESERVED_AT..PAGE).unwrap_or_default();
    reserved.iter().any(|byte| *byte != 0)
}

/// The current header and its place, of the pages at [`Slot::One`] and [`Slot::Two`].
///
/// The valid one with the greater sequence number. Equal numbers: the first if both say the same
/// (Disk2vhd writes such files), else there is none. The version is judged after the choice, so
/// that a newer program's header is refused and not passed over.
pub fn choose_current(slot1: &[u8], slot2: &[u8]) -> Result<(Header, Slot)> {
    let (header, slot) = match (Header::decode(slot1), Header::decode(slot2)) {
        (Ok(one), Ok(two)) if one.sequence > two.sequence => (one, Slot::One),
        (Ok(one), Ok(two)) if one.sequence < two.sequence => (two, Slot::Two),
        (Ok(one), Ok(two)) if one == two => (one, Slot::One),
        (Ok(one), Ok(_)) => {
            return Err(Error::corrupt(format!(
                "both headers have SequenceNumber {} and different content: neither is current",
                one.sequence
            ))
            .coded(Code::HeadersAmbiguous)
            .at(Slot::One.at().0));
        }
        (Ok(one), Err(_)) => (one, Slot::One),
        (Err(_), Ok(two)) => (two, Slot::Two),
        (Err(one), Err(two)) => {
            return Err(Error::corrupt(format!(
                "no valid header: at 64 KiB, {one}; at 128 KiB, {two}"
            ))
            .coded(Code::NoValidHeader)
            .at(Slot::One.at().0));
        }
    };
    header.supported(slot)?;
    Ok((header, slot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(sequence: u64) -> Header {
        Header {
            sequence,
            file_write: Guid::from_random(1),
            data_write: Guid::from_random(2),
            log_guid: Guid::ZERO,
            log_version: 0,
            version: VERSION,
            log_len: 1 << 20,
            log_at: FileOffset(1 << 20),
        }
    }

    #[test]
    fn the_greater_sequence_number_is_current() {
        let (a, b) = (header(4).encode(), header(5).encode());
        assert_eq!(choose_current(&a, &b).unwrap(), (header(5), Slot::Two));
        assert_eq!(choose_current(&b, &a).unwrap(), (header(5), Slot::One));
    }

    #[test]
    fn a_torn_header_leaves_the_other_current() {
        let mut torn = header(6).encode();
        torn[100] ^= 1;
        let good = header(5).encode();
        assert_eq!(choose_current(&torn, &good).unwrap().1, Slot::Two);
        assert_eq!(choose_current(&good, &torn).unwrap().1, Slot::One);
        let error = choose_current(&torn, &torn).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("checksum"), "{error}");
    }

    #[test]
    fn equal_numbers_are_current_only_when_the_headers_are_alike() {
        let a = header(5);
        let mut b = header(5);
        assert_eq!(
            choose_current(&a.encode(), &b.encode()).unwrap().1,
            Slot::One
        );
        b.data_write = Guid::from_random(9);
        let error = choose_current(&a.encode(), &b.encode()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_newer_version_is_refused_and_not_passed_over() {
        let mut newer = header(6);
        newer.version = 2;
        let error = choose_current(&header(5).encode(), &newer.encode()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.offset(), Some(128 << 10));
    }

    #[test]
    fn a_strange_log_version_matters_only_when_there_is_a_log() {
        let mut odd = header(6);
        odd.log_version = 1;
        assert!(choose_current(&odd.encode(), &[]).is_ok());
        odd.log_guid = Guid::from_random(3);
        let error = choose_current(&odd.encode(), &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn the_last_sequence_number_has_no_next() {
        assert!(header(u64::MAX).next().is_err());
        assert_eq!(header(7).next().unwrap().sequence, 8);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            sequence: u64, a: u128, b: u128, c: u128, log_len: u32, log_at: u64, v: (u16, u16),
        ) {
            let header = Header {
                sequence,
                file_write: Guid(a.to_le_bytes()),
                data_write: Guid(b.to_le_bytes()),
                log_guid: Guid(c.to_le_bytes()),
                log_version: v.0,
                version: v.1,
                log_len,
                log_at: FileOffset(log_at),
            };
            prop_assert_eq!(Header::decode(&header.encode()).unwrap(), header);
        }

        #[test]
        fn any_bytes_give_an_error_or_a_header(
            a in prop::collection::vec(any::<u8>(), 0..5000),
            b in prop::collection::vec(any::<u8>(), 0..5000),
        ) {
            let _ = choose_current(&a, &b);
        }
    }
}
