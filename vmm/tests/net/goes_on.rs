//! A network device of a machine that is saved, and made anew.

use std::sync::Arc;

use vmm::virtio::VirtioDevice;
use vmm::virtio::net::{Net, Tap};
use vmm::{ErrorKind, Exit, Memory};

use crate::host::{MAC, Wired, exchange, inside_with_kvm, made, sizes};
use crate::kept::{Kept, anew, keep};
use crate::ran::{Printed, config};

const MEMORY: u64 = 64 << 20;

#[test]
fn frames_pass_as_before_in_a_machine_that_was_saved() {
    if !inside_with_kvm("goes_on::frames_pass_as_before_in_a_machine_that_was_saved") {
        return;
    }
    let tap = made(1500);
    for words in ["", "events=1", "plain=1 merged=0"] {
        let words = format!("do=net-echo frames=1000 {words}");
        let Wired {
            machine, printed, ..
        } = Wired::new(&tap, &words);
        printed.wait_for("listening", 1);
        exchange(&sizes(500, 1472), 16);
        let kept = keep(machine);
        let device: Box<dyn VirtioDevice> = Box::new(Net::new(Arc::clone(&tap), MAC));
        let config = config(1, MEMORY, &words);
        let mut machine = anew(&config, kept, &printed, vec![device]).unwrap();
        machine.start().unwrap();
        exchange(&sizes(500, 1472), 16);
        assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
        assert_eq!(printed.events("echoed")[0]["frames"], 1000, "{words}");
    }
}

#[test]
fn a_device_with_another_address_or_mtu_is_refused() {
    if !inside_with_kvm("goes_on::a_device_with_another_address_or_mtu_is_refused") {
        return;
    }
    let tap = made(1500);
    let wired = Wired::new(&tap, "do=net-echo frames=1");
    wired.printed.wait_for("listening", 1);
    let bytes = keep(wired.machine).bytes;
    drop(tap);
    let tap = |mtu| Tap::open("tap0", Some(mtu)).expect("a tap");
    let refused = |tap: Tap, mac: [u8; 6]| {
        let device: Box<dyn VirtioDevice> = Box::new(Net::new(Arc::new(tap), mac));
        let config = config(1, MEMORY, "");
        let memory = Memory::new(MEMORY, false).unwrap();
        let bytes = bytes.clone();
        let kept = Kept { bytes, memory };
        let made = anew(&config, kept, &Printed::default(), vec![device]);
        let error = made.expect_err("a refusal");
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
        error.to_string()
    };
    let why = refused(tap(1500), [2, 0, 0, 0, 0, 9]);
    assert!(why.contains("02:00:00:00:00:09"), "{why}");
    assert!(why.contains("was 02:df:00:00:00:01"), "{why}");
    let why = refused(tap(1400), MAC);
    assert!(why.contains("1400"), "5.1.4.1: {why}");
}
