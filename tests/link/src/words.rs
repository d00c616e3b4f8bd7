//! What people type: rates, delays, losses, and what to do with a link that runs.

use std::time::Duration;

use crate::way::Shape;

/// What a link that runs may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Nothing gets through; with a span, until that has passed.
    Cut(Option<Duration>),
    /// Open again.
    Mend,
    /// Another rate.
    Rate(u64),
    /// Another delay.
    Delay(Duration),
    /// Another share of packets lost.
    Loss(u32),
    /// Only say what became of the packets.
    Count,
}

impl Order {
    /// The order in a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["cut"] => Ok(Self::Cut(None)),
            ["cut", span] => delay(span).map(|span| Self::Cut(Some(span))),
            ["mend"] => Ok(Self::Mend),
            ["rate", to] => rate(to).map(Self::Rate),
            ["delay", to] => delay(to).map(Self::Delay),
            ["loss", to] => loss(to).map(Self::Loss),
            ["count"] => Ok(Self::Count),
            _ => Err(format!(
                "`{line}` is none of cut [TIME], mend, rate RATE, delay TIME, loss PERCENT, count"
            )),
        }
    }

    /// What it makes of a shape.
    pub fn apply(self, shape: &mut Shape) {
        match self {
            Self::Rate(rate) => shape.rate = rate,
            Self::Delay(delay) => shape.delay = delay,
            Self::Loss(loss) => shape.loss = loss,
            Self::Cut(_) | Self::Mend | Self::Count => {}
        }
    }
}

/// Bits a second: a number, with k, M or G for the powers of a thousand.
///
/// # Errors
/// It is none, or not above zero.
pub fn rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no rate such as 200M or 1.5G (bits a second)");
    let (number, unit) = split(text);
    let unit = match unit {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        _ => return Err(wrong()),
    };
    let bits = number.ok_or_else(wrong)? * unit;
    #[expect(clippy::cast_sign_loss, reason = "it is in between")]
    let bits = (1.0..=1e12).contains(&bits).then_some(bits as u64);
    bits.ok_or_else(wrong)
}

/// A time: a number with us, ms or s.
///
/// # Errors
/// It is none, or more than an hour.
pub fn delay(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time such as 40ms or 1.5s");
    let (number, unit) = split(text);
    let unit = match unit {
        "" if number == Some(0.0) => 1.0,
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err(wrong()),
    };
    let seconds = number.ok_or_else(wrong)? * unit;
    let valid = (0.0..=3600.0).contains(&seconds);
    valid
        .then(|| Duration::from_secs_f64(seconds))
        .ok_or_else(wrong)
}

/// Packets of a million, written in percent, with or without the sign.
///
/// # Errors
/// It is no share.
pub fn loss(text: &str) -> Result<u32, String> {
    let (number, unit) = split(text);
    let number = number.filter(|number| (0.0..=100.0).contains(number));
    match (number, unit) {
        #[expect(clippy::cast_sign_loss, reason = "it is in between")]
        (Some(percent), "" | "%") => Ok((percent * 1e4).round() as u32),
        _ => Err(format!("`{text}` is no percentage such as 0.1")),
    }
}

/// The number at the beginning, and the rest.
fn split(text: &str) -> (Option<f64>, &str) {
    let end = text.find(|c: char| c != '.' && !c.is_ascii_digit());
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    (number.parse().ok(), unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_understood_or_refused() {
        let ms = Duration::from_millis;
        for (line, order) in [
            ("cut", Order::Cut(None)),
            ("cut 1.5s", Order::Cut(Some(ms(1500)))),
            ("  mend ", Order::Mend),
            ("rate 200M", Order::Rate(200_000_000)),
            ("rate 1.5G", Order::Rate(1_500_000_000)),
            ("rate 9600", Order::Rate(9600)),
            ("delay 40ms", Order::Delay(ms(40))),
            ("delay 0", Order::Delay(Duration::ZERO)),
            ("delay 250us", Order::Delay(Duration::from_micros(250))),
            ("loss 0.1", Order::Loss(1000)),
            ("loss 0.1%", Order::Loss(1000)),
            ("loss 100", Order::Loss(1_000_000)),
            ("count", Order::Count),
        ] {
            assert_eq!(Order::parse(line), Ok(order), "{line}");
        }
        for line in [
            "", "cut it", "mend 1s", "rate", "rate 0", "rate M", "rate 1T", "delay 40", "delay 2h",
            "loss 101", "loss -1", "loss .", "rate 1e9",
        ] {
            assert!(Order::parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn an_order_changes_what_it_names() {
        let mut shape = Shape::new(8, Duration::ZERO);
        let before = shape;
        Order::Count.apply(&mut shape);
        assert_eq!(shape, before);
        Order::Loss(7).apply(&mut shape);
        assert_eq!(shape, Shape { loss: 7, ..before });
    }
}
