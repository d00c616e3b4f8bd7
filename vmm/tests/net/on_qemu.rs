//! The guest's driver on QEMU's device: what our device is tested with is itself tested on another one.

use serde_json::Value;
use tempfile::TempDir;

use crate::host::{address, exchange, expect_sent, inside, ip, sizes};
use crate::qemu::{Qemu, Running};

fn wired(words: &str, mtu: u16, folder: &TempDir) -> Running {
    ip("tuntap add dev tap0 mode tap vnet_hdr");
    ip(&format!("link set tap0 up mtu {mtu}"));
    address();
    let device = format!("virtio-net-pci,netdev=net,mac=02:df:00:00:00:01,romfile=,host_mtu={mtu}");
    let machine = Qemu::new("q35").with(&[
        "-netdev",
        "tap,id=net,ifname=tap0,script=no,downscript=no,vhost=off",
        "-device",
        &device,
    ]);
    machine.start(words, &folder.path().join("monitor"))
}

#[track_caller]
fn next(machine: &Running, event: &str) -> Value {
    let said = machine.next();
    assert_eq!(said["event"], event, "{said}");
    said
}

fn ended(machine: Running) {
    assert_eq!(machine.ends(), 0);
    ip("link delete tap0");
}

#[test]
fn frames_come_back_from_qemus_device_as_they_do_from_ours() {
    if !inside("on_qemu::frames_come_back_from_qemus_device_as_they_do_from_ours") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for words in ["", "plain=1 merged=0", "events=1 buffer=512 ring=256"] {
        let line = format!("do=net do=net-echo frames=600 {words}");
        let machine = wired(&line, 1500, &folder);
        let net = next(&machine, "net");
        assert_eq!(
            (&net["mac"], &net["mtu"]),
            (&"02df00000001".into(), &1500.into())
        );
        next(&machine, "listening");
        exchange(&sizes(600, 1472), 16);
        let seen = next(&machine, "echoed");
        let partial = if words.contains("plain") { 0 } else { 600 };
        assert_eq!(seen["partial"], partial, "{words}: {seen}");
        let spread = seen["spread"].as_u64() > Some(0);
        assert_eq!(spread, words.contains("buffer"), "{words}: {seen}");
        ended(machine);
    }
}

#[test]
fn what_the_guest_sends_by_qemus_device_arrives() {
    if !inside("on_qemu::what_the_guest_sends_by_qemus_device_arrives") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (words, size) in [("", 1400), ("plain=1", 1472), ("events=1", 16_000)] {
        let line = format!("do=net-send frames=60 size={size} {words}");
        let machine = wired(&line, 1500, &folder);
        next(&machine, "listening");
        expect_sent(60, size);
        next(&machine, "sent");
        ended(machine);
    }
}
