//! One direction of a link: a queue, a line of so many bits a second, a distance, losses and outages.
//!
//! Machine: takes the time as an argument (since any moment, never backwards) and its chance from a seed.
//! Every packet is carried to the other end, or counted as dropped, lost or cut; none overtakes another.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

/// What a direction is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bits a second, at least 1.
    pub rate: u64,
    /// From the moment that a packet has left the line to its arrival.
    pub delay: Duration,
    /// Bytes that may wait for the line, the packet on it included. A packet always fits an empty queue.
    pub queue: usize,
    /// How many of a million packets are lost on the way.
    pub loss: u32,
}

impl Shape {
    /// No queue is made smaller than this unless asked for.
    const LEAST_QUEUE: u64 = 1 << 20;

    /// No loss, and a queue of what fits the way there and back: TCP can fill such a line.
    #[must_use]
    pub fn new(rate: u64, delay: Duration) -> Self {
        let both = delay.as_nanos() * 2;
        let fits = u128::from(rate) * both / 8 / 1_000_000_000;
        let queue = fits.max(u128::from(Self::LEAST_QUEUE));
        Self {
            rate,
            delay,
            queue: usize::try_from(queue).unwrap_or(usize::MAX),
            loss: 0,
        }
    }

    /// How long the line is busy with so many bytes.
    fn time_of(&self, bytes: usize) -> Duration {
        let nanos = bytes as u128 * 8 * 1_000_000_000 / u128::from(self.rate.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Packets and their bytes, with the headers of IP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// How many.
    pub packets: u64,
    /// Of how many bytes.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, packet: &[u8]) {
        self.packets += 1;
        self.bytes += packet.len() as u64;
    }
}

/// What became of the packets that were offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All of them.
    pub offered: Tally,
    /// Those that the queue had no room for.
    pub dropped: Tally,
    /// Those that went over the line, whether they arrived or not.
    pub carried: Tally,
    /// Those that were lost by chance.
    pub lost: Tally,
    /// Those that an outage took.
    pub cut: Tally,
    /// Those that arrived.
    pub arrived: Tally,
}

/// One direction.
#[derive(Debug)]
pub struct Way {
    shape: Shape,
    random: u64,
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    /// When the first of those that wait has left the line.
    leaves: Duration,
    /// In order of arrival.
    flying: VecDeque<(Duration, Vec<u8>)>,
    is_cut: bool,
    counts: Counts,
}

impl Way {
    /// An open way on which nothing is; its losses are those of the seed.
    #[must_use]
    pub fn new(shape: Shape, seed: u64) -> Self {
        Self {
            shape,
            random: seed,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            leaves: Duration::ZERO,
            flying: VecDeque::new(),
            is_cut: false,
            counts: Counts::default(),
        }
    }

    /// What it is like now.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// What became of the packets so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A packet comes to this end.
    pub fn offer(&mut self, now: Duration, packet: Vec<u8>) {
        self.advance(now);
        self.counts.offered.add(&packet);
        if self.is_cut {
            self.counts.cut.add(&packet);
            return;
        }
        let full = self.waiting_bytes + packet.len() > self.shape.queue;
        if full && !self.waiting.is_empty() {
            self.counts.dropped.add(&packet);
            return;
        }
        if self.waiting.is_empty() {
            self.leaves = now + self.shape.time_of(packet.len());
        }
        self.waiting_bytes += packet.len();
        self.waiting.push_back(packet);
    }

    /// The next packet that is at the other end by now.
    pub fn arrival(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.advance(now);
        if self.flying.front()?.0 > now {
            return None;
        }
        let (_, packet) = self.flying.pop_front()?;
        self.counts.arrived.add(&packet);
        Some(packet)
    }

    /// When [`Way::arrival`] is worth asking again, if no packet comes before.
    #[must_use]
    pub fn next_at(&self) -> Option<Duration> {
        if let Some((at, _)) = self.flying.front() {
            return Some(*at);
        }
        let waits = !self.waiting.is_empty();
        waits.then(|| self.leaves + self.shape.delay)
    }

    /// From now on it is like this. The packet that is on the line leaves it as it would have.
    pub fn reshape(&mut self, now: Duration, shape: Shape) {
        self.advance(now);
        self.shape = shape;
    }

    /// Nothing gets through until it is mended, and what was on the way is gone.
    pub fn cut(&mut self, now: Duration) {
        self.advance(now);
        self.is_cut = true;
        let flying = self.flying.drain(..).map(|(_, packet)| packet);
        for packet in self.waiting.drain(..).chain(flying) {
            self.counts.cut.add(&packet);
        }
        self.waiting_bytes = 0;
    }

    /// The outage is over.
    pub fn mend(&mut self) {
        self.is_cut = false;
    }

    /// The line works up to `now`.
    fn advance(&mut self, now: Duration) {
        while self.leaves <= now {
            let Some(packet) = self.waiting.pop_front() else {
                return;
            };
            self.waiting_bytes -= packet.len();
            self.counts.carried.add(&packet);
            let left = self.leaves;
            if let Some(next) = self.waiting.front() {
                self.leaves += self.shape.time_of(next.len());
            }
            if self.is_lost() {
                self.counts.lost.add(&packet);
                continue;
            }
            // A distance that became shorter lets nobody overtake.
            let before = self.flying.back().map_or(Duration::ZERO, |(at, _)| *at);
            let arrives = before.max(left + self.shape.delay);
            self.flying.push_back((arrives, packet));
        }
    }

    fn is_lost(&mut self) -> bool {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % 1_000_000 < u64::from(self.shape.loss)
    }
}

#[cfg(test)]
mod tests;
