//! What a limit promises, in virtual time. `DISKFERRY_SEED=n` runs one seed.

use super::*;

const SECOND: u64 = 1_000_000_000;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Something from 1 to 2^bits, of every magnitude.
    fn up_to(&mut self, bits: u64) -> u64 {
        let magnitude = self.below(bits + 1);
        1 + self.below(1 << magnitude)
    }
}

fn with_seeds(promise: impl Fn(&mut Random)) {
    let given = std::env::var("DISKFERRY_SEED").ok();
    let seeds = match given.map(|text| text.parse().expect("DISKFERRY_SEED is a number")) {
        Some(seed) => seed..seed + 1,
        None => 0..200,
    };
    for seed in seeds {
        println!("DISKFERRY_SEED={seed}");
        promise(&mut Random(seed));
    }
}

fn rate(random: &mut Random) -> Rate {
    let (per_second, burst) = (random.up_to(36), random.up_to(30));
    // No burst takes longer to come than the times of these tests last.
    let burst = burst.min(per_second.saturating_mul(100));
    Rate::new(per_second, burst).expect("in bounds")
}

fn operations(operations: u64) -> Cost {
    #[rustfmt::skip]
    let cost = Cost { operations, ..Cost::default() };
    cost
}

fn gate(iops: Option<Rate>, bandwidth: Option<Rate>) -> Gate {
    Gate::new(&Limits { iops, bandwidth }, 0)
}

/// One entrance: requests that begin one after the other, each asked for when the one before has begun.
#[derive(Default)]
struct Entrance {
    waits: Option<(Place, u64)>,
    cost: Cost,
}

impl Entrance {
    /// Ask at a time at which it may be asked; whether the request began.
    fn ask(&mut self, gate: &mut Gate, now: u64, cost: Cost) -> bool {
        let (place, cost) = match self.waits.take() {
            Some((place, _)) => (Some(place), self.cost),
            None => (None, cost),
        };
        self.cost = cost;
        match gate.ask(place, now, cost) {
            Ok(()) => true,
            Err(Wait { place, wait }) => {
                assert!(wait > 0);
                self.waits = Some((place, now.saturating_add(wait)));
                false
            }
        }
    }

    fn due(&self) -> Option<u64> {
        self.waits.as_ref().map(|(_, due)| *due)
    }
}

#[test]
fn whoever_asks_all_the_time_gets_the_rate_to_the_nanosecond_however_long() {
    with_seeds(|random| {
        let rate = rate(random);
        let mut bucket = Bucket::new(rate, 0);
        let (mut now, mut taken) = (0, 0u128);
        for _ in 0..2000 {
            let amount = 1 + random.below(rate.burst());
            let wait = bucket.wait(now, 0, amount);
            if wait > 0 {
                assert!(bucket.wait(now + wait - 1, 0, amount) > 0, "not earlier");
            }
            now += wait;
            assert_eq!(bucket.wait(now, 0, amount), 0, "and then");
            bucket.take(amount);
            taken += u128::from(amount);
            // No rounding is ever added up: each begins when all that was taken has come.
            let owed = taken.saturating_sub(rate.burst().into()) * u128::from(SECOND);
            assert_eq!(u128::from(now), owed.div_ceil(rate.per_second().into()));
        }
    });
}

#[test]
fn in_no_span_of_time_begins_more_than_the_burst_and_what_the_rate_brings() {
    with_seeds(|random| {
        let rate = rate(random);
        let mut gate = gate(Some(rate), None);
        let mut entrances: Vec<_> = (0..=random.below(6)).map(|_| Entrance::default()).collect();
        let longest = 1 + rate.burst().saturating_mul(1 + random.below(4));
        let mut began: Vec<(u64, u128)> = Vec::new();
        let mut now = 0;
        for _ in 0..400 {
            let one = random.below(entrances.len() as u64) as usize;
            // They ask too early, in time, or late; sometimes nobody asks for a while.
            now = match (random.below(4), entrances[one].due()) {
                (0 | 1, Some(due)) => now.max(due),
                (2, _) => now + random.below(SECOND / 10),
                _ => now,
            };
            let cost = operations(1 + random.below(longest));
            if entrances[one].ask(&mut gate, now, cost) {
                began.push((now, entrances[one].cost.operations.into()));
            }
        }
        let (burst, per_second) = (u128::from(rate.burst()), u128::from(rate.per_second()));
        for (first, (from, _)) in began.iter().enumerate() {
            let mut sum = 0;
            for (to, amount) in &began[first..] {
                // The last one may leave a debt, which those after it wait for.
                let all = (sum + (*amount).min(burst)) * u128::from(SECOND);
                // A wait is rounded up to a nanosecond, and what it brings by that is kept.
                let came = u128::from(to - from + 1) * per_second;
                assert!(all <= burst * u128::from(SECOND) + came);
                sum += amount;
            }
        }
    });
}

#[test]
fn all_entrances_get_their_turn_in_order_and_a_large_request_is_not_passed_for_ever() {
    with_seeds(|random| {
        let rate = rate(random);
        let mut gate = gate(Some(rate), None);
        let count = 2 + random.below(6) as usize;
        let mut entrances: Vec<_> = (0..count).map(|_| Entrance::default()).collect();
        // Of the first entrance each is larger than the bucket.
        let sizes: Vec<_> = (0..count as u64)
            .map(|one| {
                if one == 0 {
                    rate.burst().saturating_mul(3)
                } else {
                    random.up_to(3)
                }
            })
            .collect();
        let mut begun = vec![0u64; count];
        let mut now = 0;
        while begun[0] < 20 {
            for one in 0..count {
                if entrances[one].due().is_none_or(|due| due <= now)
                    && entrances[one].ask(&mut gate, now, operations(sizes[one]))
                {
                    begun[one] += 1;
                }
            }
            now = match entrances.iter().filter_map(Entrance::due).min() {
                Some(due) if entrances.iter().all(|one| one.waits.is_some()) => now.max(due),
                _ => now,
            };
        }
        // Who was there first with a full bucket got more of the first burst, and nothing since.
        let spread = rate.burst().div_ceil(*sizes.iter().min().expect("some")) + 21;
        for (one, times) in begun.iter().enumerate() {
            assert!(*times >= 19, "entrance {one} began {times} times");
            assert!(*times <= spread, "entrance {one} began {times} times");
        }
    });
}

#[test]
fn who_is_late_begins_at_once_and_nobody_has_taken_its_tokens() {
    with_seeds(|random| {
        let rate = Rate::new(random.up_to(29), 1 + random.up_to(20)).expect("in bounds");
        let mut gate = gate(Some(rate), None);
        gate.ask(None, 0, operations(rate.burst())).expect("full");
        let mut late = Entrance::default();
        assert!(!late.ask(&mut gate, 0, operations(rate.burst())));
        let due = late.due().expect("it waits");
        let mut others: Vec<_> = (0..4).map(|_| Entrance::default()).collect();
        let mut now = due;
        for _ in 0..50 {
            for other in &mut others {
                assert!(
                    !other.ask(&mut gate, now, operations(1)),
                    "the bucket keeps no more than is set aside"
                );
            }
            now += random.below(SECOND);
        }
        assert!(late.ask(&mut gate, now, operations(1)));
    });
}

#[test]
fn whoever_leaves_sets_nothing_aside() {
    let rate = Rate::new(10, 10).expect("in bounds");
    let mut gate = gate(Some(rate), None);
    gate.ask(None, 0, operations(10)).expect("full");
    let gone = gate.ask(None, 0, operations(1_000_000)).expect_err("empty");
    let small = gate.ask(None, 0, operations(1)).expect_err("empty");
    assert!(small.wait > 10_000 * SECOND, "behind the large one");
    gate.leave(&gone.place);
    gate.leave(&gone.place);
    assert_eq!(gate.waiting(), 1);
    assert_eq!(
        gate.ask(Some(small.place), SECOND / 10, operations(1)),
        Ok(())
    );
    assert_eq!(gate.waiting(), 0);
}

#[test]
fn a_request_that_moves_no_bytes_waits_for_none() {
    let slow = Rate::new(1, 1).expect("in bounds");
    let mut gate = gate(Rate::new(1000, 100), Some(slow));
    #[rustfmt::skip]
    let write = Cost { operations: 1, bytes: 4096, written: 4096 };
    gate.ask(None, 0, write).expect("full");
    assert!(gate.ask(None, 0, write).is_err(), "in debt");
    for _ in 0..98 {
        gate.ask(None, 0, operations(1)).expect("a flush");
    }
    let told = gate
        .ask(None, 0, operations(1))
        .expect_err("one is set aside");
    assert_eq!(told.wait, SECOND / 1000, "it waits for operations only");
}

#[test]
fn both_limits_hold_at_once() {
    with_seeds(|random| {
        let (iops, bandwidth) = (rate(random), rate(random));
        let mut gate = gate(Some(iops), Some(bandwidth));
        let (mut now, mut requests, mut moved) = (0u64, 0u128, 0u128);
        for _ in 0..500 {
            let bytes = 1 + random.below(2 * bandwidth.burst());
            #[rustfmt::skip]
            let cost = Cost { operations: 1, bytes, written: 0 };
            let mut place = None;
            while let Err(told) = gate.ask(place.take(), now, cost) {
                now += told.wait;
                place = Some(told.place);
            }
            requests += 1;
            moved += u128::from(bytes);
            let came = |rate: Rate| {
                u128::from(now + 1) * u128::from(rate.per_second()) / u128::from(SECOND)
                    + u128::from(rate.burst())
            };
            assert!(requests <= came(iops));
            assert!(moved.saturating_sub(bytes.into()) <= came(bandwidth));
        }
    });
}

#[test]
fn changing_the_limits_again_and_again_makes_no_tokens() {
    with_seeds(|random| {
        let mut gate = gate(Rate::new(100, 50), None);
        gate.ask(None, 0, operations(50)).expect("full");
        let mut began = 0;
        for round in 0..100 {
            // All of them at most a hundred a second.
            let rate = Rate::new(1 + random.below(100), 1 + random.below(1000));
            let now = round * SECOND / 100;
            gate.change(
                &Limits {
                    iops: rate,
                    bandwidth: None,
                },
                now,
            );
            let mut place = None;
            loop {
                match gate.ask(place.take(), now, operations(1)) {
                    Ok(()) => began += 1,
                    Err(told) => break gate.leave(&told.place),
                }
            }
        }
        assert!(
            began <= 100,
            "{began} in a second at up to a hundred a second"
        );
    });
}

#[test]
fn lifting_the_limits_lets_all_who_wait_begin() {
    let mut gate = gate(Rate::new(1, 1), Rate::new(1, 1));
    #[rustfmt::skip]
    let cost = Cost { operations: 1, bytes: 1 << 30, written: 0 };
    gate.ask(None, 0, cost).expect("full");
    let waits: Vec<_> = (0..10)
        .map(|_| gate.ask(None, 0, cost).expect_err("empty"))
        .collect();
    gate.change(&Limits::default(), 1);
    for told in waits {
        assert_eq!(gate.ask(Some(told.place), 1, cost), Ok(()));
    }
    assert_eq!(gate.waiting(), 0);
}

#[test]
fn time_that_stands_still_goes_back_or_leaps_breaks_nothing() {
    let most = Rate::new(Rate::MOST, Rate::MOST).expect("in bounds");
    for rate in [most, Rate::new(1, Rate::MOST).expect("in bounds")] {
        let mut bucket = Bucket::new(rate, u64::MAX);
        bucket.take(u64::MAX);
        bucket.take(u64::MAX);
        let wait = bucket.wait(0, u128::MAX, u64::MAX);
        assert!(wait > 0);
        let mut bucket = Bucket::new(rate, 0);
        assert_eq!(bucket.wait(u64::MAX, 0, u64::MAX), 0, "full is enough");
        // Besides what it keeps there may be what came in the last nanosecond.
        bucket.take(Rate::MOST);
        bucket.take(Rate::MOST);
        assert!(bucket.wait(0, 0, 1) > 0, "and what comes, comes once");
    }
}

#[test]
fn a_brake_holds_writes_besides_the_limits_and_nothing_else() {
    let mut gate = gate(None, Rate::new(1 << 20, 1 << 20));
    gate.brake(Rate::new(1 << 10, 1 << 10), 0);
    let (bytes, operations) = (1 << 10, 1);
    #[rustfmt::skip]
    let write = Cost { operations, bytes, written: bytes };
    #[rustfmt::skip]
    let read = Cost { operations, bytes, written: 0 };
    gate.ask(None, 0, write).expect("full");
    let told = gate.ask(None, 0, write).expect_err("braked");
    assert_eq!(told.wait, SECOND);
    for _ in 0..500 {
        gate.ask(None, 0, read).expect("not braked");
    }
    // It goes, and what waited begins.
    gate.brake(None, 1);
    gate.ask(Some(told.place), 1, write)
        .expect("nothing holds it");
}
