//! Moments as people write them, in UTC: `2026-11-27T18:00:00Z`.
//!
//! Codec, for the Gregorian calendar from 1970 to 9999.

/// Seconds since 1970.
#[must_use]
pub fn parse(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let possible = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_of(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !possible {
        return None;
    }
    let years = (1970..year).map(|year| if leap(year) { 366 } else { 365 });
    let months = (1..month).map(|month| days_of(year, month));
    let days: u64 = years.chain(months).sum::<u64>() + day - 1;
    Some(days * 86400 + hour * 3600 + minute * 60 + second)
}

/// So many seconds since 1970, as it is written.
#[must_use]
pub fn show(seconds: u64) -> String {
    let (mut days, rest) = (seconds / 86400, seconds % 86400);
    let mut year = 1970;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if days < length || year == 9999 {
            break;
        }
        days -= length;
        year += 1;
    }
    let mut month = 1;
    while month < 12 && days >= days_of(year, month) {
        days -= days_of(year, month);
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!(
        "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        days + 1
    )
}

fn numbers(text: &str, between: char, digits: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(between);
    let mut found = [0; 3];
    for (number, digits) in found.iter_mut().zip(digits) {
        let part = parts.next()?;
        let plain = part.len() == digits && part.bytes().all(|b| b.is_ascii_digit());
        *number = part.parse().ok().filter(|_| plain)?;
    }
    parts.next().is_none().then_some(found)
}

fn leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of(year: u64, month: u64) -> u64 {
    match month {
        2 if leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_they_are_written() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:01Z", 951_825_601),
            ("2026-11-27T18:00:00Z", 1_795_802_400),
        ] {
            assert_eq!(parse(text), Some(seconds), "{text}");
            assert_eq!(show(seconds), text);
        }
        for day in 0..40_000 {
            let seconds = day * 86400 + 4711;
            assert_eq!(parse(&show(seconds)), Some(seconds));
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "2026-11-27",
            "2026-11-27T18:00:00",
            "2026-13-27T18:00:00Z",
            "2025-02-29T18:00:00Z",
            "2026-11-27T24:00:00Z",
            "+026-11-27T18:00:00Z",
            "2026-11-27T18:00:00:00Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
