//! Links and writers as a fluid: bytes flow in at one rate and out at another, both with noise.

use proptest::prelude::*;

use super::*;

const MIB: f64 = 1024.0 * 1024.0;

/// A disk that is moved.
struct Flow {
    link: f64,
    /// What clients would write, and how much of it has to travel.
    demand: f64,
    share: f64,
    left: f64,
    noise: u64,
    now: Micros,
    seen: Seen,
    /// Bytes that clients wrote, and would have.
    wrote: f64,
    wanted: f64,
    /// What arrives is told of each so many tenths of a second.
    burst: u64,
    steps: u64,
    arrived: f64,
}

impl Flow {
    fn new(left: f64, link: f64, (demand, share): (f64, f64)) -> Self {
        Self {
            link,
            demand,
            share,
            left,
            noise: 7,
            now: Micros::from_secs(100),
            seen: Seen {
                connected: true,
                ..Seen::default()
            },
            wrote: 0.0,
            wanted: 0.0,
            burst: 1,
            steps: 0,
            arrived: 0.0,
        }
    }

    /// Between 0.85 and 1.15.
    fn wobble(&mut self) -> f64 {
        self.noise = self
            .noise
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        0.85 + (self.noise >> 40) as f64 / (1_u64 << 24) as f64 * 0.3
    }

    /// A tenth of a second. What arrives is told of in bursts.
    fn step(&mut self, contract: &mut Contract) {
        self.now += Micros::from_millis(100);
        let wanted = self.demand * self.wobble() / 10.0;
        let written = contract
            .brake()
            .map_or(wanted, |brake| wanted.min(brake as f64 / 10.0));
        let carried = (self.link * self.wobble() / 10.0).min(self.left + written * self.share);
        self.left = self.left + written * self.share - carried;
        (self.wrote, self.wanted) = (self.wrote + written, self.wanted + wanted);
        self.arrived += carried;
        self.steps += 1;
        // What is not known to have arrived counts as left.
        if self.steps.is_multiple_of(self.burst) {
            self.seen.done += self.arrived as u64;
            self.arrived = 0.0;
        }
        self.seen.left = (self.left + self.arrived) as u64;
        self.seen.written += written as u64;
        self.seen.added += (written * self.share) as u64;
        contract.look(self.now, self.seen);
    }

    /// Until it is in step, for at most so many seconds; how many it took.
    fn run(&mut self, contract: &mut Contract, most: u64) -> Option<f64> {
        for tenth in 1..=most * 10 {
            self.step(contract);
            if self.left < self.link * 0.3 {
                return Some(tenth as f64 / 10.0);
            }
        }
        None
    }
}

fn by(flow: &Flow, seconds: u64) -> Wish {
    Wish {
        deadline: Some(flow.now + Micros::from_secs(seconds)),
        max_slowdown: None,
    }
}

#[test]
fn a_writer_faster_than_the_link_is_slowed_down_just_so_far_that_the_deadline_holds() {
    let mut flow = Flow::new(1000.0 * MIB, 25.0 * MIB, (200.0 * MIB, 1.0));
    let mut alone = Flow::new(1000.0 * MIB, 25.0 * MIB, (200.0 * MIB, 1.0));
    assert_eq!(
        alone.run(&mut Contract::default(), 1000),
        None,
        "it converges by itself"
    );
    let mut contract = Contract::new(by(&flow, 120));
    let took = flow.run(&mut contract, 120).expect("in time");
    // Not much earlier than was asked for: that would cost the writer more than is needed.
    assert!(took > 60.0, "{took}");
    assert!(flow.wrote > 600.0 * MIB, "{} MiB", flow.wrote / MIB);
    assert_eq!(contract.unmet(), None);
}

#[test]
fn a_writer_that_leaves_room_is_left_alone() {
    let mut flow = Flow::new(1000.0 * MIB, 25.0 * MIB, (8.0 * MIB, 1.0));
    let mut contract = Contract::new(by(&flow, 120));
    let took = flow.run(&mut contract, 120).expect("in time");
    assert!(took < 75.0, "{took}");
    assert!((flow.wrote - flow.wanted).abs() < 1.0, "it was slowed down");
    // What is written over before it travels does not count.
    let mut flow = Flow::new(1000.0 * MIB, 25.0 * MIB, (200.0 * MIB, 0.05));
    let mut contract = Contract::new(by(&flow, 120));
    flow.run(&mut contract, 120).expect("in time");
    assert!(flow.wrote > flow.wanted * 0.9, "it was slowed down");
}

#[test]
fn what_cannot_be_is_said_and_the_disk_arrives_all_the_same() {
    let mut flow = Flow::new(4000.0 * MIB, 25.0 * MIB, (200.0 * MIB, 1.0));
    let mut contract = Contract::new(by(&flow, 60));
    assert_eq!(flow.run(&mut contract, 30), None);
    let Some(Unmet::Deadline { needed, left }) = contract.unmet() else {
        panic!("{:?}", contract.unmet());
    };
    assert!(needed > 100 && left < 60, "{needed} of {left}");
    assert!(flow.run(&mut contract, 600).is_some(), "it never arrives");
    // Slowed down by half is not enough.
    let mut flow = Flow::new(1000.0 * MIB, 25.0 * MIB, (200.0 * MIB, 1.0));
    let wish = Wish {
        max_slowdown: Some(50),
        ..by(&flow, 120)
    };
    let mut contract = Contract::new(wish);
    assert_eq!(flow.run(&mut contract, 60), None);
    let Some(Unmet::Slowdown { needed, allowed }) = contract.unmet() else {
        panic!("{:?}", contract.unmet());
    };
    assert!(
        needed < 25 << 20 && (70 << 20..130 << 20).contains(&allowed),
        "{needed}, {allowed}"
    );
    assert!(flow.wrote > flow.wanted * 0.45, "more than was allowed");
}

#[test]
fn a_brake_goes_when_nobody_needs_it_and_when_nobody_wants_it() {
    let mut flow = Flow::new(1000.0 * MIB, 25.0 * MIB, (200.0 * MIB, 1.0));
    let mut contract = Contract::new(by(&flow, 120));
    flow.run(&mut contract, 20);
    assert!(contract.brake().is_some());
    flow.demand = MIB;
    flow.run(&mut contract, 15);
    assert_eq!(contract.brake(), None, "the writer has stopped");
    flow.demand = 200.0 * MIB;
    flow.run(&mut contract, 15);
    assert!(contract.brake().is_some());
    contract.change(Wish::default());
    flow.step(&mut contract);
    flow.step(&mut contract);
    flow.step(&mut contract);
    assert_eq!(contract.brake(), None, "nobody wants it any more");
}

#[test]
fn an_estimate_says_how_sure_it_is() {
    let mut flow = Flow::new(1000.0 * MIB, 25.0 * MIB, (5.0 * MIB, 1.0));
    let mut contract = Contract::default();
    assert_eq!(contract.estimate(), None);
    flow.run(&mut contract, 10);
    let estimate = contract.estimate().expect("it is known");
    let true_one = flow.left / (20.0 * MIB);
    assert!(
        (estimate.seconds as f64) > true_one * 0.7 && (estimate.seconds as f64) < true_one * 1.4
    );
    assert!(
        estimate.least <= estimate.seconds && estimate.most.is_some_and(|m| m >= estimate.seconds)
    );
    flow.demand = 60.0 * MIB;
    flow.run(&mut contract, 20);
    assert_eq!(contract.estimate(), None, "it never ends");
}

/// Ask each tenth of a second whether a switchover should begin, until it should; how long that took.
fn land(flow: &mut Flow, contract: &mut Contract) -> f64 {
    for tenth in 0..100 {
        if contract.land(flow.now, flow.seen.left) {
            return f64::from(tenth) / 10.0;
        }
        flow.step(contract);
    }
    panic!("it never lands");
}

#[test]
fn before_a_switchover_a_fast_writer_is_held_for_a_moment_so_that_little_is_left() {
    let mut flow = Flow::new(200.0 * MIB, 25.0 * MIB, (200.0 * MIB, 1.0));
    let mut contract = Contract::new(by(&flow, 60));
    flow.run(&mut contract, 60).expect("in time");
    assert!(flow.left > 25.0 * MIB * 0.1, "{} MiB", flow.left / MIB);
    let took = land(&mut flow, &mut contract);
    assert!(took <= 2.0, "{took}");
    assert!(flow.left < 25.0 * MIB * 0.05, "{} MiB", flow.left / MIB);
    // It stays so until the target has answered, and no longer than the attempt.
    flow.step(&mut contract);
    assert!(contract.brake().is_some_and(|brake| brake < 25 << 20));
    contract.abort_landing();
    contract.change(Wish::default());
    for _ in 0..3 {
        flow.step(&mut contract);
    }
    assert_eq!(contract.brake(), None);
}

#[test]
fn nobody_is_held_for_a_landing_who_leaves_room_or_may_not_be_slowed_down() {
    let mut flow = Flow::new(200.0 * MIB, 25.0 * MIB, (8.0 * MIB, 1.0));
    let mut contract = Contract::default();
    flow.run(&mut contract, 60).expect("it fits");
    let took = land(&mut flow, &mut contract);
    assert!(took <= 1.0, "{took}");
    assert!((flow.wrote - flow.wanted).abs() < 1.0, "it was slowed down");
    let mut flow = Flow::new(200.0 * MIB, 25.0 * MIB, (24.0 * MIB, 1.0));
    let never = Wish {
        max_slowdown: Some(0),
        ..Wish::default()
    };
    let mut contract = Contract::new(never);
    flow.run(&mut contract, 60);
    assert!(land(&mut flow, &mut contract) < 0.05);
    assert!((flow.wrote - flow.wanted).abs() < 1.0, "it was slowed down");
}

proptest! {
    #[test]
    fn whatever_can_be_in_time_is(
        size in 100_u32..4000,
        link in 1_u32..120,
        demand in 0_u32..600,
        share in 1_u32..150,
        spare in 15_u32..60,
        burst in 1_u64..9,
    ) {
        let (size, link) = (f64::from(size) * MIB, f64::from(link) * MIB);
        let (demand, share) = (f64::from(demand) * MIB, f64::from(share) / 100.0);
        let mut flow = Flow::new(size, link, (demand, share));
        // What it takes without a writer, but for what it writes before anything is known of it; and some more.
        let first = 2.0 * (demand * share - link).max(0.0);
        let seconds = ((size + first) / link * f64::from(spare) / 10.0) as u64 + 12;
        flow.burst = burst;
        let mut contract = Contract::new(by(&flow, seconds));
        let took = flow.run(&mut contract, seconds);
        prop_assert!(took.is_some(), "{} MiB left of {}, brake {:?}", flow.left / MIB, size / MIB, contract.brake());
    }
}
