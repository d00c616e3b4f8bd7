//! What a direction does with packets, with the time in the test's hands.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// 8 Mbit/s: a packet of 1000 bytes takes a millisecond.
fn shape() -> Shape {
    Shape {
        rate: 8_000_000,
        delay: MS * 40,
        queue: 10_000,
        loss: 0,
    }
}

/// Packets of 1000 bytes that say their number.
fn packet(number: u16) -> Vec<u8> {
    let mut packet = vec![0; 1000];
    packet[..2].copy_from_slice(&number.to_le_bytes());
    packet
}

fn number(packet: &[u8]) -> u16 {
    u16::from_le_bytes([packet[0], packet[1]])
}

/// Everything that arrives up to `until`, with the moments that the machine named.
fn arrivals(way: &mut Way, until: Duration) -> Vec<(Duration, u16)> {
    let mut seen = Vec::new();
    while let Some(at) = way.next_at().filter(|at| *at <= until) {
        while let Some(packet) = way.arrival(at) {
            seen.push((at, number(&packet)));
        }
    }
    seen
}

#[test]
fn packets_arrive_one_behind_the_other_after_the_delay() {
    let mut way = Way::new(shape(), 1);
    for number in 0..3 {
        way.offer(MS * 100, packet(number));
    }
    assert!(way.arrival(MS * 140 + MS * 9 / 10).is_none());
    let seen = arrivals(&mut way, MS * 1000);
    assert_eq!(seen, [(MS * 141, 0), (MS * 142, 1), (MS * 143, 2)]);
    // An idle line saves up nothing.
    way.offer(MS * 500, packet(3));
    way.offer(MS * 500, packet(4));
    let seen = arrivals(&mut way, MS * 1000);
    assert_eq!(seen, [(MS * 541, 3), (MS * 542, 4)]);
    assert_eq!(way.next_at(), None);
}

#[test]
fn a_full_queue_drops_what_comes_and_has_room_again_when_the_line_has_worked() {
    let mut way = Way::new(shape(), 1);
    for number in 0..12 {
        way.offer(MS, packet(number));
    }
    assert_eq!(way.counts().dropped.packets, 2);
    way.offer(MS * 2, packet(12));
    way.offer(MS * 2, packet(13));
    let seen = arrivals(&mut way, MS * 1000);
    let numbers: Vec<u16> = seen.iter().map(|(_, number)| *number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12]);
    assert_eq!(way.counts().dropped.packets, 3);
    // However small the queue, an idle line takes a packet.
    let tiny = Shape {
        queue: 1,
        ..shape()
    };
    let mut way = Way::new(tiny, 1);
    way.offer(MS, packet(0));
    way.offer(MS, packet(1));
    assert_eq!(arrivals(&mut way, MS * 1000), [(MS * 42, 0)]);
}

#[test]
fn as_many_are_lost_as_asked_and_the_same_ones_for_a_seed() {
    let lossy = Shape {
        loss: 10_000,
        ..shape()
    };
    let survivors = |seed| {
        let mut way = Way::new(lossy, seed);
        let mut seen = Vec::new();
        for round in 0..20_000_u32 {
            let now = MS * round;
            way.offer(now, packet(round as u16));
            while let Some(packet) = way.arrival(now) {
                seen.push(number(&packet));
            }
        }
        let lost = way.counts().lost.packets;
        assert!((150..250).contains(&lost), "{lost} of 20000");
        // They took their time on the line.
        assert_eq!(way.counts().carried.packets, 19_999);
        seen
    };
    assert_eq!(survivors(7), survivors(7));
    assert_ne!(survivors(7), survivors(8));
}

#[test]
fn an_outage_takes_what_is_on_the_way_and_all_that_comes() {
    let mut way = Way::new(shape(), 1);
    way.offer(MS, packet(0));
    way.offer(MS * 20, packet(1));
    way.cut(MS * 30);
    way.offer(MS * 40, packet(2));
    assert_eq!(way.next_at(), None);
    assert!(way.arrival(MS * 1000).is_none());
    way.mend();
    way.offer(MS * 1000, packet(3));
    assert_eq!(arrivals(&mut way, MS * 2000), [(MS * 1041, 3)]);
    assert_eq!(way.counts().cut.packets, 3);
}

#[test]
fn another_shape_is_for_what_comes_next() {
    let mut way = Way::new(shape(), 1);
    for number in 0..3 {
        way.offer(MS * 100, packet(number));
    }
    // In the middle of the first one: it is done when it would have been.
    let half = MS * 100 + MS / 2;
    let slower = Shape {
        rate: 800_000,
        delay: MS * 5,
        ..shape()
    };
    way.reshape(half, slower);
    let seen = arrivals(&mut way, MS * 1000);
    assert_eq!(seen, [(MS * 106, 0), (MS * 116, 1), (MS * 126, 2)]);
    // Nobody overtakes what is farther on the way.
    let mut way = Way::new(shape(), 1);
    way.offer(MS * 100, packet(0));
    way.reshape(MS * 102, slower);
    way.offer(MS * 103, packet(1));
    let seen = arrivals(&mut way, MS * 1000);
    assert_eq!(seen, [(MS * 141, 0), (MS * 141, 1)]);
}

#[test]
fn a_queue_that_is_not_asked_for_holds_what_fits_the_way_there_and_back() {
    assert_eq!(Shape::new(200_000_000, MS * 40).queue, 2_000_000);
    assert_eq!(Shape::new(200_000_000, Duration::ZERO).queue, 1 << 20);
}

proptest! {
    #[test]
    fn every_packet_is_accounted_for_and_none_overtakes(
        seed in any::<u64>(),
        steps in prop::collection::vec((0_u8..8, 0_u64..5000), 1..400),
    ) {
        let mut way = Way::new(Shape { loss: 50_000, ..shape() }, seed);
        let (mut now, mut next, mut last) = (Duration::ZERO, 0, None);
        for (step, micros) in steps {
            now += Duration::from_micros(micros);
            match step {
                0 => way.cut(now),
                1 => way.mend(),
                2 => way.reshape(now, Shape { delay: MS * (micros as u32 % 60), ..way.shape() }),
                3 => way.reshape(now, Shape { rate: 1_000_000 + micros * 1000, ..way.shape() }),
                _ => {
                    way.offer(now, packet(next));
                    next += 1;
                }
            }
            while let Some(packet) = way.arrival(now) {
                prop_assert!(last < Some(number(&packet)));
                last = Some(number(&packet));
            }
            prop_assert!(way.next_at().is_none_or(|at| at > now));
        }
        way.mend();
        while let Some(at) = way.next_at() {
            while way.arrival(at).is_some() {}
        }
        let Counts { offered, dropped, lost, cut, arrived, .. } = way.counts();
        let ends = [dropped, lost, cut, arrived];
        prop_assert_eq!(offered.packets, ends.iter().map(|tally| tally.packets).sum::<u64>());
        prop_assert_eq!(offered.bytes, ends.iter().map(|tally| tally.bytes).sum::<u64>());
    }
}
