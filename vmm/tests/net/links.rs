//! Taps that are there, that go down, and that go away.

use std::process::Command;
use std::sync::Arc;

use vmm::ErrorKind;
use vmm::virtio::net::Tap;

use crate::host::{Wired, address, exchange, inside, inside_with_kvm, ip, made};

#[test]
fn a_device_is_described_as_it_is() {
    if !inside_with_kvm("links::a_device_is_described_as_it_is") {
        return;
    }
    let tap = made(4000);
    let net = Wired::new(&tap, "do=net").ended("net");
    assert_eq!(net["mac"], "02df00000001");
    assert_eq!((&net["up"], &net["mtu"]), (&1.into(), &4000.into()));
}

#[test]
fn a_link_that_goes_down_and_up_is_seen_and_works_again() {
    if !inside_with_kvm("links::a_link_that_goes_down_and_up_is_seen_and_works_again") {
        return;
    }
    let tap = made(1500);
    let words = "do=net-link changes=2 do=net-echo frames=10";
    let wired = Wired::new(&tap, words);
    wired.printed.wait_for("link", 1);
    ip("link set tap0 down");
    wired.printed.wait_for("link", 2);
    ip("link set tap0 up");
    wired.printed.wait_for("listening", 1);
    let ups: Vec<_> = wired.printed.events("link");
    let ups: Vec<_> = ups
        .iter()
        .map(|link| link["up"].as_u64().unwrap())
        .collect();
    assert_eq!(ups, [1, 0, 1]);
    // The interface forgot the neighbour when it went down.
    ip("neigh replace 10.9.0.2 lladdr 02:df:00:00:00:01 dev tap0 nud permanent");
    exchange(&[500; 10], 4);
    wired.ended("echoed");
}

#[test]
fn a_tap_that_is_removed_takes_the_link_down_and_the_machine_runs_on() {
    if !inside_with_kvm("links::a_tap_that_is_removed_takes_the_link_down_and_the_machine_runs_on")
    {
        return;
    }
    let tap = made(1500);
    let wired = Wired::new(&tap, "do=net-link changes=1 do=hello");
    wired.printed.wait_for("link", 1);
    ip("link delete tap0");
    assert_eq!(wired.ended("hello")["vcpus"], 1);
    assert_eq!(wired.printed.events("link")[1]["up"], 0);
    assert!(!tap.is_up());
}

#[test]
fn a_tap_that_is_there_is_opened_and_stays() {
    if !inside_with_kvm("links::a_tap_that_is_there_is_opened_and_stays") {
        return;
    }
    ip("tuntap add dev tap0 mode tap");
    ip("link set tap0 up mtu 3000");
    address();
    let tap = Arc::new(Tap::open("tap0", None).unwrap());
    let wired = Wired::new(&tap, "do=net do=net-echo frames=50");
    wired.printed.wait_for("listening", 1);
    assert_eq!(wired.printed.events("net")[0]["mtu"], 3000);
    exchange(&[2000; 50], 8);
    wired.ended("echoed");
    drop((wired, tap));
    ip("link show tap0");
}

#[test]
fn what_cannot_be_opened_is_refused_with_what_to_do() {
    if !inside("links::what_cannot_be_opened_is_refused_with_what_to_do") {
        return;
    }
    let refused = |name: &str, mtu| Tap::open(name, mtu).unwrap_err().to_string();
    let tap = Tap::open("tap0", None).unwrap();
    assert!(refused("tap0", None).contains("another program has it open"));
    drop(tap);
    // It was made by us, and is gone with us.
    let gone = Command::new("ip").args(["link", "show", "tap0"]).output();
    assert!(!gone.unwrap().status.success());
    assert!(refused("lo", None).contains("no tap"));
    ip("tuntap add dev tap1 mode tap");
    let error = Tap::open("tap1", Some(9000)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(
        error.to_string().contains("ip link set tap1 mtu 9000"),
        "{error}"
    );
}
