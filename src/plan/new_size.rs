//! What `resize` means by a size: one, or a difference.

use super::{bytes, multiple_of};
use crate::failure::{Failure, Result};
use crate::size;

/// The size that a disk is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewSize {
    Exactly(u64),
    More(u64),
    Less(u64),
}

impl NewSize {
    /// `20T`, `+1T` or `-500G`.
    pub(crate) fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        let (make, number): (fn(u64) -> Self, _) = match text.split_at_checked(1) {
            Some(("+", rest)) => (Self::More, rest),
            Some(("-", rest)) => (Self::Less, rest),
            _ => (Self::Exactly, text),
        };
        let by = bytes("the size", number)?;
        multiple_of("the size", by, 512)?;
        Ok(make(by))
    }

    /// What it is for a disk that has `before` bytes.
    pub(crate) fn of(self, before: u64) -> Result<u64> {
        let size = match self {
            Self::Exactly(size) => Some(size),
            Self::More(by) => before.checked_add(by),
            Self::Less(by) => before.checked_sub(by),
        };
        size.filter(|size| *size != 0).ok_or_else(|| {
            let has = size::exact(before);
            Failure::usage(format!(
                "the disk has {has}: it cannot be changed by that much"
            ))
            .hint("a disk has at least one sector, and at most what its format allows")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_size_is_a_size_or_a_difference() {
        let size = |text, before| NewSize::new(text).and_then(|new| new.of(before)).ok();
        assert_eq!(size("20T", 5), Some(20 << 40));
        assert_eq!(size("+1K", 512), Some(1536));
        assert_eq!(size("-1K", 2048), Some(1024));
        for text in ["-1K", "-2K", "0", "+1", "-", "x", "+-1K", "+16E"] {
            assert_eq!(size(text, 1024), None, "{text}");
        }
    }
}
