//! The promise of the engine: whatever the power cut leaves, nothing flushed is lost, nothing foreign
//! appears, and the image passes its check.
//!
//! `DISKFERRY_SEED=n` runs one seed; `DISKFERRY_SEEDS=n` sets how many are run. `DISKFERRY_POINTS=n` goes
//! on until so many crash points are verified (`make night`); `DISKFERRY_FROM=n` is the first seed then.

#[expect(
    unreachable_pub,
    dead_code,
    reason = "a test binary has no outside and uses a part"
)]
mod simulation;

use simulation::scenario;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_flushed_and_shows_nothing_foreign() {
    let wanted = number("DISKFERRY_POINTS");
    let seeds = match (number("DISKFERRY_SEED"), wanted) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(_)) => number("DISKFERRY_FROM").unwrap_or(0)..u64::MAX,
        (None, None) => 0..number("DISKFERRY_SEEDS").unwrap_or(370),
    };
    let mut sums = scenario::Counts::default();
    for seed in seeds {
        if wanted.is_some_and(|wanted| sums.points >= wanted) {
            break;
        }
        println!(
            "DISKFERRY_SEED={seed} {:?}",
            scenario::Variant::of_seed(seed)
        );
        sums.add(&scenario::run(seed));
    }
    println!("{sums:?}");
    let usual = number("DISKFERRY_SEED")
        .or(number("DISKFERRY_SEEDS"))
        .or(wanted)
        .is_none();
    let enough = sums.points >= 10_000 && sums.resized >= 1000 && sums.compacted >= 200;
    assert!(!usual || enough && sums.listed >= 100_000);
}
