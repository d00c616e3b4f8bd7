//! Formats of others, read and never written: bytes to checked types, total on every input, no I/O.
//!
//! | format | module | specified by |
//! |---|---|---|
//! | VHD, fixed and dynamic | [`vhd`] | Microsoft, Virtual Hard Disk Image Format Specification, 2006 |
//! | VMDK, sparse extents and descriptors | [`vmdk`] | `VMware`, Virtual Disk Format 5.0 |
//!
//! Nothing in here may panic, allocate by what a file claims without a bound, or trust a length.

pub mod vhd;
pub mod vmdk;

use crate::error::{Error, Result};

/// The `N` bytes at `at` of a structure.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .ok_or_else(|| {
            Error::corrupt(format!(
                "a structure of {} bytes ends before its field at byte {at}",
                bytes.len()
            ))
        })
}
