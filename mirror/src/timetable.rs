//! How fast a copy may be, by the time of day.
//!
//! Pure; the time of the host's clock is an argument. Must never take a text for another rate than people read in it.
//!
//! As text: rates and spans with a comma between them, as in `20M,08:00-18:00=5M,sat-sun@00:00-24:00=none`. A rate without
//! a span holds where no span does, else nothing is limited there. Of spans that overlap the last one holds. A span that ends before
//! it begins goes on into the next day.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vdisk::size;

/// The least bytes a second: what one granule takes in a second.
pub const LEAST_RATE: u64 = 4096;
/// The most spans.
const MOST_SPANS: usize = 64;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY: u16 = 24 * 60;

/// A minute of the week as the host's clock shows it; the week begins on Monday at 00:00.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeekMinute(u16);

impl WeekMinute {
    /// `day` days after Monday, at `minute` minutes after midnight. What is too large is taken for the last there is.
    #[must_use]
    pub fn new(day: u8, minute: u16) -> Self {
        Self(u16::from(day.min(6)) * DAY + minute.min(DAY - 1))
    }
}

/// When another rate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    /// Days on which it begins, a bit for each, the lowest for Monday.
    days: u8,
    /// Minutes after midnight.
    from: u16,
    /// The same, the first one that is not in it; at or before `from`: of the next day.
    until: u16,
    rate: Option<u64>,
}

impl Span {
    fn has(&self, WeekMinute(at): WeekMinute) -> bool {
        let (today, minute) = (at / DAY, at % DAY);
        let begins = |day: u16| self.days & (1 << (day % 7)) != 0;
        if self.until > self.from {
            return begins(today) && (self.from..self.until).contains(&minute);
        }
        begins(today) && minute >= self.from || begins(today + 6) && minute < self.until
    }
}

/// Bytes a second, by the minute of the week. As JSON: null, a number, or its text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub struct Timetable {
    /// Where no span holds; `None` for as fast as it goes.
    otherwise: Option<u64>,
    spans: Vec<Span>,
}

impl Timetable {
    /// The same rate at any time; `None` for as fast as it goes.
    #[must_use]
    pub fn always(rate: Option<u64>) -> Self {
        Self {
            otherwise: rate,
            spans: Vec::new(),
        }
    }

    /// The rate at any time, if the time does not matter.
    #[must_use]
    pub fn constant(&self) -> Option<Option<u64>> {
        self.spans.is_empty().then_some(self.otherwise)
    }

    /// The lowest rate that holds at any time, for who does not know the time.
    #[must_use]
    pub fn least(&self) -> Option<u64> {
        let rates = self.spans.iter().filter_map(|span| span.rate);
        rates.chain(self.otherwise).min()
    }

    /// The rate at that time.
    #[must_use]
    pub fn rate_at(&self, at: WeekMinute) -> Option<u64> {
        let span = self.spans.iter().rev().find(|span| span.has(at));
        span.map_or(self.otherwise, |span| span.rate)
    }
}

/// Why a text is no timetable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadTimetable {
    /// A rate is no size.
    #[error("the rate `{0}`: {1}")]
    Rate(String, size::BadSize),
    /// A rate is below [`LEAST_RATE`].
    #[error("the rate of {0} bytes a second is less than 4 KiB")]
    Slow(u64),
    /// A span is none.
    #[error("`{0}` is no time of day: say it as in 08:00-18:00=5M or mon-fri@22:00-06:00=none")]
    Span(String),
    /// There is more than one rate without a span.
    #[error("`{0}` is the second rate without a time of day")]
    Twice(String),
    /// It has too many parts.
    #[error("a timetable has at most {MOST_SPANS} parts")]
    Long,
}

impl FromStr for Timetable {
    type Err = BadTimetable;

    fn from_str(text: &str) -> Result<Self, BadTimetable> {
        let mut table = Self::default();
        let mut otherwise = None;
        for part in text.split(',').map(str::trim) {
            if table.spans.len() >= MOST_SPANS {
                return Err(BadTimetable::Long);
            }
            let Some((when, how_fast)) = part.split_once('=') else {
                if otherwise.replace(rate(part)?).is_some() {
                    return Err(BadTimetable::Twice(part.to_owned()));
                }
                continue;
            };
            let rate = rate(how_fast.trim())?;
            let (days, from, until) =
                span(when.trim()).ok_or_else(|| BadTimetable::Span(part.to_owned()))?;
            table.spans.push(Span {
                days,
                from,
                until,
                rate,
            });
        }
        table.otherwise = otherwise.flatten();
        Ok(table)
    }
}

fn rate(text: &str) -> Result<Option<u64>, BadTimetable> {
    if text == "none" {
        return Ok(None);
    }
    let rate = size::parse(text).map_err(|why| BadTimetable::Rate(text.to_owned(), why))?;
    if rate < LEAST_RATE {
        return Err(BadTimetable::Slow(rate));
    }
    Ok(Some(rate))
}

/// Days, first minute, and the one after the last.
fn span(text: &str) -> Option<(u8, u16, u16)> {
    let (days, hours) = match text.split_once('@') {
        Some((days, hours)) => (days_of(days)?, hours),
        None => (0x7F, text),
    };
    let (from, until) = hours.split_once('-')?;
    let (from, until) = (minute_of(from)?, minute_of(until)?);
    // A span of no length is a mistake, and 24:00 begins nothing.
    (from != until && from < DAY).then_some((days, from, until))
}

/// `mon`, or `fri-mon`.
fn days_of(text: &str) -> Option<u8> {
    let number = |name: &str| {
        DAYS.iter()
            .position(|day| day.eq_ignore_ascii_case(name.trim()))
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    let length = (last + 7 - first) % 7;
    Some((0..=length).fold(0, |days, next| days | 1 << ((first + next) % 7)))
}

/// `08:00`, at most `24:00`.
fn minute_of(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let number = |digits: &str| {
        let plain = (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse::<u16>().ok()).flatten()
    };
    let (hours, minutes) = (
        number(hours)?,
        number(minutes).filter(|_| minutes.len() == 2)?,
    );
    let at = hours * 60 + minutes;
    (minutes < 60 && at <= DAY).then_some(at)
}

impl fmt::Display for Timetable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In bytes: what is shown otherwise is rounded.
        let rate = |rate: Option<u64>| rate.map_or_else(|| "none".to_owned(), |r| r.to_string());
        f.write_str(&rate(self.otherwise))?;
        for span in &self.spans {
            f.write_str(",")?;
            let day = |day: u32| DAYS.get(day as usize % 7).copied().unwrap_or_default();
            if span.days != 0x7F {
                // The days of a span follow each other; the first is the one whose day before is not in it.
                let first =
                    (0..7).find(|d| span.days & 1 << d != 0 && span.days & 1 << ((d + 6) % 7) == 0);
                let first = first.unwrap_or_default();
                write!(
                    f,
                    "{}-{}@",
                    day(first),
                    day(first + span.days.count_ones() + 6)
                )?;
            }
            write!(
                f,
                "{:02}:{:02}-{:02}:{:02}={}",
                span.from / 60,
                span.from % 60,
                span.until / 60,
                span.until % 60,
                rate(span.rate)
            )?;
        }
        Ok(())
    }
}

/// Its form in JSON.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Always(Option<u64>),
    Text(String),
}

impl TryFrom<Form> for Timetable {
    type Error = BadTimetable;

    fn try_from(form: Form) -> Result<Self, BadTimetable> {
        match form {
            Form::Always(Some(rate)) if rate < LEAST_RATE => Err(BadTimetable::Slow(rate)),
            Form::Always(rate) => Ok(Self::always(rate)),
            Form::Text(text) => text.parse(),
        }
    }
}

impl From<Timetable> for Form {
    fn from(table: Timetable) -> Self {
        match table.constant() {
            Some(rate) => Self::Always(rate),
            None => Self::Text(table.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(table: &str, day: u8, hour: u16, minute: u16) -> Option<u64> {
        let table: Timetable = table.parse().unwrap();
        table.rate_at(WeekMinute::new(day, hour * 60 + minute))
    }

    #[test]
    fn a_rate_holds_in_its_span_and_the_other_one_elsewhere() {
        let table = "20M,08:00-18:00=5M,sat-sun@00:00-24:00=none";
        assert_eq!(at(table, 0, 7, 59), Some(20 * MIB));
        assert_eq!(at(table, 0, 8, 0), Some(5 * MIB));
        assert_eq!(at(table, 4, 17, 59), Some(5 * MIB));
        assert_eq!(at(table, 4, 18, 0), Some(20 * MIB));
        assert_eq!(at(table, 5, 12, 0), None);
        assert_eq!(at(table, 6, 23, 59), None);
        assert_eq!(at("08:00-18:00=5M", 2, 18, 0), None);
    }

    #[test]
    fn a_span_goes_on_into_the_next_day() {
        let table = "1M,fri@22:00-06:00=none";
        assert_eq!(at(table, 4, 21, 59), Some(MIB));
        assert_eq!(at(table, 4, 22, 0), None);
        assert_eq!(at(table, 5, 5, 59), None);
        assert_eq!(at(table, 5, 6, 0), Some(MIB));
        assert_eq!(at(table, 5, 22, 0), Some(MIB));
        let table = "1M,sun@22:00-06:00=none";
        assert_eq!(
            at(table, 0, 1, 0),
            None,
            "from the end of the week into the next one"
        );
    }

    #[test]
    fn days_go_round_the_week() {
        let table = "1M,sat-mon@10:00-11:00=2M";
        for (day, fast) in [(5, true), (6, true), (0, true), (1, false), (4, false)] {
            assert_eq!(at(table, day, 10, 30) == Some(2 * MIB), fast, "{day}");
        }
    }

    #[test]
    fn who_does_not_know_the_time_takes_the_lowest_rate() {
        let least = |text: &str| text.parse::<Timetable>().unwrap().least();
        assert_eq!(least("20M,08:00-18:00=5M"), Some(5 * MIB));
        assert_eq!(least("none,08:00-18:00=5M"), Some(5 * MIB));
        assert_eq!(least("none"), None);
    }

    #[test]
    fn what_is_no_timetable_is_refused() {
        for text in [
            "",
            "20",
            "fast",
            "1M,2M",
            "8-18=5M",
            "08:00-08:00=5M",
            "24:00-06:00=5M",
            "08:60-09:00=5M",
            "25:00-26:00=5M",
            "+8:00-09:00=5M",
            "08:00-18:00=1",
            "mo@08:00-18:00=5M",
            "mon-@08:00-18:00=5M",
            "08:00-18:00",
            "08:00-18:00=",
            "8:0-18:00=5M",
        ] {
            assert!(text.parse::<Timetable>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(
            otherwise in prop::option::of(LEAST_RATE..1 << 40),
            spans in prop::collection::vec(
                (0..7_usize, 1..8_usize, 0..DAY, 0..=DAY, prop::option::of(LEAST_RATE..1 << 40)), 0..5),
        ) {
            let spans = spans.into_iter().filter(|span| span.2 != span.3).map(|(first, days, from, until, rate)| Span {
                days: (0..days).fold(0, |mask, next| mask | 1 << ((first + next) % 7)),
                from, until, rate,
            });
            let table = Timetable { otherwise, spans: spans.collect() };
            let json = serde_json::to_string(&table).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Timetable>(&json).unwrap(), &table, "{}", json);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}", at in any::<u16>()) {
            if let Ok(table) = text.parse::<Timetable>() {
                let _ = (table.rate_at(WeekMinute::new(3, at)), table.to_string(), table.least());
            }
        }
    }
}
