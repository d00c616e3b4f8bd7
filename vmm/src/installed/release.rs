//! The order of versions, as Debian has it (deb-version(7)); by it the newest of several kernels is found.
//!
//! Codec: any two texts can be compared, and equal ones only differ in leading zeros.

use std::cmp::Ordering;

/// Compare two versions.
pub(super) fn compare(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    while !one.is_empty() || !other.is_empty() {
        let words = (
            take(&mut one, |byte| !byte.is_ascii_digit()),
            take(&mut other, |byte| !byte.is_ascii_digit()),
        );
        let numbers = (
            take(&mut one, u8::is_ascii_digit),
            take(&mut other, u8::is_ascii_digit),
        );
        let order = word(words.0, words.1).then_with(|| number(numbers.0, numbers.1));
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

/// What of the beginning is like this.
fn take<'a>(from: &mut &'a [u8], like: impl Fn(&u8) -> bool) -> &'a [u8] {
    let end = from.iter().position(|byte| !like(byte));
    let (taken, rest) = from.split_at(end.unwrap_or(from.len()));
    *from = rest;
    taken
}

/// A tilde sorts before the end, letters before other characters.
fn word(one: &[u8], other: &[u8]) -> Ordering {
    let weight = |byte: Option<&u8>| match byte {
        Some(b'~') => -1,
        None => 0,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(*byte),
        Some(byte) => i32::from(*byte) + 256,
    };
    let weights =
        (0..one.len().max(other.len())).map(|at| weight(one.get(at)).cmp(&weight(other.get(at))));
    weights.fold(Ordering::Equal, Ordering::then)
}

fn number(one: &[u8], other: &[u8]) -> Ordering {
    let digits = |text: &[u8]| {
        let zeros = text.iter().take_while(|digit| **digit == b'0').count();
        text.get(zeros..).unwrap_or_default().to_vec()
    };
    let (one, other) = (digits(one), digits(other));
    one.len().cmp(&other.len()).then_with(|| one.cmp(&other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        let ascending = [
            "",
            "5.10.0-9-amd64",
            "5.10.0-28-amd64",
            "6.1.0-9-cloud-amd64",
            "6.1.0-18-cloud-amd64",
            "6.1.0-18-cloud-amd64.1",
            "6.12~rc1-amd64",
            "6.12-amd64",
            "6.12.9-amd64",
            "6.12.10-amd64",
        ];
        for (place, one) in ascending.iter().enumerate() {
            for (other_place, other) in ascending.iter().enumerate() {
                assert_eq!(
                    compare(one, other),
                    place.cmp(&other_place),
                    "{one} {other}"
                );
            }
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
    }
}
