//! The vCPUs as a crew: each knows its number, they meet, and each feels its pulse.
//!
//! The pulse is the longest time between two beats of a loop, by the time stamp counter: for how
//! long the host kept a vCPU from running. A pause or a switchover of the machine shows in it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::json::Line;
use crate::machine::{self, serial};

/// Most vCPUs of a machine.
pub(crate) const MOST: usize = 255;

/// Who is here of those that meet.
static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// How often all have met.
static MEETINGS: AtomicU32 = AtomicU32::new(0);

/// The pulse of one vCPU, on a cache line of its own.
#[repr(align(64))]
struct Pulse {
    /// The last beat; 0 before the first.
    last: AtomicU64,
    /// The longest time between two beats since the last [`Vcpu::longest_gap`].
    longest: AtomicU64,
}

static PULSES: [Pulse; MOST] = [const {
    Pulse {
        last: AtomicU64::new(0),
        longest: AtomicU64::new(0),
    }
}; MOST];

/// This vCPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    /// Its number, from 0.
    pub(crate) index: u32,
    /// How many there are.
    pub(crate) count: u32,
}

impl Vcpu {
    /// vCPU `index` of `count`, as the machine said.
    pub(crate) fn new(index: u64, count: u64) -> Self {
        let (index, count) = (index as u32, count as u32);
        assert!(
            index < count && count as usize <= MOST,
            "vCPU {index} of {count} cannot be"
        );
        Self { index, count }
    }

    /// Whether this is the one that does what is done once.
    pub(crate) fn leads(&self) -> bool {
        self.index == 0
    }

    /// Waits until every vCPU is here. What each did before it, all see after it.
    pub(crate) fn meet(&self) {
        let meeting = MEETINGS.load(Ordering::Acquire);
        if ARRIVED.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
            ARRIVED.store(0, Ordering::Relaxed);
            MEETINGS.store(meeting.wrapping_add(1), Ordering::Release);
        }
        while MEETINGS.load(Ordering::Acquire) == meeting {
            self.beat();
            core::hint::spin_loop();
        }
    }

    /// One beat: every loop that waits or works does this in each round. The time.
    pub(crate) fn beat(&self) -> u64 {
        let pulse = &PULSES[self.index as usize];
        let now = machine::ticks();
        let last = pulse.last.swap(now, Ordering::Relaxed);
        if last != 0 {
            pulse
                .longest
                .fetch_max(now.saturating_sub(last), Ordering::Relaxed);
        }
        now
    }

    /// The longest gap between two beats, in ticks, since this was last asked.
    pub(crate) fn longest_gap(&self) -> u64 {
        PULSES[self.index as usize]
            .longest
            .swap(0, Ordering::Relaxed)
    }

    /// Opens a line about an event on this vCPU.
    pub(crate) fn event(&self, name: &str) -> Line {
        Line::new(name, self.index)
    }

    /// Says a line. The pulse goes on beating.
    pub(crate) fn say(&self, mut line: Line) {
        serial::send(line.finish(), || {
            self.beat();
        });
    }
}
