//! What Prometheus is told: a snapshot of counters that exist, as text.
//!
//! Nothing is counted here, so that being watched costs those who serve nothing. The series of a move carry its session:
//! they stay after its end, until the disk's next move has others, and none of their counters goes back.

mod defined;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use blockserver::export::{LATENCY_BUCKETS, Statistics, Throttled, Totals};
use mirror::net::{SourceStatus, WatchedTarget};
use mirror::session::Stage;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{Encoder as _, TextEncoder};

use self::defined::Definition;
use crate::failure::{Exit, Failure, Result};

/// The type of what [`text`] makes.
pub(crate) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// What records of a target may say: see [`TargetStatus`](mirror::net::TargetStatus).
const STATES: [&str; 9] = [
    "none",
    "emptying",
    "receiving",
    "following",
    "prepared",
    "bound",
    "offered",
    "owner",
    "released",
];

/// Stages with the names that they have everywhere.
const STAGES: [(Stage, &str); 8] = [
    (Stage::Connecting, "connecting"),
    (Stage::Copying, "copying"),
    (Stage::Synced, "synced"),
    (Stage::Switching, "switching"),
    (Stage::Bound, "bound"),
    (Stage::Released, "released"),
    (Stage::Forwarding, "forwarding"),
    (Stage::Ended, "ended"),
];

/// Moves of a disk that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ends {
    /// The disk went.
    pub(crate) moved: u64,
    /// It stayed.
    pub(crate) stayed: u64,
}

impl Ends {
    /// One more, if that is one which has ended.
    pub(crate) fn count(&mut self, status: &SourceStatus) {
        match &status.error {
            _ if !status.ended => {}
            None => self.moved += 1,
            Some(_) => self.stayed += 1,
        }
    }
}

/// A disk at one moment.
#[derive(Clone, Debug)]
pub(crate) struct ObservedDisk {
    pub(crate) name: String,
    /// Bytes that clients see.
    pub(crate) size: u64,
    /// Bytes that its file takes.
    pub(crate) file: Option<u64>,
    pub(crate) statistics: Statistics,
    pub(crate) throttled: Throttled,
    /// Its newest move.
    pub(crate) moving: Option<SourceStatus>,
    /// Those that ended, the newest among them.
    pub(crate) ends: Ends,
}

/// A process at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    pub(crate) disks: Vec<ObservedDisk>,
    /// Disks that are or were received.
    pub(crate) targets: Vec<WatchedTarget>,
}

/// What Prometheus reads.
pub(crate) fn text(observed: &Observed) -> Result<String> {
    let mut families = Families::default();
    families.gauge(
        &defined::BUILD,
        &[("version", env!("CARGO_PKG_VERSION"))],
        1.0,
    );
    for disk in &observed.disks {
        families.disk(disk);
        if let Some(status) = &disk.moving {
            families.moving(&disk.name, status);
        }
    }
    for target in &observed.targets {
        families.target(target);
    }
    let mut text = Vec::new();
    let encoded = TextEncoder::new().encode(&families.in_order(), &mut text);
    let broken = |e: &dyn std::fmt::Display| Failure::new(Exit::Failed, format!("no metrics: {e}"));
    encoded.map_err(|e| broken(&e))?;
    String::from_utf8(text).map_err(|e| broken(&e))
}

/// The series so far, by the name of their metric.
#[derive(Default)]
struct Families(BTreeMap<&'static str, Vec<Metric>>);

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Families {
    fn in_order(mut self) -> Vec<MetricFamily> {
        let families = defined::ALL.iter().filter_map(|definition| {
            let series = self.0.remove(definition.name)?;
            let mut family = MetricFamily::default();
            family.set_name(definition.name.to_owned());
            family.set_help(definition.help.to_owned());
            family.set_field_type(definition.kind);
            family.set_metric(series);
            Some(family)
        });
        families.collect()
    }

    fn series(&mut self, definition: &Definition, labels: Labels<'_>) -> &mut Metric {
        let pairs = labels.iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        let series = self.0.entry(definition.name).or_default();
        let number = series.len();
        series.push(Metric::from_label(pairs.collect()));
        &mut series[number]
    }

    fn gauge(&mut self, definition: &Definition, labels: Labels<'_>, value: f64) {
        debug_assert_eq!(definition.kind, MetricType::GAUGE);
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        self.series(definition, labels).set_gauge(gauge);
    }

    fn counter(&mut self, definition: &Definition, labels: Labels<'_>, value: f64) {
        debug_assert_eq!(definition.kind, MetricType::COUNTER);
        let mut counter = Counter::default();
        counter.set_value(value);
        self.series(definition, labels).set_counter(counter);
    }

    /// One series for each of `all`, which is 1 for the one that `is`.
    fn states<'a>(
        &mut self,
        definition: &Definition,
        (name, all): (&'a str, impl Iterator<Item = &'a str>),
        (labels, is): (Labels<'a>, &str),
    ) {
        for state in all {
            let labels = [labels, &[(name, state)]].concat();
            self.gauge(definition, &labels, f64::from(u8::from(state == is)));
        }
    }

    fn disk(&mut self, disk: &ObservedDisk) {
        let labels = [("disk", disk.name.as_str())];
        self.gauge(&defined::DISK_SIZE, &labels, number(disk.size));
        if let Some(bytes) = disk.file {
            self.gauge(&defined::DISK_FILE, &labels, number(bytes));
        }
        let counted = &disk.statistics;
        for (operation, totals) in [
            ("read", &counted.read),
            ("write", &counted.write),
            ("zero", &counted.zero),
            ("flush", &counted.flush),
            ("status", &counted.status),
        ] {
            self.operation(&[labels[0], ("operation", operation)], totals);
        }
        let throttled = &disk.throttled;
        self.counter(&defined::THROTTLED, &labels, number(throttled.requests));
        self.counter(
            &defined::THROTTLED_FOR,
            &labels,
            number(throttled.nanoseconds) / 1e9,
        );
        for (result, count) in [("moved", disk.ends.moved), ("stayed", disk.ends.stayed)] {
            let labels = [labels[0], ("result", result)];
            self.counter(&defined::ENDED, &labels, number(count));
        }
    }

    fn operation(&mut self, labels: Labels<'_>, totals: &Totals) {
        self.counter(&defined::REQUESTS, labels, number(totals.requests));
        self.counter(&defined::BYTES, labels, number(totals.bytes));
        self.counter(&defined::ERRORS, labels, number(totals.errors));
        self.series(&defined::LATENCY, labels)
            .set_histogram(histogram(totals));
    }

    fn moving(&mut self, disk: &str, status: &SourceStatus) {
        let session = status.session.to_string();
        let labels = [("disk", disk), ("session", session.as_str())];
        let progress = &status.progress;
        let report = &status.report;
        // A target that runs has all of it, though it does not say so of each record.
        let runs = status.ended && status.error.is_none();
        let backlog = if runs { 0 } else { progress.unacknowledged };
        let is = STAGES.iter().find(|(stage, _)| *stage == progress.stage);
        let all = STAGES.iter().map(|(_, name)| *name);
        let is = is.map_or("", |(_, name)| name);
        self.states(&defined::PHASE, ("phase", all), (&labels, is));
        for (definition, value) in [
            (&defined::CONNECTED, f64::from(u8::from(progress.connected))),
            (&defined::ELAPSED, seconds(status.elapsed)),
            (&defined::SCANNED, number(progress.scanned)),
            (&defined::FOUND, number(progress.found)),
            (&defined::REMAINING, number(progress.remaining)),
            (&defined::BACKLOG, number(backlog)),
            (&defined::RATE, number(progress.rate)),
            (&defined::DIRTY_RATE, number(status.dirty_rate)),
        ] {
            self.gauge(definition, &labels, value);
        }
        for (definition, value) in [
            (&defined::TRANSFERRED, report.transferred),
            (&defined::READ, report.read),
            (&defined::SENT, report.wire),
            (&defined::WRITTEN, progress.written),
            (&defined::RECONNECTS, report.reconnects),
            (&defined::FALLBACKS, progress.fallen_back),
        ] {
            self.counter(definition, &labels, number(value));
        }
        for (definition, value) in [
            (&defined::LIMIT, progress.limit.map(number)),
            (&defined::BRAKE, progress.brake.map(number)),
            (
                &defined::LAG,
                status.behind.filter(|_| !status.ended).map(seconds),
            ),
            (&defined::PAUSE, progress.pause.map(seconds)),
        ] {
            if let Some(value) = value {
                self.gauge(definition, &labels, value);
            }
        }
        self.saved_and_estimated(labels, status);
    }

    fn saved_and_estimated(&mut self, labels: [(&str, &str); 2], status: &SourceStatus) {
        let saved = &status.report.saved;
        for (by, bytes) in [
            ("holes", saved.holes),
            ("zeros", saved.zeros),
            ("hashes", saved.hashes),
            ("overwritten", saved.overwritten),
            ("packing", saved.packing),
        ] {
            let labels = [labels[0], labels[1], ("by", by)];
            self.gauge(&defined::SAVED, &labels, number(bytes));
        }
        let Some(estimate) = status.progress.estimate.filter(|_| !status.ended) else {
            return;
        };
        for (bound, value) in [
            ("likely", number(estimate.seconds)),
            ("least", number(estimate.least)),
            ("most", estimate.most.map_or(f64::INFINITY, number)),
        ] {
            let labels = [labels[0], labels[1], ("bound", bound)];
            self.gauge(&defined::ESTIMATE, &labels, value);
        }
    }

    fn target(&mut self, target: &WatchedTarget) {
        let status = &target.status;
        let labels = [("disk", status.name.as_str())];
        let all = STATES.iter().copied();
        self.states(
            &defined::TARGET_STATE,
            ("state", all),
            (&labels, status.state),
        );
        let connected = f64::from(u8::from(status.session.is_some()));
        self.gauge(&defined::TARGET_CONNECTED, &labels, connected);
        self.counter(&defined::TARGET_WRITTEN, &labels, number(status.written));
        self.gauge(&defined::TARGET_JOURNAL, &labels, number(target.journal));
        self.counter(&defined::TARGET_EPOCHS, &labels, number(status.epochs));
    }
}

/// Every other of the bounds that are counted, which are powers of two of microseconds, in seconds.
fn histogram(totals: &Totals) -> Histogram {
    let mut cumulative = 0;
    let mut buckets = Vec::new();
    for (power, count) in totals.latency.iter().enumerate() {
        cumulative += count;
        // The last one has no bound.
        if power % 2 == 0 && power + 1 < LATENCY_BUCKETS {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(seconds(1 << power));
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
    }
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets);
    // Of these, not of requests: those that end meanwhile may be counted in part.
    histogram.set_sample_count(cumulative);
    histogram.set_sample_sum(number(totals.nanoseconds) / 1e9);
    histogram
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus knows no other numbers; they are exact up to 8 PiB"
)]
fn number(value: u64) -> f64 {
    value as f64
}

fn seconds(micros: u64) -> f64 {
    number(micros) / 1e6
}
