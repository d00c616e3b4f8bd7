//! Which seeds a test tries: so many as it says, or what the environment asks for.
//!
//! `DISKFERRY_SEED=n` tries one; `DISKFERRY_SEEDS=n` so many, from `DISKFERRY_FROM` on (0 if it is not said), and says
//! after each ten thousand how far it is.

use std::ops::Range;

const TELL: u64 = 10_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The seeds to be tried, `count` of them unless others are asked for.
pub(crate) fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let seeds = asked().unwrap_or(0..count);
    let end = seeds.end;
    seeds.inspect(move |seed| {
        if seed % TELL == 0 && *seed > 0 {
            eprintln!("at seed {seed}, to {end}");
        }
    })
}

/// Whether no others are asked for: only then it is known how often things happen in them.
pub(crate) fn are_the_usual() -> bool {
    asked().is_none()
}

fn asked() -> Option<Range<u64>> {
    if let Some(seed) = number("DISKFERRY_SEED") {
        return Some(seed..seed + 1);
    }
    let count = number("DISKFERRY_SEEDS")?;
    let from = number("DISKFERRY_FROM").unwrap_or(0);
    Some(from..from.saturating_add(count))
}
