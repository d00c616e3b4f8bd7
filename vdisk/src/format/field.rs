//! Little-endian fields at fixed offsets of a structure. Reading never panics: a structure too
//! short for its field is an error. Offsets are those of MS-VHDX 2.

use crate::error::{Error, Result};

use super::Guid;

/// The `N` bytes at `at`.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
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

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

pub(super) fn guid_at(bytes: &[u8], at: usize) -> Result<Guid> {
    array(bytes, at).map(Guid)
}

/// Put `data` at `at` of a structure that we build; the callers' offsets are constants that fit.
pub(super) fn put(structure: &mut [u8], at: usize, data: &[u8]) {
    let room = structure
        .get_mut(at..)
        .and_then(|rest| rest.get_mut(..data.len()));
    debug_assert!(room.is_some(), "field at {at} does not fit");
    if let Some(room) = room {
        room.copy_from_slice(data);
    }
}
