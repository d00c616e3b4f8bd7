//! A machine is paused, runs on, is told of, and is ended.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::guest::{ask, describe, events, start, until, without_kvm};
use super::process::Running;
use crate::run::{diskferry, folder};

#[test]
fn a_machine_stands_still_while_it_is_paused_and_runs_on_as_if_nothing_was() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=ledger blocks=256", &["a.vhdx"]));
    let running = start(here, "vm.toml");
    assert_eq!(
        ask(here, "status", "vm.toml").ok().json()["state"],
        "running"
    );
    until(here, "vm.toml", ("ledger", 20));
    assert_eq!(ask(here, "pause", "vm.toml").ok().json()["state"], "paused");
    let said = events(here, "vm.toml", "ledger").len();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(events(here, "vm.toml", "ledger").len(), said);
    assert_eq!(
        ask(here, "status", "vm.toml").ok().json()["state"],
        "paused"
    );
    assert_eq!(
        ask(here, "resume", "vm.toml").ok().json()["state"],
        "running"
    );
    let after = until(here, "vm.toml", ("ledger", said + 20));
    assert!(
        after
            .iter()
            .all(|said| said["wrong"] == 0 && said["errors"] == 0)
    );
    running.end();
    ask(here, "status", "vm.toml").fails(2);
    diskferry(here, &["check", "a.vhdx"]).ok();
}

#[test]
fn a_machine_that_is_powered_off_ends_and_its_disk_is_closed() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=ledger", &["a.vhdx"]));
    let mut running = start(here, "vm.toml");
    until(here, "vm.toml", ("ledger", 4));
    diskferry(here, &["info", "a.vhdx"]).fails(5);
    ask(here, "power-off", "vm.toml").ok();
    assert_eq!(running.says("summary")["end"], "stopped");
    diskferry(here, &["check", "a.vhdx"]).ok();
}

#[test]
fn a_guest_that_crashes_ends_the_machine_with_the_reason() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe(here, "vm.toml", ("do=crash", &[]));
    let ran = diskferry(here, &["run", "vm.toml"]).fails(1);
    assert!(ran.stderr.contains("crashed"), "{}", ran.stderr);
}

#[test]
fn with_json_every_line_on_stdout_is_json_and_the_console_is_on_stderr() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe(here, "vm.toml", ("do=hello", &[]));
    let text = std::fs::read_to_string(here.join("vm.toml")).unwrap();
    let stdio = text.replace("console.to = \"file:vm.toml.console\"\n", "");
    assert_ne!(stdio, text);
    std::fs::write(here.join("vm.toml"), stdio).unwrap();
    let ran = diskferry(here, &["run", "vm.toml", "--json"]).ok();
    let kinds: Vec<_> = ran
        .json_lines()
        .iter()
        .map(|line| line["type"].clone())
        .collect();
    assert_eq!(kinds, ["running", "summary"]);
    assert!(ran.stderr.contains("\"event\":\"hello\""), "{}", ran.stderr);
    let ran = diskferry(here, &["run", "vm.toml"]).ok();
    assert!(ran.stdout.contains("\"event\":\"hello\""), "{}", ran.stdout);
}

/// What is answered to a request on the control socket: status and body.
fn asked(socket: &Path, request: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    (status, body)
}

#[test]
fn whatever_is_refused_is_answered_by_an_object() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe(here, "vm.toml", ("do=spin every=50M rounds=0", &[]));
    let control = format!("unix:{}", here.join("ctl").display());
    let mut running = Running::start(here, &["run", "vm.toml", "--control", &control]);
    running.says("running");
    let post = |path: &str, kind: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let add = "/v1/machine/disks";
    for (request, status, said) in [
        (
            "GET /v1/nothing HTTP/1.0\r\n\r\n".to_owned(),
            404,
            "Not Found",
        ),
        (
            "GET /v1/machine/reset HTTP/1.0\r\n\r\n".to_owned(),
            405,
            "Method",
        ),
        (post(add, "text/plain", "{}"), 415, "application/json"),
        (post(add, "application/json", "{"), 400, "EOF"),
        (
            post(add, "application/json", r#"{"path":"a","x":1}"#),
            422,
            "unknown field `x`",
        ),
        (
            post(add, "application/json", r#"{"path":"/nowhere.vhdx"}"#),
            500,
            "/nowhere.vhdx",
        ),
    ] {
        let (seen, body) = asked(&here.join("ctl"), &request);
        assert_eq!(seen, status, "{request}: {body}");
        let error = body["error"].as_str().unwrap();
        assert!(error.contains(said), "{request}: {error}");
        assert!(body["exit_code"].as_u64().unwrap() > 0, "{body}");
    }
    running.end();
}
