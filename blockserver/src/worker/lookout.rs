//! What a worker does before it sleeps: it looks out for news a little, and asks the drivers of its queues to tell.
//!
//! To sleep and to be woken costs a thread tens of microseconds, more in a virtual machine, and costs a guest an exit to
//! its host for the kick. A disk that is busy has its next completion sooner than that. So who serves guests looks out
//! first, as long as sleeping and waking take, and meanwhile no driver is asked for kicks. Where nothing came in that time,
//! that was in vain: the more often in a row, the longer nobody looks out.

use std::time::{Duration, Instant};

use super::Worker;

/// For so long it is looked out, at most: about what it costs to sleep instead.
const PATIENCE: Duration = Duration::from_micros(50);
/// So many waits go by without a look-out, at most, when it is in vain: 2 to this power.
const LONGEST_REST: u32 = 8;

/// Decides when looking out is worth its time. Machine.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    /// How often in a row it was in vain, as far as that is remembered.
    in_vain: u32,
    /// How many waits go by without.
    rest: u32,
}

impl Lookout {
    /// There is nothing to do; whether to look out before sleeping.
    pub(super) fn is_worth_it(&mut self) -> bool {
        let rested = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        rested
    }

    /// A look-out ended; whether something came.
    pub(super) fn ended(&mut self, found: bool) {
        if found {
            self.in_vain /= 2;
        } else {
            self.in_vain = (self.in_vain + 1).min(LONGEST_REST);
            self.rest = 1 << self.in_vain;
        }
    }
}

impl Worker {
    /// Nothing is left to do; whether to sleep until something comes. All drivers have then been asked to tell.
    pub(super) fn may_sleep(&mut self) -> bool {
        if self.ring.has_news() {
            return false;
        }
        if self.has_quiet_queue() && self.entrances.lookout.is_worth_it() {
            let found = self.look_out();
            self.entrances.lookout.ended(found);
            if found {
                return false;
            }
        }
        !self.arm_queues()
    }

    /// Look out for completions and for what drivers put into queues; whether something came.
    fn look_out(&mut self) -> bool {
        if !self.ring.hand_over() {
            return false;
        }
        let begin = Instant::now();
        loop {
            if self.ring.has_news() || self.note_refilled_queues() {
                return true;
            }
            if begin.elapsed() >= PATIENCE {
                return false;
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of this many waits, of which each found something or none did, how many were looked out in.
    fn looked_out(lookout: &mut Lookout, waits: u32, found: bool) -> u32 {
        let mut times = 0;
        for _ in 0..waits {
            if lookout.is_worth_it() {
                lookout.ended(found);
                times += 1;
            }
        }
        times
    }

    #[test]
    fn a_busy_disk_is_always_looked_out_for() {
        assert_eq!(looked_out(&mut Lookout::default(), 1000, true), 1000);
    }

    #[test]
    fn a_disk_that_is_slower_than_sleeping_is_hardly_looked_out_for() {
        let mut lookout = Lookout::default();
        looked_out(&mut lookout, 1000, false);
        assert!(looked_out(&mut lookout, 10_000, false) <= 10_000 / 256 + 1);
    }

    #[test]
    fn a_disk_that_becomes_busy_is_noticed_within_256_waits() {
        let mut lookout = Lookout::default();
        looked_out(&mut lookout, 5000, false);
        assert!(looked_out(&mut lookout, 257, true) >= 1);
        assert_eq!(looked_out(&mut lookout, 1000, true), 1000);
    }
}
