//! The freestanding guest under QEMU: what our machine is tested with is itself tested on another one.

#[path = "guest/disks.rs"]
mod disks;
#[path = "guest/ledger.rs"]
mod ledger;
#[path = "guest/qemu.rs"]
mod qemu;

use qemu::Qemu;

#[test]
fn the_guest_says_hello_on_both_kinds_of_machine() {
    for kind in ["pc", "q35"] {
        let ran = Qemu::new(kind).run("do=hello").good();
        let hello = ran.event("hello");
        assert_eq!(hello["vcpus"], 1, "{kind}");
        let memory = hello["memory"].as_u64().expect("a number");
        let most = 256 << 20;
        assert!(
            (most - (1 << 20)..=most).contains(&memory),
            "{kind}: {memory}"
        );
    }
}

#[test]
fn the_guest_runs_on_a_processor_without_pages_of_1_gib() {
    let ran = Qemu::new("q35").with(&["-cpu", "qemu64"]).run("do=hello");
    assert_eq!(ran.good().event("hello")["vcpu"], 0);
}

#[test]
fn every_processor_runs_and_is_counted_once() {
    let machine = Qemu::new("pc").with(&["-smp", "5"]);
    let ran = machine.run("do=hello do=touch points=7").good();
    for name in ["hello", "touch"] {
        let mut seen: Vec<u64> = ran
            .all(name)
            .filter_map(|event| event["vcpu"].as_u64())
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4], "{name}");
    }
    let touched = ran
        .all("touch")
        .filter_map(|event| event["touched"].as_u64());
    assert_eq!(touched.sum::<u64>(), 14);
}

#[test]
fn a_word_that_is_not_understood_ends_the_machine() {
    let ran = Qemu::new("q35").run("do=hello do=dance");
    assert_eq!(ran.code, 101);
    assert_eq!(ran.event("panic")["said"], "do=dance is not known");
}

#[test]
fn memory_is_touched_at_its_ends() {
    let ran = Qemu::new("q35").run("do=touch points=5").good();
    let touch = ran.event("touch");
    // Two stretches: below the program and above it.
    assert_eq!(
        (&touch["touched"], &touch["wrong"]),
        (&10.into(), &0.into())
    );
    let highest = touch["highest"].as_u64().expect("a number");
    assert!((255 << 20..=256 << 20).contains(&highest), "{highest}");
}

#[test]
fn an_entropy_device_is_found_and_gives_other_bytes_each_time() {
    for kind in ["pc", "q35"] {
        let machine = Qemu::new(kind).with(&["-device", "virtio-rng-pci"]);
        let ran = machine.run("bytes=100 do=rng do=pci do=rng").good();
        let devices = ran.events.iter().filter(|event| event["virtio"] == 4);
        assert_eq!(devices.count(), 1, "{kind}");
        let bytes: Vec<&str> = ran
            .all("rng")
            .filter_map(|rng| rng["bytes"].as_str())
            .collect();
        assert_eq!(bytes.len(), 2, "{kind}");
        assert_eq!(bytes[0].len(), 200, "{kind}");
        assert_ne!(bytes[0], bytes[1], "{kind}");
    }
}

#[test]
fn a_count_goes_on_and_says_how_long_it_was_kept_from_it() {
    let ran = Qemu::new("q35").run("do=spin every=1M rounds=3").good();
    let counts: Vec<u64> = ran
        .all("spin")
        .filter_map(|spin| spin["count"].as_u64())
        .collect();
    assert_eq!(counts.len(), 3);
    assert!(counts.is_sorted() && counts[0] > 0, "{counts:?}");
    assert!(ran.all("spin").all(|spin| spin["gap"].as_u64() > Some(0)));
}

#[test]
fn a_guest_that_fails_says_where() {
    let ran = Qemu::new("pc").run("do=crash how=panic");
    assert_eq!(ran.code, 101);
    assert_eq!(ran.event("panic")["said"], "as the command line asked");
    assert_eq!(ran.event("panic")["vcpu"], 0);
}

#[test]
fn a_guest_that_crashes_shuts_the_machine_down() {
    let ran = Qemu::new("q35").run_until_shutdown("do=hello do=crash do=hello");
    let events: Vec<&str> = ran
        .iter()
        .filter_map(|event| event["event"].as_str())
        .collect();
    assert_eq!(events, ["hello", "crash"]);
}
