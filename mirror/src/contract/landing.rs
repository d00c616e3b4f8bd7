//! The last moments before a switchover: less is left, so that the pause is short.
//!
//! What is left when clients are held is what they wait for. A disk whose clients write as fast as the link carries always
//! has something left, so for a moment they are slowed down below that, until it does not get less any more: they go on
//! slowly for a while rather than stand still for longer.

use super::Contract;
use crate::clock::Micros;

/// Of what the link carries, what clients may take meanwhile.
const WHEN_LANDING: f64 = 0.5;
/// Never longer than this.
const LONGEST: Micros = Micros::from_secs(2);
/// When nothing got less in such a time nothing will.
const STUCK: Micros = Micros::from_millis(250);
/// What takes the link no longer than this is not worth a landing.
const SHORT: Micros = Micros::from_millis(5);

/// One landing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Landing {
    since: Micros,
    /// The least that was left, and when.
    least: (u64, Micros),
}

impl Contract {
    /// A switchover could begin, with `left` bytes on the way: whether it should. If it should not yet, clients are held to less
    /// than the link carries from now on until [`Contract::abort_landing`].
    pub fn land(&mut self, now: Micros, left: u64) -> bool {
        let short = self.time_for(now, left).is_none_or(|time| time <= SHORT);
        if short || self.wish.max_slowdown == Some(0) {
            return true;
        }
        let Some(landing) = &mut self.landing else {
            self.landing = Some(Landing {
                since: now,
                least: (left, now),
            });
            self.brake = self.for_landing(now);
            return false;
        };
        // What is on the way varies: a byte less is not less.
        let (least, at) = landing.least;
        if left < least - least / 8 {
            landing.least = (left, now);
            return now.since(landing.since) >= LONGEST;
        }
        now.since(at) >= STUCK || now.since(landing.since) >= LONGEST
    }

    /// No switchover begins, or the one that had begun was given up; clients are held as before.
    pub fn abort_landing(&mut self) {
        self.landing = None;
    }

    /// What clients are held to meanwhile, if they write more.
    pub(super) fn for_landing(&mut self, now: Micros) -> Option<u64> {
        let wanted = (self.link.mean * WHEN_LANDING / self.share()).max(self.floor());
        self.holds(now, wanted).then_some(wanted as u64)
    }
}
