//! A move is followed: by Prometheus, by a report at its end, and as a picture of the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use super::ledger::Ledger;
use super::load::{Area, Load};
use super::process::{Running, STUCK, last_json};
use super::site::Sites;
use crate::run::{command, program};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A disk of 16 GiB, and both sites with an address for Prometheus; where those are.
fn watched() -> (Sites, [String; 2]) {
    let mut sites = Sites::new("a.vhdx", &["16G", "--block-size", "1M"]);
    sites.taking = vec!["--metrics", "127.0.0.1:0"];
    sites.receive();
    let words = ["serve", "a.vhdx", "--listen", "unix:s"];
    let more = ["--control", "unix:c", "--metrics", "127.0.0.1:0"];
    let mut serve = Running::start(sites.here(), &[&words[..], &more[..]].concat());
    serve.says("serving");
    let at = |running: &mut Running| {
        let line = running.says("metrics");
        line["listen"].as_str().expect("an address").to_owned()
    };
    let source = at(&mut serve);
    sites.source = Some(serve);
    let target = at(sites.target.as_mut().expect("it runs"));
    (sites, [source, target])
}

fn area() -> Area {
    Area {
        seed: 5,
        disk: 16 * GIB,
        regions: 3,
        length: 4 * MIB,
        rate: 1000,
    }
}

fn answer(mut stream: impl std::io::Read + std::io::Write, resource: &str) -> String {
    let ask = format!("GET {resource} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).expect("it listens");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("UTF-8");
    text
}

fn scraped(at: &str) -> String {
    let text = answer(TcpStream::connect(at).expect("it listens"), "/metrics");
    let (head, body) = text.split_once("\r\n\r\n").expect("HTTP");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    body.to_owned()
}

/// Prometheus' own parser: for each series its kind and value.
const PARSE: &str = "
import json, sys
from prometheus_client.parser import text_string_to_metric_families
families = text_string_to_metric_families(open(sys.argv[1]).read())
series = {}
for family in families:
    assert family.documentation, family.name
    for s in family.samples:
        key = s.name + json.dumps(s.labels, sort_keys=True)
        assert key not in series, key
        counts = family.type == 'counter' or s.name.endswith(('_bucket', '_count', '_sum'))
        series[key] = [s.name, family.type, counts, repr(s.value)]
print(json.dumps(series))
";

/// A series: the name of its samples, its kind, whether it only grows, and its value.
type Series = BTreeMap<String, (String, String, bool, f64)>;

fn parsed(here: &Path, text: &str) -> Series {
    std::fs::write(here.join("metrics.txt"), text).expect("written");
    let ran = program(here, "/usr/bin/python3", &["-c", PARSE, "metrics.txt"]).ends(0);
    let series: BTreeMap<String, (String, String, bool, String)> =
        serde_json::from_str(&ran.stdout).expect("JSON");
    let number = |text: &str| text.parse::<f64>().expect("a number");
    let series = series.into_iter();
    series
        .map(|(key, (name, kind, grows, value))| (key, (name, kind, grows, number(&value))))
        .collect()
}

/// No counter is less than it was, and none of a disk or its moves is gone.
#[track_caller]
fn went_on(before: &Series, now: &Series) {
    for (key, (_, _, grows, value)) in before {
        let then = now.get(key).filter(|_| *grows);
        assert!(!grows || then.is_some(), "{key} is gone");
        assert!(
            then.is_none_or(|then| then.3 >= *value),
            "{key} fell from {value}"
        );
    }
}

fn value(series: &Series, name: &str, label: &str) -> f64 {
    let found = series
        .iter()
        .find(|(key, (sample, ..))| sample == name && key.contains(label));
    found
        .unwrap_or_else(|| panic!("no {name} with {label}"))
        .1
        .3
}

/// That series is 1.
#[track_caller]
fn is_one(series: &Series, name: &str, label: &str) {
    let value = value(series, name, label);
    assert!(
        (value - 1.0).abs() < f64::EPSILON,
        "{name} {label}: {value}"
    );
}

/// The metrics of the document, without what a parser takes from a name.
fn documented() -> BTreeSet<String> {
    let document = include_str!("../../docs/metrics.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split('`').next())
        .map(str::to_owned)
        .collect()
}

/// What was served is what is described.
#[track_caller]
fn is_described(samples: &BTreeSet<String>) {
    let parts = ["_bucket", "_count", "_sum"];
    let whole = |name: &String| {
        let base = parts.iter().find_map(|part| name.strip_suffix(part));
        base.unwrap_or(name).to_owned()
    };
    let served: BTreeSet<String> = samples.iter().map(whole).collect();
    let documented = documented();
    let unknown: Vec<_> = served.difference(&documented).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let missing: Vec<_> = documented.difference(&served).map(String::as_str).collect();
    // It has no deadline.
    assert_eq!(missing, ["diskferry_move_brake_bytes_per_second"]);
}

#[test]
fn prometheus_reads_a_move_to_its_end_and_after_it_and_no_counter_goes_back() {
    let (mut sites, [source, target]) = watched();
    let load = Load::start(&sites.at_source(), area(), Ledger::default());
    load.goes_on(500);
    let mut before = parsed(sites.here(), &scraped(&source));
    assert!(value(&before, "diskferry_export_requests_total", "\"write\"") >= 500.0);
    let mut there = parsed(sites.here(), &scraped(&target));
    // A first attempt is held back, so that there is time to look, and ended.
    sites.start(&["--manual", "--rate", "200K"]).ends(0);
    let mut seen = BTreeSet::new();
    let since = Instant::now();
    while !seen.contains("diskferry_move_estimate_seconds") {
        assert!(since.elapsed() < STUCK, "no estimate: {before:?}");
        let now = parsed(sites.here(), &scraped(&source));
        went_on(&before, &now);
        seen.extend(now.values().map(|series| series.0.clone()));
        before = now;
    }
    sites.mirror("cancel").ends(0);
    sites.until("ended", |status| status["ended"] == true);
    let after = parsed(sites.here(), &scraped(&source));
    went_on(&before, &after);
    is_one(&after, "diskferry_moves_ended_total", "stayed");
    is_one(&after, "diskferry_move_phase", "\"ended\"");
    // Those of the next move have another session, and what is counted of all moves goes on.
    sites.start(&["--manual"]).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    load.goes_on(500);
    let now = parsed(sites.here(), &scraped(&source));
    seen.extend(now.values().map(|series| series.0.clone()));
    assert!(value(&now, "diskferry_move_lag_seconds", "session") >= 0.0);
    let follows = parsed(sites.here(), &scraped(&target));
    went_on(&there, &follows);
    there = follows;
    sites.mirror("cutover").ends(0);
    sites.moved();
    load.goes_on(100);
    let end = parsed(sites.here(), &scraped(&source));
    is_one(&end, "diskferry_moves_ended_total", "moved");
    is_one(&end, "diskferry_moves_ended_total", "stayed");
    is_one(&end, "diskferry_move_phase", "forwarding");
    assert!(value(&end, "diskferry_move_pause_seconds", "session") > 0.0);
    assert!(value(&end, "diskferry_move_transferred_bytes_total", "session") > 0.0);
    assert!(value(&end, "diskferry_move_saved_bytes", "holes") > 8e9);
    went_on(&now, &parsed(sites.here(), &scraped(&source)));
    let arrived = parsed(sites.here(), &scraped(&target));
    went_on(&there, &arrived);
    is_one(&arrived, "diskferry_target_state", "owner");
    assert!(value(&arrived, "diskferry_target_written_bytes_total", "a.vhdx") > 0.0);
    assert!(value(&arrived, "diskferry_export_requests_total", "\"write\"") > 0.0);
    load.well();
    for series in [&end, &arrived] {
        seen.extend(series.values().map(|series| series.0.clone()));
    }
    is_described(&seen);
    sites.end();
}

#[test]
fn metrics_are_read_at_the_control_socket_and_nothing_else_is_at_their_own_address() {
    let (mut sites, [source, _]) = watched();
    let control = UnixStream::connect(sites.here().join("c")).expect("it listens");
    let text = answer(control, "/metrics");
    assert!(
        text.contains("diskferry_disk_size_bytes{disk=\"a\"} 17179869184"),
        "{text}"
    );
    let text = answer(
        TcpStream::connect(&source).expect("it listens"),
        "/v1/disks",
    );
    assert!(text.starts_with("HTTP/1.1 404"), "{text}");
    let words = [
        "serve",
        "a.vhdx",
        "--listen",
        "unix:x",
        "--metrics",
        "0.0.0.0:0",
    ];
    let ran = sites.run(&words).ends(2);
    assert!(ran.stderr.contains("--metrics-anywhere"), "{}", ran.stderr);
    sites.end();
}

#[test]
fn a_move_leaves_a_report_that_adds_up_until_the_next_one() {
    let mut sites = Sites::running("a.vhdx", &["16G", "--block-size", "1M"]);
    let load = Load::start(&sites.at_source(), area(), Ledger::default());
    load.goes_on(1000);
    let waited = sites.start(&["--wait", "--json"]).ends(0);
    let lines = waited.stdout.lines();
    let lines: Vec<Value> = lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let (last, before) = lines.split_last().expect("lines");
    assert!(
        before
            .iter()
            .all(|line| line["type"] == "progress" && line["schema"] == 1)
    );
    assert_eq!(last["type"], "summary");
    let status = last_json(&sites.mirror("status").ends(0));
    assert_eq!(status["report"], last["report"]);
    let report = &last["report"];
    let number = |value: &Value| {
        value
            .as_u64()
            .unwrap_or_else(|| panic!("{value}: {report}"))
    };
    let phases = report["phases"].as_array().expect("phases");
    let sum: u64 = phases.iter().map(|phase| number(&phase["took"])).sum();
    assert_eq!(sum, number(&report["took"]));
    let named = |stage: &str| phases.iter().any(|phase| phase["stage"] == stage);
    assert!(
        named("copying") && named("switching") && named("forwarding"),
        "{report}"
    );
    assert_eq!(report["pause"], last["pause"]);
    assert_eq!(
        number(&report["transferred"]),
        number(&last["copied"]) + number(&last["streamed"])
    );
    assert!(
        number(&report["read"]) >= number(&last["copied"]),
        "{report}"
    );
    assert_eq!(
        number(&report["saved"]["holes"]),
        16 * GIB - number(&last["found"])
    );
    assert!(number(&report["rate"]["peak"]) >= number(&report["rate"]["average"]));
    let text = sites.run(&["mirror", "status", "a.vhdx"]).ends(0).stdout;
    for word in [
        "took",
        "on the wire",
        "saved by holes",
        "clients wrote",
        "pause",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    load.well();
    sites.end();
}

#[test]
fn several_moves_are_told_one_by_one_and_in_all() {
    let mut sites = Sites::new("a.vhdx", &["64M"]);
    sites.run(&["create", "b.img", "64M"]).ends(0);
    let words = ["serve", "a.vhdx", "b.img", "--listen", "unix:s"];
    let mut serve = Running::start(sites.here(), &words);
    serve.says("serving");
    sites.source = Some(serve);
    sites.receive();
    let to = sites.to();
    for disk in ["a.vhdx", "b.img"] {
        sites.run(&["mirror", "start", disk, "--to", &to]).ends(0);
    }
    let ran = sites.run(&["mirror", "status", "a.vhdx", "b.img", "--wait", "--json"]);
    let lines: Vec<Value> = ran.ends(0).json_lines();
    let last: Vec<&Value> = lines.iter().rev().take(3).rev().collect();
    let told = |field: &str| {
        last.iter()
            .map(|line| line[field].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(told("type"), ["summary", "summary", "total"]);
    let (total, each) = (last[2], &last[..2]);
    assert_eq!(
        (&total["disks"], &total["ended"], &total["failed"]),
        (&2.into(), &2.into(), &0.into())
    );
    for field in ["found", "copied", "sent"] {
        let sum: u64 = each
            .iter()
            .map(|line| line[field].as_u64().expect("a number"))
            .sum();
        assert_eq!(total[field].as_u64(), Some(sum), "{field}");
    }
    sites.end();
}

/// The disk as `mirror map` draws it, in a pipe.
fn drawn(sites: &Sites, locale: &str, words: &[&str]) -> String {
    let all = [&["mirror", "map", "a.vhdx"], words].concat();
    let ran = command(sites.here(), "diskferry", &all)
        .env("LC_ALL", locale)
        .output()
        .expect("it runs");
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stdout).expect("UTF-8")
}

#[test]
fn a_disk_of_64_tib_is_drawn_while_it_moves_and_plainly_in_a_pipe() {
    let mut sites = Sites::running("a.vhdx", &["64T"]);
    let area = Area {
        disk: 64 << 40,
        regions: 8,
        ..area()
    };
    let load = Load::start(&sites.at_source(), area, Ledger::default());
    load.goes_on(2000);
    let ran = sites.run(&["mirror", "map", "a.vhdx"]).ends(2);
    assert!(ran.stderr.contains("not being moved"), "{}", ran.stderr);
    sites.start(&["--manual", "--rate", "100K"]).ends(0);
    let picture = || {
        let text = drawn(&sites, "C", &["--json", "--cells", "4096"]);
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    let count = |picture: &Value, state: &str| picture["counts"][state].as_u64().unwrap_or(0);
    let first = loop {
        let picture = picture();
        if count(&picture, "unknown") == 0 {
            break picture;
        }
    };
    assert_eq!(
        (&first["type"], &first["cells"]),
        (&"picture".into(), &4096.into())
    );
    let runs = first["runs"].as_array().expect("runs");
    let cells: u64 = runs
        .iter()
        .map(|run| run["cells"].as_u64().expect("a number"))
        .sum();
    assert_eq!(cells, 4096);
    let busy = ["to-copy", "dirty", "hot", "sending"];
    assert!(busy.iter().any(|state| count(&first, state) > 0), "{first}");
    assert!(count(&first, "unallocated") > 4000, "{first}");
    let plain = drawn(&sites, "C", &[]);
    assert!(plain.is_ascii() && !plain.contains('\x1b'), "{plain}");
    assert!(
        plain.contains("not allocated") && plain.contains("64 TiB in"),
        "{plain}"
    );
    let pretty = drawn(&sites, "C.UTF-8", &[]);
    assert!(pretty.contains('·') && !pretty.contains('\x1b'), "{pretty}");
    sites.run(&["mirror", "rate", "a.vhdx", "none"]).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    load.well();
    sites.mirror("cutover").ends(0);
    sites.moved();
    // It shows how the disk went.
    let last = picture();
    assert!(
        count(&last, "copied") > 0 && count(&last, "unallocated") > 4000,
        "{last}"
    );
    for state in ["to-copy", "dirty", "hot", "sending", "unknown"] {
        assert_eq!(count(&last, state), 0, "{last}");
    }
    sites.end();
}
