//! The promise of the engine: whatever the power cut leaves, nothing flushed is lost, nothing foreign
//! appears, and the image passes its check.
//!
//! `DISKFERRY_SEED=n` runs one seed; `DISKFERRY_SEEDS=n` sets how many are run.

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
    let seeds = match number("DISKFERRY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DISKFERRY_SEEDS").unwrap_or(350),
    };
    let (mut points, mut resized, mut compacted) = (0, 0, 0);
    for seed in seeds {
        println!(
            "DISKFERRY_SEED={seed} {:?}",
            scenario::Variant::of_seed(seed)
        );
        let (verified, sizes, shortened) = scenario::run(seed);
        points += verified;
        resized += sizes;
        compacted += shortened;
    }
    println!("{points} crash points verified, {resized} resizes, {compacted} compactions");
    assert!(
        points >= 10_000 && resized >= 1000 && compacted >= 200
            || number("DISKFERRY_SEED")
                .or(number("DISKFERRY_SEEDS"))
                .is_some()
    );
}
