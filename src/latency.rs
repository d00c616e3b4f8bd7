//! How long things took, and what to say of it.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest time that is told apart from longer ones.
const LONGEST: Duration = Duration::from_hours(1);

/// The times that operations of one kind took.
#[derive(Clone, Debug)]
pub(crate) struct Latency {
    nanoseconds: Histogram<u64>,
}

/// A summary of them, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

impl Latency {
    pub(crate) fn new() -> Self {
        let nanoseconds = Histogram::new_with_max(LONGEST.as_nanos() as u64, 3);
        Self {
            nanoseconds: nanoseconds.expect("the bounds are legal"),
        }
    }

    pub(crate) fn note(&mut self, took: Duration) {
        self.nanoseconds.saturating_record(took.as_nanos() as u64);
    }

    pub(crate) fn summary(&self) -> Summary {
        let at = |quantile| micros(self.nanoseconds.value_at_quantile(quantile));
        Summary {
            count: self.nanoseconds.len(),
            mean_us: self.nanoseconds.mean() / 1000.0,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: micros(self.nanoseconds.max()),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a histogram holds three digits")]
fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

/// Microseconds for people: `85 µs`, `1.2 ms`, `3.4 s`.
pub(crate) fn show(micros: f64) -> String {
    match micros {
        m if m < 1_000.0 => format!("{m:.0} µs"),
        m if m < 1_000_000.0 => format!("{:.1} ms", m / 1_000.0),
        m => format!("{:.2} s", m / 1_000_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_noted() {
        let mut latency = Latency::new();
        for micros in 1..=1000 {
            latency.note(Duration::from_micros(micros));
        }
        let summary = latency.summary();
        assert_eq!(summary.count, 1000);
        assert!((499.0..=501.0).contains(&summary.p50_us), "{summary:?}");
        assert!((989.0..=991.0).contains(&summary.p99_us), "{summary:?}");
        assert!((1000.0..=1001.0).contains(&summary.max_us), "{summary:?}");
        assert_eq!(show(85.4), "85 µs");
        assert_eq!(show(1234.0), "1.2 ms");
        assert_eq!(show(3_400_000.0), "3.40 s");
    }
}
