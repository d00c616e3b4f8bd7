//! The file type identifier (MS-VHDX 2.2.1): the first 64 KiB, written once, last of all at
//! creation, and never again.

use crate::error::{Error, Result};

use super::field::put;
use super::{Code, PAGE};

/// The first eight bytes of every image.
pub const SIGNATURE: [u8; 8] = *b"vhdxfile";

const CREATOR_AT: usize = 8;
const CREATOR_BYTES: usize = 512;

/// The file type identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identifier {
    /// Who made the file; for people only, must not change what a reader does.
    pub creator: String,
}

impl Identifier {
    /// The first page of the file. A creator longer than 256 UTF-16 units is cut.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        put(&mut page, 0, &SIGNATURE);
        let units = self.creator.encode_utf16().take(CREATOR_BYTES / 2);
        for (at, unit) in (CREATOR_AT..).step_by(2).zip(units) {
            put(&mut page, at, &unit.to_le_bytes());
        }
        page
    }

    /// Reads the first bytes of a file; a creator that is not UTF-16 is read as well as it goes.
    pub fn decode(page: &[u8]) -> Result<Self> {
        if page.get(..SIGNATURE.len()) != Some(&SIGNATURE[..]) {
            return Err(Error::corrupt(
                "not a VHDX image: the file does not begin with \"vhdxfile\"",
            )
            .coded(Code::NotVhdx)
            .at(0));
        }
        let end = page.len().min(CREATOR_AT + CREATOR_BYTES);
        let (pairs, _) = page
            .get(CREATOR_AT..end)
            .unwrap_or_default()
            .as_chunks::<2>();
        let units: Vec<u16> = pairs
            .iter()
            .map(|pair| u16::from_le_bytes(*pair))
            .take_while(|unit| *unit != 0)
            .collect();
        Ok(Self {
            creator: String::from_utf16_lossy(&units),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_creator_of_full_length_needs_no_terminator() {
        let identifier = Identifier {
            creator: "x".repeat(300),
        };
        let read = Identifier::decode(&identifier.encode()).unwrap();
        assert_eq!(read.creator, "x".repeat(256));
    }

    #[test]
    fn another_file_is_refused_at_offset_zero() {
        let error = Identifier::decode(b"QFI\xfb and so on").unwrap_err();
        assert_eq!(error.offset(), Some(0));
    }

    proptest! {
        #[test]
        fn creators_survive(creator in "[^\0]{0,100}") {
            let identifier = Identifier { creator };
            prop_assert_eq!(Identifier::decode(&identifier.encode()).unwrap(), identifier);
        }

        #[test]
        fn any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Identifier::decode(&bytes);
            let mut signed = SIGNATURE.to_vec();
            signed.extend(bytes);
            prop_assert!(Identifier::decode(&signed).is_ok());
        }
    }
}
