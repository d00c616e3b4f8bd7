//! `plan` and `evacuate` as a script or a person meets them; no disk is touched.

use std::io::Write as _;
use std::process::Stdio;

use super::run::{command, diskferry, folder};

/// Two machines, of which one is too large.
const TWO: &str = r#"{
    "deadline": "2026-11-27T19:00:00Z",
    "links": [{"name": "wan", "from": "a", "to": "b", "bandwidth": "10MB"}],
    "targets": [{"site": "b", "free": "90T"}],
    "machines": [
        {"name": "small", "site": "a", "disks": [{"allocated": "9GB"}]},
        {"name": "large", "site": "a", "writes": "20MB", "disks": [{"allocated": "1TB"}]}
    ]
}"#;
const AT: [&str; 2] = ["--at", "2026-11-27T18:00:00Z"];

#[test]
fn the_example_is_a_file_that_can_be_planned() {
    let here = folder();
    let example = diskferry(here.path(), &["plan", "--example"]).ok().stdout;
    std::fs::write(here.path().join("e.json"), &example).unwrap();
    let words = ["plan", "e.json", "--at", "2026-11-27T18:00:00Z"];
    // Nine terabytes do not move in four hours.
    let ran = diskferry(here.path(), &words).fails(11);
    assert!(
        ran.stdout.contains("4 of 5 machines move within 4:00:00"),
        "{}",
        ran.stdout
    );
    let late = ran.stdout.split("Not in time:").nth(1).expect("a list");
    assert!(
        late.contains("archive") && late.contains("a seed of 9 TiB on 10 drives"),
        "{late}"
    );
    let json = diskferry(here.path(), &[&words[..], &["--json"]].concat()).ends(11);
    let lines = json.json_lines();
    assert_eq!(
        (&lines[0]["type"], &lines[0]["in_time"]),
        (&"plan".into(), &4.into())
    );
    assert_eq!(lines.last().expect("a failure")["exit_code"], 11);
    let by = |name: &str| {
        let machines = lines[0]["machines"].as_array().expect("machines");
        machines
            .iter()
            .find(|m| m["machine"] == name)
            .expect("it")
            .clone()
    };
    let (database, front) = (by("shop database"), by("shop front 1"));
    assert_eq!(front["moved_s"], by("shop front 2")["moved_s"]);
    assert!(
        database["moved_s"].as_u64() < front["moved_s"].as_u64(),
        "{front}"
    );
    assert!(
        database["wire"].as_u64() > Some(50_000_000_000),
        "{database}"
    );
    assert_eq!(by("archive")["why"], "too_long");
}

#[test]
fn a_plan_is_read_from_stdin_and_comes_out_the_same_each_time() {
    let here = folder();
    let plan = |text: &str| {
        let words = [
            "plan",
            "-",
            "--json",
            "--simulate",
            "20",
            "--seed",
            "7",
            AT[0],
            AT[1],
        ];
        let mut child = command(here.path(), "diskferry", &words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(text.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, text) = plan(TWO);
    assert_eq!(code, Some(11));
    assert_eq!(plan(TWO).1, text);
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let (plan_line, odds) = (&lines[0], &lines[1]);
    assert_eq!(plan_line["machines"][0]["machine"], "small");
    // Nine gigabytes at nine tenths of ten megabytes a second, and a second for the switchover.
    assert_eq!(plan_line["machines"][0]["moved_s"], 1001);
    assert_eq!(plan_line["machines"][1]["why"], "never_in_step");
    assert_eq!((&odds["type"], &odds["runs"]), (&"odds".into(), &20.into()));
    assert_eq!(odds["machines"][0]["in_time_percent"], 100.0);
    assert_eq!(odds["machines"][1]["in_time_percent"], 0.0);
    let fits = TWO.replace("1TB", "1GB").replace("20MB", "1MB");
    assert_eq!(plan(&fits).0, Some(0));
}

#[test]
fn a_file_that_makes_no_sense_is_refused_by_machine_and_field() {
    let here = folder();
    let refused = |text: &str, verb: &str, says: &str| {
        std::fs::write(here.path().join("f.json"), text).unwrap();
        let ran = diskferry(here.path(), &[verb, "f.json"]).fails(2);
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
    };
    refused("{", "plan", "hint: `diskferry plan --example`");
    let negative = TWO.replace("\"9GB\"", "-9");
    refused(&negative, "plan", "-9 is less than nothing");
    let huge = TWO
        .replace("9GB", "900T")
        .replace("2026-11-27T19", "2999-01-01T00");
    refused(&huge, "plan", "it is between 0 and 31622400");
    let soon = TWO.replace("\"2026-11-27T19:00:00Z\"", "\"1h\"");
    refused(
        &soon.replace("9GB", "900T"),
        "plan",
        "machine small: disk 1: allocated is",
    );
    refused(&soon, "evacuate", "target b: has no address");
    let reached = soon.replace("\"90T\"", "\"90T\", \"address\": \"tls:b:1\"");
    refused(
        &reached,
        "evacuate",
        "machine small: a disk of it has no image",
    );
    let ran = diskferry(here.path(), &["plan", "none.json"]).fails(1);
    assert!(
        ran.stderr.contains("none.json: cannot be read"),
        "{}",
        ran.stderr
    );
    diskferry(here.path(), &["plan"]).fails(2);
    diskferry(here.path(), &["plan", "f.json", "--seed", "1"]).fails(2);
}
