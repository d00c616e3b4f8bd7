//! Payloads packed with zstd, and out again: never more than was announced, never more than a payload may have.
//!
//! | offset | size | |
//! |---|---|---|
//! | 0 | 4 | bytes of the payload, 1 to [`MAX_PAYLOAD`] |
//! | 4 | | one frame of zstd (RFC 8878) |

use std::cell::RefCell;

use bytes::{BufMut, Bytes, BytesMut};
use zstd::bulk::{Compressor, Decompressor};

use super::MAX_PAYLOAD;

thread_local! {
    /// What is costly to make anew for each payload.
    static PACKING: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
    static UNPACKING: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// `payload` packed at a level of zstd, if that makes it at least an eighth shorter.
#[must_use]
pub fn pack(payload: &[u8], level: i32) -> Option<Bytes> {
    let most = payload.len() / 8 * 7;
    let len = u32::try_from(payload.len()).ok()?;
    let mut packed = vec![0; most.checked_sub(4)?];
    let written = PACKING.with_borrow_mut(|packing| {
        let same = packing.take_if(|(at, _)| *at == level);
        let compressor = match same {
            Some((_, compressor)) => compressor,
            None => Compressor::new(level).ok()?,
        };
        let (_, compressor) = packing.insert((level, compressor));
        // It fails when there is not room enough, which is the answer.
        compressor.compress_to_buffer(payload, &mut packed).ok()
    })?;
    packed.truncate(written);
    let mut out = BytesMut::with_capacity(4 + written);
    out.put_u32_le(len);
    out.put_slice(&packed);
    Some(out.freeze())
}

/// What was packed; `None` when it is not what [`pack`] makes of something.
#[must_use]
pub(super) fn unpack(packed: &[u8]) -> Option<Bytes> {
    let (len, rest) = packed.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    if len == 0 || len > MAX_PAYLOAD {
        return None;
    }
    let payload = UNPACKING.with_borrow_mut(|unpacking| {
        let decompressor = match unpacking.take() {
            Some(decompressor) => decompressor,
            None => Decompressor::new().ok()?,
        };
        unpacking.insert(decompressor).decompress(rest, len).ok()
    })?;
    (payload.len() == len).then(|| Bytes::from(payload))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(len: usize) -> Vec<u8> {
        b"the same words over and over ".repeat(len / 29 + 1)[..len].to_vec()
    }

    #[test]
    fn what_is_packed_comes_back_at_every_level_and_what_does_not_shrink_is_left() {
        for level in [1, 3, 6] {
            for len in [512, 4096, 256 << 10, MAX_PAYLOAD] {
                let packed = pack(&text(len), level).expect("text shrinks");
                assert!(packed.len() < len / 4, "{len} at {level}: {}", packed.len());
                assert_eq!(unpack(&packed).expect("it comes back"), text(len));
            }
        }
        let mut noise = vec![0; 65536];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert_eq!(pack(&noise, 3), None);
        assert_eq!(pack(b"", 3), None);
    }

    #[test]
    fn no_more_comes_out_than_was_announced() {
        let packed = pack(&text(4096), 1).expect("text shrinks");
        for announced in [0_u32, 1, 4095, 4097, 1 << 21, u32::MAX] {
            let mut forged = packed.to_vec();
            forged[..4].copy_from_slice(&announced.to_le_bytes());
            assert_eq!(unpack(&forged), None, "{announced}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_hoard(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let unpacked = unpack(&bytes);
            prop_assert!(unpacked.is_none_or(|payload| payload.len() <= MAX_PAYLOAD));
        }

        #[test]
        fn damage_is_noticed_or_leaves_the_length(at in 4_usize..120, bit in 0_u8..8) {
            let packed = pack(&text(8192), 3).expect("text shrinks");
            let mut damaged = packed.to_vec();
            let at = at % damaged.len();
            damaged[at] ^= 1 << bit;
            if let Some(payload) = unpack(&damaged) {
                prop_assert!(payload.len() <= MAX_PAYLOAD);
            }
        }
    }
}
