//! What is counted of a machine while it runs.
//!
//! Counters that the thread of a processor adds to and anybody reads; reading them stops nobody. Reads no clock.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// Why a processor left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It read a port.
    PortRead,
    /// It wrote to a port.
    PortWrite,
    /// It read where no memory is.
    MemoryRead,
    /// It wrote where no memory is.
    MemoryWrite,
    /// The host wanted something.
    Interrupted,
}

const KINDS: usize = 5;

/// What a processor does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VcpuState {
    /// It has not begun, or has ended.
    #[default]
    Off,
    /// It runs the guest, or what a halted guest waits with.
    Running,
    /// It stands still.
    Paused,
}

/// One processor's counters.
#[derive(Debug, Default)]
pub(crate) struct VcpuCounters {
    left: [AtomicU64; KINDS],
    state: AtomicU8,
}

impl VcpuCounters {
    /// It left the guest.
    pub(crate) fn count(&self, why: Left) {
        if let Some(counter) = self.left.get(why as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It does something else from now on.
    pub(crate) fn set(&self, state: VcpuState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub(crate) fn read(&self) -> VcpuStatistics {
        let of = |why: Left| {
            let counter = self.left.get(why as usize);
            counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
        };
        let state = self.state.load(Ordering::Relaxed);
        let states = [VcpuState::Running, VcpuState::Paused];
        let state = states.into_iter().find(|one| *one as u8 == state);
        VcpuStatistics {
            state: state.unwrap_or_default(),
            port_reads: of(Left::PortRead),
            port_writes: of(Left::PortWrite),
            memory_reads: of(Left::MemoryRead),
            memory_writes: of(Left::MemoryWrite),
            interrupted: of(Left::Interrupted),
        }
    }
}

/// How often a processor left the guest, by reason. A queue that is kicked is none of them: KVM rings for that itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuStatistics {
    /// What it does now.
    pub state: VcpuState,
    /// Reads of ports.
    pub port_reads: u64,
    /// Writes to ports.
    pub port_writes: u64,
    /// Reads of devices' memory.
    pub memory_reads: u64,
    /// Writes to devices' memory.
    pub memory_writes: u64,
    /// Times that the host wanted something of it: a pause, mostly.
    pub interrupted: u64,
}

/// What a machine has done since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// How long ago it started.
    pub uptime: Duration,
    /// For how long of that its processors were made to stand still.
    pub paused: Duration,
    /// Its processors, in order.
    pub vcpus: Vec<VcpuStatistics>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told_apart() {
        let counters = VcpuCounters::default();
        assert_eq!(counters.read(), VcpuStatistics::default());
        for (why, times) in [
            (Left::PortRead, 1),
            (Left::PortWrite, 2),
            (Left::MemoryRead, 3),
            (Left::MemoryWrite, 4),
            (Left::Interrupted, 5),
        ] {
            (0..times).for_each(|_| counters.count(why));
        }
        counters.set(VcpuState::Paused);
        let expected = VcpuStatistics {
            state: VcpuState::Paused,
            port_reads: 1,
            port_writes: 2,
            memory_reads: 3,
            memory_writes: 4,
            interrupted: 5,
        };
        assert_eq!(counters.read(), expected);
        counters.set(VcpuState::Off);
        assert_eq!(counters.read().state, VcpuState::Off);
    }
}
