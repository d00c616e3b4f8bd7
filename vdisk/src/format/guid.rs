//! GUIDs as they lie in the file: mixed endian, the first three fields little-endian.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::error::Error;

/// A GUID in the byte order of the file. Printed in lower case without braces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// All bits zero; as a log GUID it says that the log is empty (MS-VHDX 2.2.2).
    pub const ZERO: Self = Self([0; 16]);

    /// The GUID whose text form is the hexadecimal digits of `digits`.
    #[must_use]
    pub const fn known(digits: u128) -> Self {
        let b = digits.to_be_bytes();
        Self([
            b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13],
            b[14], b[15],
        ])
    }

    /// A random (version 4) GUID made of the caller's random bits; never [`Guid::ZERO`].
    #[must_use]
    pub fn from_random(bits: u128) -> Self {
        let uuid = uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid();
        Self(uuid.to_bytes_le())
    }

    /// Whether all bits are zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Uuid::from_bytes_le(self.0).hyphenated(), f)
    }
}

impl FromStr for Guid {
    type Err = Error;

    /// Reads text with or without braces, in either case.
    fn from_str(text: &str) -> Result<Self, Error> {
        Uuid::try_parse(text)
            .map(|uuid| Self(uuid.to_bytes_le()))
            .map_err(|why| Error::invalid(format!("{text:?} is not a GUID: {why}")))
    }
}

impl Serialize for Guid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_file_order_agree_with_the_specification() {
        let bat = Guid::known(0x2DC2_7766_F623_4200_9D64_115E_9BFD_4A08);
        assert_eq!(bat.to_string(), "2dc27766-f623-4200-9d64-115e9bfd4a08");
        assert_eq!(bat.0[..8], [0x66, 0x77, 0xC2, 0x2D, 0x23, 0xF6, 0x00, 0x42]);
        assert_eq!(bat.0[8..], [0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08]);
        let parsed: Guid = "{2DC27766-F623-4200-9D64-115E9BFD4A08}".parse().unwrap();
        assert_eq!(parsed, bat);
        assert!("2dc27766".parse::<Guid>().is_err());
    }

    #[test]
    fn a_random_guid_is_never_zero_and_depends_on_its_bits() {
        assert!(!Guid::from_random(0).is_zero());
        assert_ne!(Guid::from_random(1), Guid::from_random(2));
    }
}
