//! `diskferry machine stats`: what a machine and its disks have done, as a table.

use std::fmt::Write as _;

use blockserver::export::Totals;

use super::client;
use crate::args::MachineArgs;
use crate::control::machine::statistics::{DiskStatistics, MachineStatistics};
use crate::failure::Result;
use crate::report::Report;
use crate::size;

pub(super) fn run(args: &MachineArgs, report: Report) -> Result<()> {
    let counted: MachineStatistics = client(args)?.get("/v1/machine/stats")?;
    report.result("machine-stats", &counted, table)
}

fn table(counted: &MachineStatistics) -> String {
    let mut text = format!(
        "{}: {}; {} since it began, {} of it paused; {} resets\n\
         memory of the host: {}, of it {} the guest's\n\n",
        counted.machine,
        counted.state.in_words(),
        seconds(counted.uptime_ms),
        seconds(counted.paused_ms),
        counted.resets,
        size::show(counted.resident_bytes),
        size::show(counted.guest_resident_bytes),
    );
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{:>9}  {:8} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "processor", "", "port reads", "writes", "mem. reads", "writes", "interrupted"
    );
    for (index, one) in counted.vcpus.iter().enumerate() {
        let _ = writeln!(
            text,
            "{index:>9}  {:8} {:>12} {:>12} {:>12} {:>12} {:>12}",
            one.state,
            one.port_reads,
            one.port_writes,
            one.memory_reads,
            one.memory_writes,
            one.interrupted
        );
    }
    if !counted.disks.is_empty() {
        let _ = writeln!(
            text,
            "\n{:16} {:8} {:>12} {:>10} {:>8} {:>9} {:>9}",
            "disk", "", "requests", "bytes", "errors", "half", "99 %"
        );
    }
    for disk in &counted.disks {
        rows(&mut text, disk);
    }
    text
}

fn rows(text: &mut String, disk: &DiskStatistics) {
    let counted = &disk.counted;
    let kinds = [
        ("reads", &counted.read),
        ("writes", &counted.write),
        ("zeroes", &counted.zero),
        ("flushes", &counted.flush),
    ];
    for (at, (kind, totals)) in kinds.into_iter().enumerate() {
        let name = if at == 0 { disk.name.as_str() } else { "" };
        let _ = writeln!(
            text,
            "{name:16} {kind:8} {:>12} {:>10} {:>8} {:>9} {:>9}",
            totals.requests,
            size::show(totals.bytes),
            totals.errors,
            below(totals, 50),
            below(totals, 99)
        );
    }
}

fn seconds(millis: u64) -> String {
    format!("{}.{:03} s", millis / 1000, millis % 1000)
}

/// What so many of a hundred requests took less than.
fn below(totals: &Totals, of_hundred: u64) -> String {
    let all: u64 = totals.latency.iter().sum();
    if all == 0 {
        return "-".to_owned();
    }
    let wanted = all.saturating_mul(of_hundred).div_ceil(100);
    let mut seen = 0_u64;
    let bucket = totals.latency.iter().position(|count| {
        seen += count;
        seen >= wanted
    });
    match bucket.map(|bucket| 1_u64 << bucket.min(40)) {
        Some(micros @ 0..1000) => format!("{micros} us"),
        Some(micros) if micros < 1_000_000 => format!("{} ms", micros.div_ceil(1000)),
        Some(micros) => format!("{} s", micros.div_ceil(1_000_000)),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_requests_took_less_than_it_says() {
        let totals = |latency: &[u64]| Totals {
            latency: latency.to_vec(),
            ..Totals::default()
        };
        assert_eq!(below(&totals(&[]), 50), "-");
        assert_eq!(below(&totals(&[0, 0, 0, 1]), 50), "8 us");
        let mixed = totals(&[0, 98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(below(&mixed, 50), "2 us");
        assert_eq!(below(&mixed, 98), "2 us");
        assert_eq!(below(&mixed, 99), "3 ms");
    }
}
