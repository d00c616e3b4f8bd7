//! The freestanding guest under QEMU: what our machine is tested with is itself tested on another one.

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
fn a_word_that_is_not_understood_ends_the_machine() {
    let ran = Qemu::new("q35").run("do=hello do=dance");
    assert_eq!(ran.code, 101);
    assert_eq!(ran.event("panic")["said"], "do=dance is not known");
}
