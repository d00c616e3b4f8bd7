//! Functions that are put in, stopped, and taken off the bus.

use super::*;

#[test]
fn a_function_that_is_off_the_bus_is_not_there_for_whoever_comes_late() {
    let machine = Machine::new();
    machine.go_live();
    machine.seen.lock().unwrap().slow = 2;
    machine.function.lock().unwrap().unplug();
    assert_eq!(machine.seen.lock().unwrap().doorbells, None);
    // The bus of this test still knows it.
    assert_eq!(machine.config::<4>(0), [0xFF; 4]);
    assert_eq!(
        machine.read(0x14),
        [0],
        "the end of a reset, for whom it waits"
    );
    machine.write(0x14, &[0]);
    machine.set_config(4, &[0]);
    let mut function = machine.function.lock().unwrap();
    assert!(function.try_stop().is_none());
    assert_eq!(function.try_stop().map(|queues| queues.len()), Some(1));
    assert_eq!(machine.seen.lock().unwrap().resets, 1);
    machine.seen.lock().unwrap().live = None;
    function.go_on();
    assert_eq!(machine.seen.lock().unwrap().live, None, "it stays stopped");
}

#[test]
fn a_device_that_needs_a_reset_stops_too_and_does_not_go_on() {
    // 2.1.2: one of its queues is broken, the others may still be served.
    let machine = Machine::new();
    machine.go_live();
    let alarm = machine.seen.lock().unwrap().alarm.clone().unwrap();
    alarm.raise();
    assert_eq!(machine.read(0x14), [79]);
    let mut function = machine.function.lock().unwrap();
    assert!(!function.stands_still());
    assert_eq!(function.try_stop(), Some(Vec::new()));
    assert!(function.stands_still());
    machine.seen.lock().unwrap().live = None;
    function.go_on();
    assert!(function.stands_still());
    drop(function);
    assert_eq!(machine.seen.lock().unwrap().live, None);
    machine.write(0x14, &[0]);
    machine.go_live();
    assert!(
        machine.seen.lock().unwrap().live.is_some(),
        "after a reset it works again"
    );
}

#[test]
fn a_device_that_is_put_in_later_is_not_decoded_until_the_guest_says_so() {
    // PCI 3.0, 6.2.2.
    let machine = Machine::put_in(false);
    assert_eq!(machine.read(0x12), [0]);
    assert_eq!(machine.seen.lock().unwrap().doorbells, None);
    machine.set_config(4, &[6]);
    assert_eq!(machine.read(0x12), [2]);
    assert_eq!(machine.seen.lock().unwrap().doorbells, Some(AT + DOORBELLS));
}
