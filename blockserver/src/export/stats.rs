//! Counters of an export: one set a worker, so that counting costs no traffic between cores.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many buckets of latency there are.
pub const LATENCY_BUCKETS: usize = 28;

/// What is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Trims and writes of zeroes.
    Zero,
    /// Flushes.
    Flush,
    /// Queries of allocation.
    Status,
}

const KINDS: usize = 5;

#[derive(Debug, Default)]
struct Counter {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    nanoseconds: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
}

/// One worker's counters, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters([Counter; KINDS]);

impl Counters {
    /// One request ended.
    pub(crate) fn count(&self, kind: Kind, bytes: u64, failed: bool, took: Duration) {
        let Some(counter) = self.0.get(kind as usize) else {
            return;
        };
        counter.requests.fetch_add(1, Ordering::Relaxed);
        counter.bytes.fetch_add(bytes, Ordering::Relaxed);
        if failed {
            counter.errors.fetch_add(1, Ordering::Relaxed);
        }
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        counter
            .nanoseconds
            .fetch_add(nanoseconds, Ordering::Relaxed);
        counter.latency[bucket(took)].fetch_add(1, Ordering::Relaxed);
    }
}

/// Bucket `n` counts what took less than 2^n microseconds and not less than half of that; the last
/// one everything longer.
fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    (u64::BITS - micros.leading_zeros()).min(LATENCY_BUCKETS as u32 - 1) as usize
}

/// Totals of one kind of request since the export began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// How many ended.
    pub requests: u64,
    /// How many bytes they concerned.
    pub bytes: u64,
    /// How many of them failed.
    pub errors: u64,
    /// How long all of them together took.
    #[serde(default)]
    pub nanoseconds: u64,
    /// How many took less than 2^n microseconds, and not less than half of that; the last bucket
    /// holds everything longer.
    pub latency: Vec<u64>,
}

/// What an export has done since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Reads.
    pub read: Totals,
    /// Writes.
    pub write: Totals,
    /// Trims and writes of zeroes.
    pub zero: Totals,
    /// Flushes.
    pub flush: Totals,
    /// Queries of allocation.
    pub status: Totals,
}

impl Statistics {
    /// The sum over all workers. Requests that end meanwhile may be counted in part.
    pub(crate) fn sum(workers: &[Counters]) -> Self {
        let total = |kind: Kind| {
            let mut totals = Totals {
                latency: vec![0; LATENCY_BUCKETS],
                ..Totals::default()
            };
            for counter in workers
                .iter()
                .filter_map(|worker| worker.0.get(kind as usize))
            {
                totals.requests += counter.requests.load(Ordering::Relaxed);
                totals.bytes += counter.bytes.load(Ordering::Relaxed);
                totals.errors += counter.errors.load(Ordering::Relaxed);
                totals.nanoseconds += counter.nanoseconds.load(Ordering::Relaxed);
                for (sum, one) in totals.latency.iter_mut().zip(&counter.latency) {
                    *sum += one.load(Ordering::Relaxed);
                }
            }
            totals
        };
        Self {
            read: total(Kind::Read),
            write: total(Kind::Write),
            zero: total(Kind::Zero),
            flush: total(Kind::Flush),
            status: total(Kind::Status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_the_sum_over_the_workers() {
        let workers = [Counters::default(), Counters::default()];
        workers[0].count(Kind::Write, 4096, false, Duration::from_micros(3));
        workers[1].count(Kind::Write, 512, true, Duration::from_hours(1));
        let sum = Statistics::sum(&workers);
        assert_eq!(
            (sum.write.requests, sum.write.bytes, sum.write.errors),
            (2, 4608, 1)
        );
        assert_eq!(
            (sum.write.latency[2], sum.write.latency[LATENCY_BUCKETS - 1]),
            (1, 1)
        );
        assert_eq!(sum.read.requests, 0);
    }

    #[test]
    fn buckets_double() {
        let of = |micros| bucket(Duration::from_micros(micros));
        assert_eq!(
            [of(0), of(1), of(2), of(3), of(4), of(1023), of(1024)],
            [0, 1, 2, 2, 3, 10, 11]
        );
    }
}
