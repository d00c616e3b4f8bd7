//! The gate that requests of an export pass: buckets of every kind, and the line before them.
//!
//! Machine. Each entrance (a client's connection, a guest's queue) has at most one place in the line, its
//! oldest request, so the line is short and all entrances get their turn. Tokens that those ahead will take
//! are set aside for them: who is late loses nothing, and a large request is not passed for ever by small
//! ones. A request that takes nothing of a bucket does not heed it, nor those who wait for it: a flush
//! waits for no bytes.

use super::bucket::{Bucket, Rate};
use super::limits::Limits;

/// How many kinds of tokens there are.
const KINDS: usize = 3;

/// Nanoseconds after which it is looked again whether somebody ahead, who could begin, has asked.
const SOON: u64 = 50_000;

/// What a request takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Operations.
    pub operations: u64,
    /// Bytes that it moves.
    pub bytes: u64,
    /// Of those, bytes that it writes.
    pub written: u64,
}

impl Cost {
    fn of_each_kind(self) -> [u64; KINDS] {
        [self.operations, self.bytes, self.written]
    }
}

/// A place in the line. Whoever has one asks again or leaves.
#[derive(Debug, PartialEq, Eq)]
pub struct Place(u64);

/// Not yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Wait {
    /// Its place, to ask again with.
    pub place: Place,
    /// Nanoseconds until then, at least 1. Less than that is in vain, unless somebody ahead leaves.
    pub wait: u64,
}

/// Who waits, and for what.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    place: u64,
    cost: [u64; KINDS],
}

/// A gate.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    buckets: [Option<Bucket>; KINDS],
    /// In the order of places.
    line: Vec<Waiting>,
    next: u64,
}

impl Gate {
    /// A gate with full buckets.
    #[must_use]
    pub fn new(limits: &Limits, now: u64) -> Self {
        let mut gate = Self::default();
        gate.change(limits, now);
        gate
    }

    /// Ask for a request of this cost to begin, with the place that it has in the line if it has one.
    ///
    /// # Errors
    /// It has to wait; it keeps its place, or has one now.
    pub fn ask(&mut self, place: Option<Place>, now: u64, cost: Cost) -> Result<(), Wait> {
        let cost = cost.of_each_kind();
        let found = place.as_ref().and_then(|place| self.find(place));
        let index = found.unwrap_or(self.line.len());
        let mut ahead = [0u128; KINDS];
        for one in self.line.iter().take(index) {
            for (sum, amount) in ahead.iter_mut().zip(one.cost) {
                *sum = sum.saturating_add(amount.into());
            }
        }
        let mut wait = 0;
        for ((bucket, ahead), amount) in self.buckets.iter_mut().zip(ahead).zip(cost) {
            if let Some(bucket) = bucket
                && amount > 0
            {
                wait = bucket.wait(now, ahead, amount).max(wait);
                // A debt would be paid with what is set aside.
                if ahead > 0 && !bucket.spares(ahead, amount) {
                    wait = wait.max(SOON);
                }
            }
        }
        if wait == 0 {
            for (bucket, amount) in self.buckets.iter_mut().zip(cost) {
                if let Some(bucket) = bucket {
                    bucket.take(amount);
                }
            }
            if found.is_some() {
                self.line.remove(index);
            }
            return Ok(());
        }
        let place = match (place, self.line.get_mut(index)) {
            (Some(place), Some(one)) => {
                one.cost = cost;
                place
            }
            _ => self.join(cost),
        };
        Err(Wait { place, wait })
    }

    /// A request of this cost begins without being asked: those behind it wait for what it took.
    pub fn overdraw(&mut self, now: u64, cost: Cost) {
        let amounts = cost.of_each_kind();
        for (bucket, amount) in self.buckets.iter_mut().zip(amounts) {
            if let Some(bucket) = bucket {
                // Only to fill in what has come.
                bucket.wait(now, 0, amount);
                bucket.take(amount);
            }
        }
    }

    fn join(&mut self, cost: [u64; KINDS]) -> Place {
        let place = self.next;
        self.next += 1;
        self.line.push(Waiting { place, cost });
        Place(place)
    }

    /// Give up a place: the tokens that were set aside are everybody's.
    pub fn leave(&mut self, place: &Place) {
        if let Some(index) = self.find(place) {
            self.line.remove(index);
        }
    }

    fn find(&self, place: &Place) -> Option<usize> {
        let found = self.line.binary_search_by_key(&place.0, |one| one.place);
        found.ok()
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.line.len()
    }

    /// The most bytes a second that may be written, besides the limits; as [`Gate::change`].
    pub fn brake(&mut self, rate: Option<Rate>, now: u64) {
        let [_, _, written] = &mut self.buckets;
        change(written, rate, now);
    }

    /// Other limits from now on. What was there stays as it is filled, and what is new begins full; those who wait
    /// keep their places and may ask at once.
    pub fn change(&mut self, limits: &Limits, now: u64) {
        let [operations, bytes, _] = &mut self.buckets;
        change(operations, limits.iops, now);
        change(bytes, limits.bandwidth, now);
    }
}

fn change(bucket: &mut Option<Bucket>, rate: Option<Rate>, now: u64) {
    match (bucket.as_mut(), rate) {
        (Some(bucket), Some(rate)) => bucket.change(rate, now),
        (None, Some(rate)) => *bucket = Some(Bucket::new(rate, now)),
        (_, None) => *bucket = None,
    }
}
