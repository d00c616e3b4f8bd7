//! Two hosts: a source with a disk that is served, and a site that listens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mirror::net::{
    SourceDriver, SourceHandle, SourceStatus, TargetDriver, TargetHandle, TargetHost,
};
use mirror::record::State;
use mirror::session::SourceConfig;
use mirror::switchover::{Verdict, verdict};
use mirror::wire::{DiskDescription, DiskFormat};
use uuid::Uuid;
use vdisk::engine::Mark;

use crate::disk::{BLOCK, Front, MemoryDisk, Owners};
use crate::load::{Find, Load, Random};
use crate::proxy::Proxy;
use crate::site::Site;

pub(crate) const NAME: &str = "disk.raw";
/// Far beyond what anything here takes: a test that waits so long has failed.
pub(crate) const LONG: Duration = Duration::from_mins(2);

/// Two hosts: a source with a disk that is served, and a site that listens.
pub(crate) struct World {
    pub(crate) owners: Arc<Owners>,
    pub(crate) home: Arc<Site>,
    pub(crate) away: Arc<Site>,
    pub(crate) target: Option<TargetHandle>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) random: Random,
}

impl World {
    /// With a disk of `size` bytes, every other block of it filled.
    pub(crate) fn new(test: &str, size: usize) -> Self {
        let mut random = Random::new(test);
        let owners = Arc::new(Owners::default());
        let home = Site::new("home", &owners);
        let disk = MemoryDisk::new("home", size, Front::Serving, &owners);
        for at in (0..size).step_by(2 * BLOCK) {
            let tag = random.below(u64::MAX).to_le_bytes();
            disk.fill(at, &tag.repeat(BLOCK.min(size - at) / 8));
        }
        home.put(NAME, disk);
        let away = Site::new("away", &owners);
        let target = listen(&away);
        let proxy = Proxy::start(target.address());
        Self {
            owners,
            home,
            away,
            target: Some(target),
            proxy,
            random,
        }
    }

    pub(crate) fn disk(&self) -> Arc<MemoryDisk> {
        self.home.disk(NAME)
    }

    pub(crate) fn config(&self) -> SourceConfig {
        config(&self.disk(), self.proxy.address())
    }

    pub(crate) fn start(&self, config: SourceConfig) -> SourceHandle {
        SourceDriver::start(self.disk(), self.home.store(NAME), config).unwrap()
    }

    pub(crate) fn load(&mut self, pause: Duration) -> Load {
        let away = Arc::clone(&self.away);
        let find: Find = Arc::new(move |address| {
            assert_eq!(address, format!("nbd://away/{NAME}"));
            away.disk(NAME)
        });
        Load::start(&self.home.disk(NAME), pause, &mut self.random, &find)
    }

    /// The target's process ends; with `power`, what its disk had not flushed is gone, too.
    pub(crate) fn crash_target(&mut self, power: bool) {
        self.target = None;
        self.away.stop_serving();
        if !self.away.image_exists(NAME) {
            return;
        }
        // What the driver had asked for reaches the disk or not before anybody reads it again.
        let disk = self.away.disk(NAME);
        disk.settle();
        if power {
            disk.lose_power(self.random.below(20) as usize);
        }
    }

    pub(crate) fn restart_target(&mut self) {
        let target = listen(&self.away);
        self.proxy.lead_to(target.address());
        self.target = Some(target);
    }

    /// The disk moved, and with everything.
    pub(crate) fn check_moved(&self, expected: &[u8]) {
        assert_eq!(self.owners.now(), ["away"]);
        let here = self.disk();
        assert_eq!(
            here.front(),
            Front::Forwarding(format!("nbd://away/{NAME}"))
        );
        assert_eq!(here.mark(), Some(Mark::HandedOver));
        assert!(!here.tapped());
        let record = self.home.store(NAME).load().unwrap();
        let Some(Verdict::Forward { epoch: 2, to, .. }) = record.map(|r| verdict(Some(&r), None))
        else {
            panic!("the source's record does not point to the target");
        };
        assert_eq!(to, self.proxy.address());
        let record = self.away.store(NAME).load().unwrap().unwrap();
        assert!(
            matches!(record.state, State::Owner { epoch: 2, .. }),
            "{record:?}"
        );
        same(&self.away.disk(NAME).content(), expected);
    }

    /// The disk is where it was.
    pub(crate) fn check_home(&self, expected: &[u8]) {
        assert_eq!(self.owners.now(), ["home"]);
        let here = self.disk();
        assert_eq!((here.front(), here.mark()), (Front::Serving, None));
        assert!(!here.tapped());
        same(&here.content(), expected);
        let record = self.home.store(NAME).load().unwrap().unwrap();
        assert!(
            matches!(record.state, State::Owner { epoch: 1, .. }),
            "{record:?}"
        );
    }
}

pub(crate) fn listen(site: &Arc<Site>) -> TargetHandle {
    TargetDriver::start("tcp:127.0.0.1:0", Arc::<Site>::clone(site)).unwrap()
}

pub(crate) fn description(disk: &Arc<MemoryDisk>) -> DiskDescription {
    use mirror::net::DiskPort;
    DiskDescription {
        name: NAME.into(),
        size: disk.size(),
        block_size: 0,
        logical_sector: 512,
        physical_sector: 4096,
        format: DiskFormat::Raw,
    }
}

pub(crate) fn config(disk: &Arc<MemoryDisk>, to: String) -> SourceConfig {
    let mut config = SourceConfig::new(Uuid::new_v4(), to, description(disk));
    config.handover.automatic = true;
    config
}

pub(crate) fn same(left: &[u8], right: &[u8]) {
    assert_eq!(left.len(), right.len());
    let wrong: Vec<usize> = (0..left.len())
        .step_by(512)
        .filter(|at| left[*at..*at + 512] != right[*at..*at + 512])
        .collect();
    let first = wrong.first();
    assert!(
        wrong.is_empty(),
        "{} sectors differ, the first at {first:?}",
        wrong.len()
    );
}

pub(crate) fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !true_now() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn moved(session: &SourceHandle) -> SourceStatus {
    let Some(result) = session.wait_for(LONG) else {
        panic!("no end: {:?}", session.status());
    };
    result.unwrap()
}
