//! What is served is what is described, and its counters only grow.

use std::collections::BTreeSet;

use prometheus::proto::MetricType;

use super::*;

#[test]
fn the_document_lists_each_metric_with_its_kind_and_meaning() {
    let document = include_str!("../../docs/metrics.md");
    let listed: BTreeSet<(String, String, String)> = document
        .lines()
        .filter(|line| line.starts_with("| `diskferry_"))
        .map(|line| {
            let mut cells = line
                .split(" | ")
                .map(|cell| cell.trim_matches(['|', ' ', '`']));
            let mut next = || cells.next().unwrap_or_default().to_owned();
            let (name, kind, _labels) = (next(), next(), next());
            (name, kind, next())
        })
        .collect();
    let defined = defined::ALL.iter().map(|definition| {
        let kind = match definition.kind {
            MetricType::COUNTER => "counter",
            MetricType::HISTOGRAM => "histogram",
            _ => "gauge",
        };
        let (name, help) = (definition.name.to_owned(), definition.help.to_owned());
        (name, kind.to_owned(), help)
    });
    assert_eq!(listed, defined.collect());
}

#[test]
fn a_histogram_counts_what_was_counted_and_no_bound_is_below_what_it_counts() {
    let totals = Totals {
        requests: 10,
        nanoseconds: 1_500_000,
        latency: (1..=LATENCY_BUCKETS as u64).collect(),
        ..Totals::default()
    };
    let histogram = histogram(&totals);
    let all: u64 = totals.latency.iter().sum();
    assert_eq!(histogram.get_sample_count(), all);
    let mut before = (0.0, 0);
    for bucket in histogram.get_bucket() {
        let (bound, count) = (bucket.upper_bound(), bucket.cumulative_count());
        assert!(bound > before.0 && count > before.1 && count < all);
        let below = totals.latency.iter().enumerate();
        let below = below.filter(|(power, _)| seconds(1 << power) <= bound);
        assert_eq!(count, below.map(|(_, count)| count).sum::<u64>());
        before = (bound, count);
    }
}

#[test]
fn a_name_may_hold_anything() {
    let name = "a\"b\\c\nd";
    let observed = Observed {
        disks: vec![ObservedDisk {
            name: name.to_owned(),
            size: 1,
            file: None,
            statistics: Statistics::default(),
            throttled: Throttled::default(),
            moving: None,
            ends: Ends::default(),
        }],
        targets: Vec::new(),
    };
    let text = text(&observed).expect("text");
    assert!(text.contains("diskferry_disk_size_bytes{disk=\"a\\\"b\\\\c\\nd\"} 1\n"));
}
