//! A function that is saved, and another one that goes on as it.

use proptest::prelude::*;

use super::*;
use crate::snapshot::{Function as Saved, Position};

/// The state of the function, which is stopped for it, by the bytes that it is kept in.
fn saved(machine: &Machine) -> Saved {
    let mut function = machine.function.lock().unwrap();
    let _stopped = function.try_stop().expect("a device that stops at once");
    function.save(1).expect("it stands still")
}

/// Another function in this state.
fn restored(saved: &Saved) -> Machine {
    let machine = Machine::new();
    let restored = machine.function.lock().unwrap().restore(saved);
    restored.expect("a state that a driver has left");
    machine
}

const ENTRY: u64 = TABLE;

#[test]
fn a_function_goes_on_with_its_queues_and_a_kick() {
    let machine = Machine::new();
    machine.go_live();
    let mut state = saved(&machine);
    assert!(state.transport.queues[0].position.is_some());
    state.transport.queues[0].position = Some(Position {
        next_available: 0xFFFF,
        next_used: 7,
    });
    let machine = restored(&state);
    assert_eq!(
        machine.seen.lock().unwrap().live,
        None,
        "not before it shall go on"
    );
    assert!(machine.seen.lock().unwrap().rings.is_empty());
    assert_eq!(saved(&machine), state);
    machine.function.lock().unwrap().go_on();
    {
        let seen = machine.seen.lock().unwrap();
        assert_eq!(seen.live, Some((1 << 32, vec![0])));
        assert_eq!(seen.rings, [0]);
        assert_eq!(seen.doorbells, Some(AT + DOORBELLS));
    }
    let stopped = machine.function.lock().unwrap().try_stop().unwrap();
    assert_eq!(
        (stopped[0].1.next_available, stopped[0].1.next_used),
        (0xFFFF, 7)
    );
}

#[test]
fn what_is_pending_behind_a_mask_is_signalled_again_and_delivered_later() {
    let machine = Machine::new();
    machine.write(ENTRY, &0xFEE0_0000_u64.to_le_bytes());
    machine.write(ENTRY + 8, &0x41_u32.to_le_bytes());
    machine.write(0x16, &1_u16.to_le_bytes());
    machine.write(0x1A, &0_u16.to_le_bytes());
    let control = machine.capability(0x11, None) + 2;
    machine.set_config(control, &0x8000_u16.to_le_bytes());
    machine.seen.lock().unwrap().pending.insert(0);
    let state = saved(&machine);
    assert!(state.transport.queues[1].signalled);
    assert!(!state.transport.queues[0].signalled && !state.transport.config_signalled);
    let machine = restored(&state);
    assert!(machine.seen.lock().unwrap().signals.is_empty());
    machine
        .function
        .lock()
        .unwrap()
        .signal_again(&state.transport);
    {
        let seen = machine.seen.lock().unwrap();
        assert_eq!(seen.signals, [Source::Queue(1)]);
        assert_eq!(seen.connected, BTreeMap::from([(Source::Queue(1), 0)]));
        assert!(seen.vectors.is_empty(), "it is masked still");
    }
    machine.write(ENTRY + 12, &0_u32.to_le_bytes());
    assert_eq!(machine.seen.lock().unwrap().vectors[&0].data, 0x41);
}

#[test]
fn a_vector_that_delivers_does_so_in_the_other_machine() {
    let machine = Machine::new();
    machine.write(ENTRY + 16, &0xFEE0_0000_u64.to_le_bytes());
    machine.write(ENTRY + 24, &0x42_u64.to_le_bytes());
    let control = machine.capability(0x11, None) + 2;
    machine.set_config(control, &0x8000_u16.to_le_bytes());
    let machine = restored(&saved(&machine));
    let seen = machine.seen.lock().unwrap();
    assert_eq!(seen.vectors.keys().collect::<Vec<_>>(), [&1]);
    assert_eq!(seen.vectors[&1].data, 0x42);
}

#[test]
fn an_alarm_that_nobody_has_seen_is_in_the_state() {
    let machine = Machine::new();
    machine.go_live();
    let alarm = machine.seen.lock().unwrap().alarm.clone();
    let _stopped = machine.function.lock().unwrap().try_stop();
    alarm.expect("a device at work").raise();
    let state = saved(&machine);
    assert_eq!(state.transport.status, 79, "2.1.2: DEVICE_NEEDS_RESET");
    let machine = restored(&state);
    machine.function.lock().unwrap().go_on();
    assert_eq!(machine.seen.lock().unwrap().live, None);
    assert_eq!(machine.read(0x14), [79]);
}

#[test]
fn a_function_that_a_guest_has_moved_is_where_it_was() {
    let machine = Machine::new();
    let there = PCI_WINDOW.start + 0x50_0000;
    machine.set_config(0x10, &there.to_le_bytes());
    let state = saved(&machine);
    let machine = restored(&state);
    assert_eq!(
        machine.seen.lock().unwrap().doorbells,
        Some(there + DOORBELLS)
    );
    assert_eq!(machine.function.lock().unwrap().decoded()[0].1.start, there);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_guest_did_is_restored(
        live in any::<bool>(),
        accesses in prop::collection::vec(access(), 0..300),
    ) {
        let machine = Machine::new();
        if live {
            machine.go_live();
        }
        for access in accesses {
            access.make(&machine);
        }
        let state = saved(&machine);
        let again = saved(&restored(&state));
        prop_assert_eq!(again, state);
    }
}
