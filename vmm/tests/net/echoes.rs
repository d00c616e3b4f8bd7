//! Frames through our device, both ways.

use std::process::Command;

use crate::host::{Wired, exchange, expect_sent, inside_with_kvm, made, sizes, socket};

#[test]
fn thousands_of_frames_come_back_whole_and_in_order() {
    if !inside_with_kvm("echoes::thousands_of_frames_come_back_whole_and_in_order") {
        return;
    }
    let tap = made(1500);
    for words in [
        "",
        "events=1",
        "plain=1",
        "merged=0 events=1",
        "plain=1 merged=0 ring=16",
    ] {
        let wired = Wired::new(&tap, &format!("do=net-echo frames=3000 {words}"));
        wired.printed.wait_for("listening", 1);
        exchange(
            &sizes(3000, 1472),
            if words.contains("ring") { 16 } else { 48 },
        );
        let seen = wired.ended("echoed");
        // Whoever takes checksums gets frames that have none yet (5.1.6.4.1), once the tap knows of it.
        let partial = seen["partial"].as_u64().unwrap();
        let taken = if words.contains("plain") {
            0..1
        } else {
            2000..3001
        };
        assert!(taken.contains(&partial), "{words}: {seen}");
        assert_eq!(seen["unnumbered"], 0, "5.1.6.4.1: {words}");
        assert_eq!(seen["frames"], 3000);
        assert_eq!(wired.traffic.from_guest().frames, 3000);
        assert_eq!(wired.traffic.from_guest().dropped, 0);
        assert_eq!(wired.traffic.to_guest().dropped, 0);
    }
}

#[test]
fn large_frames_are_spread_over_buffers_and_fragments_pass() {
    if !inside_with_kvm("echoes::large_frames_are_spread_over_buffers_and_fragments_pass") {
        return;
    }
    let tap = made(9000);
    for words in [
        "",
        "events=1 buffer=512 ring=256",
        "plain=1 merged=0 buffer=9216",
    ] {
        let wired = Wired::new(&tap, &format!("do=net-echo frames=1200 {words}"));
        wired.printed.wait_for("listening", 1);
        exchange(&sizes(1200, 8972), 16);
        let seen = wired.ended("echoed");
        assert_eq!(seen["longest"], 9014, "{words}: {seen}");
        let spread = seen["spread"].as_u64().unwrap();
        assert_eq!(spread > 600, !words.contains("merged=0"), "{words}: {seen}");
    }
    // Datagrams of four frames each; the host puts them together again.
    let wired = Wired::new(&tap, "do=net-echo frames=400");
    wired.printed.wait_for("listening", 1);
    exchange(&[30_000; 100], 2);
    assert_eq!(wired.ended("echoed")["frames"], 400);
}

#[test]
fn a_guest_sends_with_and_without_the_hosts_help() {
    if !inside_with_kvm("echoes::a_guest_sends_with_and_without_the_hosts_help") {
        return;
    }
    let tap = made(1500);
    // The last one leaves it to the host to cut its datagrams (HOST_UFO, 5.1.6.2).
    for (words, size) in [("", 1400), ("plain=1", 1472), ("events=1", 16_000)] {
        let line = format!("do=net-send frames=100 size={size} {words}");
        let wired = Wired::new(&tap, &line);
        wired.printed.wait_for("listening", 1);
        expect_sent(100, size);
        assert_eq!(wired.ended("sent")["frames"], 100);
        assert_eq!(wired.traffic.from_guest().dropped, 0, "{words}");
    }
}

/// Sends a segment of TCP of 30 frames' length by a raw socket, as the host's own TCP would.
const LONG_SEGMENT: &str = r#"
import socket, struct
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
raw.bind(("tap0", 0x0800))
data = bytes(i % 251 for i in range(30000))
ether = bytes.fromhex("02df00000001020000000002") + b"\x08\x00"
ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40 + len(data), 1, 0, 64, 6, 0,
    socket.inet_aton("10.9.0.1"), socket.inet_aton("10.9.0.2"))
tcp = struct.pack(">HHIIBBHHH", 1000, 7, 1, 1, 0x50, 0x10, 1000, 0, 0)
header = struct.pack("<BBHHHH", 1, 1, 54, 1460, 34, 16)
raw.send(header + ether + ip + tcp + data)
"#;

#[test]
fn a_long_segment_arrives_in_one_piece_only_where_that_was_agreed_upon() {
    if !inside_with_kvm(
        "echoes::a_long_segment_arrives_in_one_piece_only_where_that_was_agreed_upon",
    ) {
        return;
    }
    let tap = made(1500);
    for (words, long, longest) in [("", 1, 30_054), ("plain=1", 0, 1514)] {
        let wired = Wired::new(&tap, &format!("do=net-echo frames=1 {words}"));
        wired.printed.wait_for("listening", 1);
        let sent = Command::new("/usr/bin/python3")
            .args(["-c", LONG_SEGMENT])
            .status();
        assert!(sent.unwrap().success());
        exchange(&[100], 1);
        let seen = wired.ended("echoed");
        assert_eq!(
            (&seen["long"], &seen["longest"]),
            (&long.into(), &longest.into()),
            "{words}: {seen}"
        );
    }
}

#[test]
fn a_pause_loses_no_frame_that_was_accepted() {
    if !inside_with_kvm("echoes::a_pause_loses_no_frame_that_was_accepted") {
        return;
    }
    let tap = made(1500);
    let wired = Wired::new(&tap, "do=net-echo frames=4000 events=1");
    wired.printed.wait_for("listening", 1);
    let mut pauses = 0;
    std::thread::scope(|scope| {
        let exchanging = scope.spawn(|| exchange(&sizes(4000, 1472), 32));
        while !exchanging.is_finished() {
            wired.machine.pause();
            let queues = wired.machine.stop_devices();
            assert_eq!(queues[0].len(), 2);
            // The guest's memory is nobody's now: what comes stays in the tap.
            let moved = wired.traffic.to_guest();
            std::thread::sleep(std::time::Duration::from_millis(2));
            assert_eq!(wired.traffic.to_guest(), moved);
            wired.machine.resume_devices();
            wired.machine.resume();
            pauses += 1;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    assert!(pauses > 3, "{pauses}");
    assert_eq!(wired.ended("echoed")["frames"], 4000);
}

#[test]
fn a_guest_that_does_not_listen_costs_the_host_nothing_but_the_taps_queue() {
    if !inside_with_kvm(
        "echoes::a_guest_that_does_not_listen_costs_the_host_nothing_but_the_taps_queue",
    ) {
        return;
    }
    let tap = made(1500);
    let wired = Wired::new(&tap, "do=net-link changes=1 ring=4");
    wired.printed.wait_for("link", 1);
    let socket = socket();
    for _ in 0..5000 {
        socket.send(&[1; 1000]).unwrap();
    }
    // It stops at once, whatever waits for it.
    wired.machine.pause();
    let states = wired.machine.stop_devices();
    assert!(states[0][0].1.next_used <= 4, "{states:?}");
    wired.machine.stop();
}
