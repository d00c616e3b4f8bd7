//! Newtypes for units that can be confused.
//!
//! Conversions are methods, so that a guest offset given where a file offset is due does not
//! compile. Arithmetic that can overflow on hostile input is checked at the caller.

use std::fmt;

/// One mebibyte, the unit in which VHDX places every object of the file (MS-VHDX 2.1).
pub const MIB: u64 = 1 << 20;

/// The largest virtual disk the format allows, in bytes: 64 TiB (MS-VHDX 2.6.2.2).
pub const MAX_VIRTUAL_SIZE: u64 = 64 << 40;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// This value moved up by `bytes`; `None` when it does not fit 64 bits.
            #[must_use]
            pub fn checked_add(self, bytes: u64) -> Option<Self> {
                self.0.checked_add(bytes).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

unit! {
    /// A byte offset that the guest sees: 0 is the first byte of the virtual disk.
    GuestOffset
}
unit! {
    /// A byte offset in the image file.
    FileOffset
}
unit! {
    /// The number of a payload block of the virtual disk: guest offset divided by block size.
    BlockIndex
}
unit! {
    /// The number of an entry of the BAT, bitmap entries counted (MS-VHDX 2.5).
    BatIndex
}
