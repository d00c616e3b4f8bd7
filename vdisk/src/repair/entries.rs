//! What an entry of the BAT becomes in a repair. No entry that tells where data is changes its place.

use crate::check::Idle;
use crate::format::bat::{RESERVED_BITS, Slot};
use crate::format::{BatEntry, BlockState, Code, Geometry};
use crate::units::BatIndex;

/// The entry without reserved bits, if its block owns no space; any other as it is.
pub(super) fn without_reserved_bits(entry: u64) -> u64 {
    match BatEntry::decode(entry) {
        Err(error) if error.code() == Some(Code::EntryIdleReserved) => entry & !RESERVED_BITS,
        _ => entry,
    }
}

/// The entry without what means nothing: all of it, or the place of a block that owns no space. An
/// orphan, and the place of a block in the state "undefined", which may have one, stay.
pub(super) fn without_idle_parts(
    idle: &Idle<'_>,
    geometry: &Geometry,
    (index, entry): (BatIndex, u64),
) -> u64 {
    if idle.means_nothing(index) {
        return if idle.is_orphan(entry) { entry } else { 0 };
    }
    let Ok(decoded) = BatEntry::decode(entry) else {
        return entry;
    };
    let owns_none = decoded.space().is_none() && decoded.state != BlockState::Undefined;
    let bitmap = matches!(geometry.classify(index), Slot::Bitmap(_));
    if owns_none && (!bitmap || decoded.state == BlockState::NotPresent) {
        return entry & 7;
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_tells_where_data_is_keeps_its_place(entry: u64, state in 0..8_u64, clean: bool) {
            let entry = (entry & !7) | state;
            let entry = if clean { entry & !RESERVED_BITS } else { entry };
            let mended = without_reserved_bits(entry);
            prop_assert_eq!(mended & !RESERVED_BITS, entry & !RESERVED_BITS);
            prop_assert_eq!(without_reserved_bits(mended), mended);
            if matches!(state, 4..=7) || (state == 3 && entry >> 20 != 0) {
                prop_assert_eq!(mended, entry);
            } else {
                prop_assert!(BatEntry::decode(mended).is_ok());
            }
        }
    }
}
