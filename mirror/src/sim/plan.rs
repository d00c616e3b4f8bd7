//! What a run is made of, drawn from its seed.

use uuid::Uuid;

use super::clocks::HostClock;
use super::rng::Rng;
use crate::arbiter::{ArbiterName, Switchover};
use crate::clock::Micros;
use crate::session::{Sabotage, SourceConfig};
use crate::wire::{DiskDescription, DiskFormat};

/// What is wanted of the target before the faults end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    TakeOver,
    Follow,
    /// To take over, and then to give it back.
    Back,
}

/// Where the arbiter is.
pub(super) const AT: &str = "third";

/// What clients write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// Something new each time.
    New,
    /// Whole granules with contents that come back: what is the same at last need not have been so all the time.
    Few,
}

/// What is kept of sessions over a crash of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sessions {
    Nothing,
    /// Of a disk whose changes are tracked, or not.
    Tracked,
    Untracked,
}

impl Sessions {
    fn by_chance(rng: &mut Rng) -> Self {
        [Self::Tracked, Self::Tracked, Self::Untracked, Self::Nothing][rng.below(4) as usize]
    }
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) size: usize,
    pub(super) think: Micros,
    pub(super) aim: Aim,
    pub(super) op_time: Micros,
    /// Faults of the link, crashes of processes, of power.
    pub(super) cuts: bool,
    pub(super) crashes: bool,
    pub(super) power: bool,
    pub(super) contents: Contents,
    pub(super) kept: Sessions,
    /// How many of a hundred questions to the arbiter are lost, or their answers.
    pub(super) arbiter_lossy: u64,
    /// How late it may be.
    pub(super) arbiter_slow: Micros,
    pub(super) fault_until: Micros,
    /// The longest time from one fault to the next.
    pub(super) fault_gap: Micros,
    /// What the hosts take for the time.
    pub(super) clocks: [HostClock; 2],
    /// How many templates the target's site has.
    pub(super) templates: u64,
    pub(super) sabotage: Option<Sabotage>,
    /// The rule that is broken on the way back only.
    pub(super) late: Option<Sabotage>,
    pub(super) config: SourceConfig,
}

impl Plan {
    pub(super) fn tracked(&self) -> bool {
        self.kept == Sessions::Tracked
    }

    pub(super) fn from_seed(rng: &mut Rng, sabotage: Option<Sabotage>, aim: Aim) -> Self {
        let follow = aim == Aim::Follow;
        let size = 24 * 4096 + 1024;
        let description = DiskDescription {
            name: "disk".into(),
            size: size as u64,
            block_size: 1 << 20,
            logical_sector: 512,
            physical_sector: 4096,
            format: DiskFormat::Vhdx,
        };
        let mut config = SourceConfig::new(Uuid::nil(), "b".into(), description);
        config.limits.lanes = 1 + rng.below(3) as u16;
        config.limits.chunk = [4096, 8192, 16384][rng.below(3) as usize];
        config.limits.reads = 1 + rng.below(4) as usize;
        config.limits.window = [8 << 10, 40 << 10, 1 << 20][rng.below(3) as usize];
        config.limits.queue = [0, 6 << 10, 40 << 10, 1 << 20][rng.below(4) as usize];
        config.limits.marker_every = Micros([2_000, 20_000, 100_000][rng.below(3) as usize]);
        config.handover.automatic = rng.percent(10);
        config.replica.follow = !config.handover.automatic;
        if follow {
            config.handover.automatic = false;
            config.replica.follow = true;
            config.limits.window = 1 << 20;
            config.limits.queue = [12 << 10, 1 << 20][rng.below(2) as usize];
        }
        config.handover.give_up_after =
            Micros::from_millis([150, 400, 2000][rng.below(3) as usize]);
        config.replica.compare = rng.percent(80);
        config.limits.block = 4096;
        config.limits.save_every = Micros([1_000, 15_000, 2_000_000][rng.below(3) as usize]);
        let fast = rng.percent(50);
        if fast {
            decide_elsewhere(&mut config);
        }
        let kind = rng.below(5);
        let spans = [(50, 200), (200, 800), (500, 2000)];
        let (low, high) = spans[if fast { 2 } else { rng.below(3) as usize }];
        config.sabotage = sabotage;
        Self {
            size,
            think: Micros(
                [1_500, 6_000, 30_000][if follow {
                    1 + rng.below(2)
                } else {
                    rng.below(3)
                } as usize],
            ),
            aim,
            op_time: Micros([60, 400, 1_500][rng.below(3) as usize]),
            cuts: kind != 0,
            crashes: kind >= 2,
            power: kind >= 3,
            kept: Sessions::by_chance(rng),
            arbiter_lossy: [0, 5, 40][rng.below(3) as usize],
            arbiter_slow: Micros([0, 20_000, 400_000][rng.below(3) as usize]),
            contents: if rng.percent(15) {
                Contents::Few
            } else {
                Contents::New
            },
            // Where a switchover hangs on more than the link, let more of them come to that.
            fault_gap: Micros::from_millis(if fast { 600 } else { 150 }),
            fault_until: Micros::from_secs(1) + Micros::from_millis(rng.between(low, high)),
            clocks: [0; 2].map(|_| HostClock::by_chance(rng)),
            templates: [0, 0, 0, 1, 2][rng.below(5) as usize],
            sabotage,
            late: None,
            config,
        }
        .for_its_aim(spans[0].1)
    }

    /// Where the disk is to go back, that is what it is about: little happens before, within so many milliseconds, and a
    /// rule is broken only then.
    fn for_its_aim(mut self, most: u64) -> Self {
        if self.aim == Aim::Back {
            self.late = self.sabotage.take();
            self.config.sabotage = None;
            let soon = Micros::from_secs(1) + Micros::from_millis(most);
            self.fault_until = self.fault_until.min(soon);
        }
        self
    }
}

/// The arbiter decides.
fn decide_elsewhere(config: &mut SourceConfig) {
    config.handover.how = Switchover::Fast;
    config.handover.arbiter = Some(ArbiterName {
        id: Uuid::from_u128(77),
        at: AT.into(),
    });
}
