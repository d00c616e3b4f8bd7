//! Sizes as people write and read them.
//!
//! `16T` and `16TiB` are 16 · 2^40 bytes, `16TB` is 16 · 10^12: the rule of every storage vendor and
//! of no single tool. What is printed is binary with its unit spelled out; machine output is always
//! bytes as an integer, and never passes through here.

use std::fmt;

/// Prefixes in order of powers: 1024^1, 1024^2, …
const PREFIXES: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadSize {
    /// It does not begin with a number.
    NoNumber,
    /// What follows the number is no unit.
    Unit(String),
    /// It is not a whole number of bytes.
    Fraction,
    /// It does not fit 64 bits.
    TooLarge,
}

impl fmt::Display for BadSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNumber => f.write_str("a size begins with a number, as in 16T or 64M"),
            Self::Unit(unit) => write!(
                f,
                "`{unit}` is no unit: K, M, G, T, P and KiB… are powers of 1024, KB… of 1000"
            ),
            Self::Fraction => f.write_str("that is not a whole number of bytes"),
            Self::TooLarge => f.write_str("that is more than 64 bits can count"),
        }
    }
}

impl std::error::Error for BadSize {}

/// The number of bytes that `text` means.
pub fn parse(text: &str) -> Result<u64, BadSize> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim_start());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || fraction.len() > 12 {
        return Err(BadSize::NoNumber);
    }
    let factor = u128::from(multiplier(unit)?);
    let whole: u128 = whole.parse().map_err(|_| BadSize::TooLarge)?;
    let scale = 10_u128.pow(fraction.len() as u32);
    let fraction: u128 = format!("0{fraction}")
        .parse()
        .map_err(|_| BadSize::NoNumber)?;
    let parts = fraction * factor;
    if !parts.is_multiple_of(scale) {
        return Err(BadSize::Fraction);
    }
    let bytes = whole
        .checked_mul(factor)
        .and_then(|b| b.checked_add(parts / scale));
    bytes
        .and_then(|b| u64::try_from(b).ok())
        .ok_or(BadSize::TooLarge)
}

/// How many bytes one of `unit` is.
fn multiplier(unit: &str) -> Result<u64, BadSize> {
    let bad = || BadSize::Unit(unit.to_owned());
    let mut chars = unit.chars();
    let Some(first) = chars.next() else {
        return Ok(1);
    };
    let rest = chars.as_str();
    if first.eq_ignore_ascii_case(&'b') && rest.is_empty() {
        return Ok(1);
    }
    let power = PREFIXES
        .iter()
        .position(|p| p.eq_ignore_ascii_case(&first))
        .ok_or_else(bad)? as u32
        + 1;
    match rest.to_ascii_lowercase().as_str() {
        "" | "ib" => Ok(1024_u64.pow(power)),
        "b" => Ok(1000_u64.pow(power)),
        _ => Err(bad()),
    }
}

/// `bytes` in the largest binary unit of which there is at least one, with one decimal if needed.
#[must_use]
pub fn show(bytes: u64) -> String {
    let mut power = 0;
    while power < PREFIXES.len() && bytes >> (10 * (power + 1)) > 0 {
        power += 1;
    }
    if power == 0 {
        return format!("{bytes} B");
    }
    let unit = 1_u128 << (10 * power);
    let tenths = (u128::from(bytes) * 10 + unit / 2) / unit;
    let prefix = PREFIXES[power - 1];
    match tenths % 10 {
        0 => format!("{} {prefix}iB", tenths / 10),
        tenth => format!("{}.{tenth} {prefix}iB", tenths / 10),
    }
}

/// `bytes` exactly, in the shortest form that [`parse`] reads back.
#[must_use]
pub fn exact(bytes: u64) -> String {
    let mut power = 0;
    while power < PREFIXES.len() && bytes > 0 && bytes.trailing_zeros() >= 10 * (power as u32 + 1) {
        power += 1;
    }
    match power {
        0 => bytes.to_string(),
        _ => format!("{}{}", bytes >> (10 * power), PREFIXES[power - 1]),
    }
}

/// The two multiples of `unit` next to `bytes`, the lower one left out when it is zero.
#[must_use]
pub fn neighbours(bytes: u64, unit: u64) -> String {
    let below = bytes - bytes % unit;
    let above = below.checked_add(unit).map_or_else(String::new, exact);
    match below {
        0 => above,
        _ => format!("{} or {above}", exact(below)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_mean_what_people_mean() {
        let cases = [
            ("0", 0_u64),
            ("512", 512),
            ("512B", 512),
            ("4k", 4096),
            ("64M", 64 << 20),
            ("16T", 16 << 40),
            ("16TiB", 16 << 40),
            ("16 tib", 16 << 40),
            ("16TB", 16_000_000_000_000),
            ("1.5T", 3 << 39),
            ("0.5KB", 500),
            ("1kb", 1000),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_its_reason() {
        assert_eq!(parse(""), Err(BadSize::NoNumber));
        assert_eq!(parse("T"), Err(BadSize::NoNumber));
        assert_eq!(parse("-1"), Err(BadSize::NoNumber));
        assert_eq!(parse("1.2.3"), Err(BadSize::NoNumber));
        assert_eq!(parse("1.0000000000001T"), Err(BadSize::NoNumber));
        assert_eq!(parse("16X"), Err(BadSize::Unit("X".into())));
        assert_eq!(parse("16Tb/s"), Err(BadSize::Unit("Tb/s".into())));
        assert_eq!(parse("1.5"), Err(BadSize::Fraction));
        assert_eq!(parse("16E"), Err(BadSize::TooLarge));
        assert_eq!(
            parse("99999999999999999999999999999999999999999"),
            Err(BadSize::TooLarge)
        );
    }

    #[test]
    fn sizes_are_shown_in_binary_units() {
        assert_eq!(show(0), "0 B");
        assert_eq!(show(1023), "1023 B");
        assert_eq!(show(1024), "1 KiB");
        assert_eq!(show(3 << 39), "1.5 TiB");
        assert_eq!(show(16_000_000_000_000), "14.6 TiB");
        assert_eq!(show(u64::MAX), "16 EiB");
    }

    #[test]
    fn exact_sizes_read_back() {
        for bytes in [
            0,
            1,
            512,
            4096,
            3 << 39,
            16 << 40,
            16_000_000_000_000,
            u64::MAX,
        ] {
            assert_eq!(parse(&exact(bytes)), Ok(bytes));
        }
        assert_eq!(exact(16 << 40), "16T");
        assert_eq!(neighbours(10_000, 512), "9728 or 10K");
        assert_eq!(neighbours(5, 512), "512");
    }
}
