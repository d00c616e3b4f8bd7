//! Networks of machines that `run` runs, in a network namespace of their own.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::guest::{describe, events, without_kvm};
use crate::run::{Ran, diskferry, folder, program};

fn without_taps() -> bool {
    let without = std::env::var_os("DISKFERRY_NO_TAP").is_some_and(|value| value == "1");
    if without {
        println!("skipped: DISKFERRY_NO_TAP=1");
    }
    without || without_kvm()
}

/// Describes a machine with these lines about its networks.
fn describe_with(here: &Path, line: &str, networks: &str) {
    describe(here, "vm.toml", (line, &[]));
    let text = fs::read_to_string(here.join("vm.toml")).unwrap();
    fs::write(here.join("vm.toml"), format!("{text}{networks}")).unwrap();
}

/// Runs a machine to its end in a network namespace of its own, where `first` is done before.
fn run_inside(here: &Path, first: &str) -> Ran {
    let script = format!(
        "set -e; PATH=$PATH:/usr/sbin:/sbin; {first}; exec '{}' run vm.toml --json \"$@\"",
        env!("CARGO_BIN_EXE_diskferry")
    );
    let words = [
        "--user",
        "--map-root-user",
        "--net",
        "--",
        "sh",
        "-c",
        &script,
    ];
    program(here, "unshare", &words)
}

fn running(ran: &Ran) -> Value {
    ran.json_lines()[0].clone()
}

#[test]
fn a_machine_has_the_networks_that_are_described_behind_its_disks() {
    if without_taps() {
        return;
    }
    let here = folder();
    let here = here.path();
    let networks = "[[network]]\ntap = 'tap0'\nmac = '02:00:00:00:00:07'\nmtu = 4000\n\
                    [[network]]\ntap = 'tap1'\n";
    describe_with(here, "do=pci do=net do=net card=1", networks);
    let ran = run_inside(
        here,
        "ip tuntap add dev tap1 mode tap; ip link set tap1 mtu 2000",
    )
    .ok();
    let kinds: Vec<_> = events(here, "vm.toml", "pci")
        .iter()
        .filter_map(|function| function["virtio"].as_u64())
        .collect();
    assert_eq!(kinds, [1, 1, 4]);
    let [first, second] = &events(here, "vm.toml", "net")[..] else {
        panic!("{}", ran.stdout);
    };
    // What is made is switched on; what is there is left as it is.
    assert_eq!(
        (&first["mac"], &first["mtu"]),
        (&"020000000007".into(), &4000.into())
    );
    assert_eq!((&first["up"], &second["up"]), (&1.into(), &0.into()));
    assert_eq!(second["mtu"], 2000);
    let said = running(&ran)["networks"].clone();
    assert_eq!(said[0]["mac"], "02:00:00:00:00:07");
    let other = said[1]["mac"].as_str().unwrap().replace(':', "");
    assert_eq!(second["mac"], other);
}

#[test]
fn an_address_that_was_not_given_is_the_same_each_time() {
    if without_taps() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe_with(here, "do=hello", "[[network]]\ntap = 'tap0'\n");
    let mac = || running(&run_inside(here, "true").ok())["networks"][0]["mac"].clone();
    let first = mac();
    assert_eq!(first, mac());
}

#[test]
fn an_address_stays_through_a_snapshot_and_another_one_is_refused() {
    if without_taps() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe_with(here, "do=spin every=10M", "[[network]]\ntap = 'tap0'\n");
    let program = env!("CARGO_BIN_EXE_diskferry");
    let first = format!(
        "'{program}' run vm.toml --json >first & \
         until grep -q spin vm.toml.console; do sleep 0.01; done; \
         '{program}' machine snapshot vm.toml --into asleep --stop >taken; wait $!; \
         cp asleep/vm.toml other.toml; \
         '{program}' run other.toml --restore asleep --json >second & \
         until grep -q running second; do sleep 0.01; done; kill -INT $!; wait $! || true; \
         sed -i \"/tap0/a mac = '02:00:00:00:00:09'\" vm.toml; set -- --restore asleep"
    );
    let refused = run_inside(here, &first).fails(6);
    let mac = |file: &str| {
        let text = fs::read_to_string(here.join(file)).unwrap();
        let running = text.lines().find(|line| line.contains("running"));
        let running: Value = serde_json::from_str(running.unwrap()).unwrap();
        running["networks"][0]["mac"].as_str().unwrap().to_owned()
    };
    assert_eq!(mac("first"), mac("second"));
    assert!(refused.stderr.contains(&mac("first")), "{}", refused.stderr);
}

#[test]
fn a_tap_that_cannot_be_had_ends_the_run_with_what_to_do() {
    if without_taps() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe_with(here, "do=hello", "[[network]]\ntap = 'lo'\n");
    let ran = run_inside(here, "true").fails(1);
    assert!(ran.stderr.contains("no tap"), "{}", ran.stderr);
    let far = "[[network]]\ntap = 'tap0'\nmtu = 9000\n";
    describe_with(here, "do=hello", far);
    let ran = run_inside(here, "ip tuntap add dev tap0 mode tap").fails(2);
    assert!(ran.stderr.contains("mtu 9000"), "{}", ran.stderr);
    describe_with(here, "do=hello", "[[network]]\ntap = 'tap0'\nmac = 'x'\n");
    diskferry(here, &["run", "vm.toml"]).fails(2);
}
