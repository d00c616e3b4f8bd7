//! What becomes of the buffers of well-behaved drivers and of others.

use proptest::prelude::*;

use super::super::header::OFFERED;
use super::super::ring_tests::{DATA, MEMORY, NEXT, Ring, SINS, SIZE, WRITE, memory};
use super::*;

const MERGED: u64 = OFFERED;
const WHOLE: u64 = OFFERED & !feature::MRG_RXBUF;

fn receiving(features: u64) -> (Ring, Receive) {
    let ring = Ring::new(&memory(), 0);
    let receive = Receive::new(ring.open(features), features);
    (ring, receive)
}

fn sending() -> (Ring, Transmit) {
    let ring = Ring::new(&memory(), 0);
    let transmit = Transmit::new(ring.open(OFFERED), OFFERED);
    (ring, transmit)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[test]
fn a_frame_fills_its_buffers_one_after_the_other_and_they_show_together() {
    // 5.1.6.4.1, with the header and the buffers cut at odd places (2.7.4.2).
    let (mut ring, mut receive) = receiving(MERGED);
    ring.chain(&[(DATA, 5), (DATA + 0x100, 10)], WRITE);
    ring.chain(&[(DATA + 0x200, 20)], WRITE);
    ring.chain(&[(DATA + 0x300, 100)], WRITE);
    assert_eq!(receive.gather(40).unwrap(), Room::Enough);
    assert_eq!(receive.room(), 15 + 20 + 100 - HEADER);
    let frame = pattern(40);
    assert!(receive.copy(Header::default(), &frame).unwrap());
    assert_eq!(ring.answers(), [(0, 15), (2, 20), (3, 17)]);
    let mut all = ring.bytes(DATA, 5);
    all.extend(ring.bytes(DATA + 0x100, 10));
    all.extend(ring.bytes(DATA + 0x200, 20));
    all.extend(ring.bytes(DATA + 0x300, 17));
    assert_eq!(all[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    assert_eq!(all[HEADER..], frame);
    assert_eq!(ring.bytes(DATA + 0x311, 8), [0; 8]);
}

#[test]
fn a_frame_is_in_one_buffer_where_they_are_not_merged() {
    let (mut ring, mut receive) = receiving(WHOLE);
    ring.chain(&[(DATA, 100)], WRITE);
    ring.chain(&[(DATA + 0x100, 100)], WRITE);
    assert_eq!(receive.gather(89).unwrap(), Room::Full);
    assert_eq!(receive.gather(88).unwrap(), Room::Enough);
    assert!(receive.copy(Header::default(), &pattern(88)).unwrap());
    assert_eq!(ring.answers(), [(0, 100)]);
    // 5.1.6.4.1: the number of buffers is 1.
    assert_eq!(ring.bytes(DATA + 10, 2), [1, 0]);
}

#[test]
fn buffers_that_no_frame_went_to_are_the_drivers_again() {
    let (mut ring, mut receive) = receiving(MERGED);
    for at in 0..4 {
        ring.chain(&[(DATA + at * 0x100, 64)], WRITE);
    }
    assert_eq!(receive.gather(1000).unwrap(), Room::Less);
    assert!(receive.copy(Header::default(), &pattern(60)).unwrap());
    let state = receive.stop();
    assert_eq!((state.next_available, state.next_used), (2, 2));
    assert_eq!(ring.answers().len(), 2);
}

#[test]
fn a_frame_that_the_driver_did_not_agree_to_leaves_its_buffers_for_the_next() {
    let (mut ring, mut receive) = receiving(WHOLE & !feature::GUEST_CSUM);
    ring.chain(&[(DATA, 100)], WRITE);
    receive.gather(60).unwrap();
    let mut unfinished = [0; HEADER];
    unfinished[0] = 1;
    assert!(!receive.deliver(Header::decode(unfinished), 60).unwrap());
    assert!(ring.answers().is_empty());
    assert!(receive.deliver(Header::default(), 60).unwrap());
    assert_eq!(ring.answers(), [(0, 72)]);
}

#[test]
fn what_is_gathered_for_a_frame_is_bounded() {
    let memory = memory();
    let mut ring = Ring::new(&memory, 0);
    let mut receive = Receive::new(ring.open(MERGED), MERGED);
    let table = DATA + 0x1000;
    for index in 0..200_u16 {
        let more = if index < 199 { NEXT } else { 0 };
        let at = table + 16 * u64::from(index);
        ring.write_descriptor(at, (DATA, 1), WRITE | more, index + 1);
    }
    for index in 0..SIZE {
        ring.descriptor(
            index,
            (table, 200 * 16),
            super::super::ring_tests::INDIRECT,
            0,
        );
        ring.offer(index);
    }
    assert_eq!(receive.gather(LONGEST).unwrap(), Room::Full);
    assert_eq!(receive.places().count(), MOST_SEGMENTS - HEADER);
    assert_eq!(receive.stop().next_available, 0);
}

#[test]
fn a_receive_queue_that_breaks_the_rules_is_refused_and_nothing_is_touched() {
    for (sin, commit) in SINS {
        let (mut ring, mut receive) = receiving(MERGED);
        commit(&mut ring, WRITE);
        let before = ring.bytes(0, MEMORY);
        assert!(receive.gather(60).is_err(), "{sin}");
        assert!(receive.gather(60).is_err(), "{sin}, again");
        assert_eq!(receive.stop().next_available, 0, "{sin}");
        assert!(ring.bytes(0, MEMORY) == before, "{sin}");
    }
}

#[test]
fn a_transmit_queue_that_breaks_the_rules_is_refused_and_nothing_is_touched() {
    for (sin, commit) in SINS {
        let (mut ring, mut transmit) = sending();
        commit(&mut ring, 0);
        let before = ring.bytes(0, MEMORY);
        assert!(transmit.next().is_err(), "{sin}");
        assert!(transmit.next().is_err(), "{sin}, again");
        assert_eq!(transmit.stop().next_available, 0, "{sin}");
        assert!(ring.bytes(0, MEMORY) == before, "{sin}");
    }
}

#[test]
fn a_frame_to_be_sent_is_what_is_behind_its_header() {
    let (mut ring, mut transmit) = sending();
    // 5.1.6.2, the header alone, in part of a buffer, and in two.
    for pieces in [
        &[(DATA, 12), (DATA + 0x100, 60)][..],
        &[(DATA, 72)],
        &[(DATA, 7), (DATA + 0x40, 65)],
    ] {
        let head = ring.chain(pieces, 0);
        assert_eq!(
            transmit.next().unwrap(),
            Some(Outgoing::Send(Header::default()))
        );
        let len: u32 = transmit.places().map(|place| place.len).sum();
        assert_eq!(len, 60);
        transmit.done().unwrap();
        assert_eq!(ring.answers(), [(u32::from(head), 0)]);
    }
    assert_eq!(transmit.next().unwrap(), None);
}

#[test]
fn frames_that_cannot_be_are_dropped_and_the_queue_goes_on() {
    let (mut ring, mut transmit) = sending();
    ring.chain(&[(DATA, 12 + 13)], 0);
    assert_eq!(transmit.next().unwrap(), Some(Outgoing::Drop));
    transmit.done().unwrap();
    ring.chain(&[(DATA, 12 + LONGEST as u32 + 1)], 0);
    assert_eq!(transmit.next().unwrap(), Some(Outgoing::Drop));
    transmit.done().unwrap();
    ring.memory
        .write_slice(&[0, 9], GuestAddress(DATA))
        .unwrap();
    ring.chain(&[(DATA, 100)], 0);
    assert_eq!(transmit.next().unwrap(), Some(Outgoing::Drop));
    transmit.done().unwrap();
    assert_eq!(ring.answers(), [(0, 0), (1, 0), (2, 0)]);
}

#[test]
fn a_frame_that_was_not_sent_is_the_drivers_again() {
    let (mut ring, mut transmit) = sending();
    ring.chain(&[(DATA, 100)], 0);
    assert!(transmit.next().unwrap().is_some());
    let state = transmit.stop();
    assert_eq!((state.next_available, state.next_used), (0, 0));
}

/// Descriptors and entries that are near to good ones, so that most of them are read far.
fn descriptors() -> impl Strategy<Value = Vec<(u64, u32, u16, u16)>> {
    let address = prop_oneof![DATA..DATA + 0x8000, 0..MEMORY as u64 + 64, any::<u64>()];
    let len = prop_oneof![0_u32..3000, any::<u32>()];
    let one = (address, len, 0_u16..8, 0_u16..SIZE + 1);
    prop::collection::vec(one, usize::from(SIZE))
}

proptest! {
    #[test]
    fn whatever_is_in_a_ring_is_served_or_refused(
        table in descriptors(),
        heads in prop::collection::vec(0..SIZE + 1, 1..24),
        frames in prop::collection::vec(1_usize..9000, 1..8),
        merged in any::<bool>(),
    ) {
        let features = if merged { MERGED } else { WHOLE };
        for sends in [false, true] {
            let mut ring = Ring::new(&memory(), 0);
            for (index, (address, len, flags, next)) in (0..).zip(&table) {
                ring.descriptor(index, (*address, *len), *flags, *next);
            }
            for head in &heads {
                ring.offer(*head);
            }
            if sends {
                let mut transmit = Transmit::new(ring.open(features), features);
                for _ in 0..64 {
                    let Ok(Some(_)) = transmit.next() else { break };
                    prop_assert!(transmit.places().count() <= usize::from(QUEUE_SIZE));
                    if transmit.done().is_err() {
                        break;
                    }
                }
                let _ = transmit.stop();
                continue;
            }
            let mut receive = Receive::new(ring.open(features), features);
            for len in &frames {
                match receive.gather(*len) {
                    Ok(Room::Enough) => prop_assert!(receive.room() >= *len),
                    Ok(_) => continue,
                    Err(_) => break,
                }
                prop_assert!(receive.places().count() <= MOST_SEGMENTS);
                if receive.copy(Header::default(), &pattern(*len)).is_err() {
                    break;
                }
            }
            let _ = receive.stop();
        }
    }
}
