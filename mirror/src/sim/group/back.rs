//! Sessions of all disks are begun, and go on when their source comes back: disk by disk, some without what was kept of them.
//!
//! Must never let a client write to a disk that goes on before its session sees that.

use std::sync::Arc;

use uuid::Uuid;

use super::super::host::{Front, Machine};
use super::super::plan::Sessions;
use super::super::world::{SOURCE, TARGET};
use super::{Event, GROUP, World, is_joined, name_of};
use crate::clock::Micros;
use crate::error::Result;
use crate::group::Gathering;
use crate::saved::{Kin, Together};
use crate::sequence::Place;
use crate::session::{
    Keep, Sabotage, Source, SourceConfig, SourceEvent, Target, TargetConfig, TargetEvent,
};
use crate::tracker::Tracker;

/// A disk that is about to be served.
#[derive(Debug)]
pub(super) struct Back {
    pub(super) place: Place,
    pub(super) how: How,
}

/// How a disk comes into service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Its session goes on.
    Kept,
    /// The same, but what was kept of it cannot be read.
    Lost,
    /// It has just been handed over to this host, which keeps it in step where it came from.
    Arrives,
}

impl World {
    /// A name that nothing else has.
    pub(super) fn fresh(&mut self) -> Uuid {
        self.count += 1;
        Uuid::from_u128(1 << 64 | u128::from(self.count))
    }

    /// Mirror all disks together.
    pub(super) fn start_sessions(&mut self) {
        self.stats.sessions += 1;
        let kin = |disk| Kin {
            disk: Uuid::from_u128(1 + disk as u128),
            name: name_of(disk),
            path: name_of(disk),
        };
        let start = Uuid::from_u128(1000 + u128::from(self.stats.sessions));
        let here: Vec<usize> = (0..self.disks.len())
            .filter(|disk| !self.is_released(*disk))
            .collect();
        let together = Together {
            id: GROUP,
            start,
            disks: here.iter().copied().map(kin).collect(),
            all: Vec::new(),
        };
        let places = Place::again(together, start);
        self.count_by(&places, 0);
        for (disk, place) in here.into_iter().zip(places) {
            let compare = self.home || self.rng.percent(80);
            self.begin(disk, place, compare);
        }
    }

    /// The disks count by that from now on, in that life of their group.
    pub(super) fn count_by(&mut self, places: &[Place], life: u64) {
        let Some(place) = places.first() else { return };
        let start = place.together.start;
        self.history.moments.begin(start, life << 40);
        self.history.current = start;
        self.history.life = life;
        self.history.sequence = Arc::clone(&place.sequence);
        self.history.ended_at = None;
    }

    /// Begin a session of a disk.
    fn begin(&mut self, disk: usize, place: Place, compare: bool) {
        self.begin_with(disk, place, |config| config.replica.compare = compare);
    }

    pub(super) fn begin_with(
        &mut self,
        disk: usize,
        place: Place,
        with: impl FnOnce(&mut SourceConfig),
    ) {
        let session = self.fresh();
        let mut config = self.config(disk, session, place);
        with(&mut config);
        self.run_source(disk, config, |config, record, tracker| {
            Source::new(config, record, tracker)
        });
    }

    fn config(&mut self, disk: usize, session: Uuid, place: Place) -> SourceConfig {
        let start = place.together.start;
        self.history.of.insert(session, start);
        let mut config = self.plan.config.clone();
        config.session = session;
        config.description.name = name_of(disk);
        if self.plan.kept != Sessions::Nothing {
            let spare = self.fresh();
            self.history.of.insert(spare, start);
            config.keep = Keep::Session { spare };
        }
        config.replica.group = Some(place);
        config
    }

    fn run_source(
        &mut self,
        disk: usize,
        config: SourceConfig,
        made: impl FnOnce(SourceConfig, &crate::record::Ownership, Arc<Tracker>) -> Result<Source>,
    ) {
        let (size, queue) = (self.plan.size as u64, config.limits.queue);
        let sequence = Arc::clone(&self.history.sequence);
        let tracker = Arc::new(Tracker::in_sequence(size, queue, sequence));
        let Some(record) = self.disks[disk].hosts[SOURCE].record.clone() else {
            return;
        };
        match made(config, &record, Arc::clone(&tracker)) {
            Ok(source) => {
                self.disks[disk].tracker = Some(tracker);
                self.disks[disk].sources += 1;
                self.disks[disk].hosts[SOURCE].machine = Machine::Source(Box::new(source));
                self.source_event(disk, SourceEvent::Tick);
                self.arm(disk, SOURCE);
            }
            Err(e) => self.failure(&format!("cannot start a session: {e}")),
        }
    }

    /// The group of which every disk that is left has kept a session, and which life it was in when that of `known` was kept.
    fn kept_group(&self, known: usize) -> Option<(Together, u64)> {
        let left = (0..self.disks.len()).filter(|disk| !self.is_released(*disk));
        let kept = left.map(|disk| self.disks[disk].hosts[SOURCE].kept.session.as_ref());
        let kept: Vec<_> = kept.collect::<Option<_>>()?;
        let groups = kept.iter().map(|saved| saved.group.as_ref());
        let mut groups = groups.collect::<Option<Vec<_>>>()?.into_iter();
        let known = self.disks.get(known)?.hosts[SOURCE].kept.session.as_ref()?;
        let its = known.group.as_ref()?;
        let same = groups.all(|group| group.start == its.start);
        same.then(|| (its.clone(), known.life))
    }

    fn source_restarts(&mut self) {
        // Of one of them at least what was kept can be read: else nobody knows of a group.
        let known = self.rng.below(self.disks.len() as u64) as usize;
        let left = |disk: &usize| !self.is_released(*disk);
        let known = (known..self.disks.len()).chain(0..known).find(left);
        let group = known.and_then(|known| self.kept_group(known));
        let goes_on = group.filter(|_| self.rng.percent(85));
        let Some((together, mut life)) = goes_on else {
            for disk in 0..self.disks.len() {
                self.comes_back_alone(disk);
            }
            return;
        };
        self.stats.parted_back += u64::from(self.history.parting.is_some());
        let name = self.fresh();
        let places = Place::again(together, name);
        let lost: Vec<bool> = (0..self.disks.len())
            .map(|disk| Some(disk) != known && self.rng.percent(8))
            .collect();
        for (disk, lost) in self.disks.iter().zip(&lost) {
            let kept = disk.hosts[SOURCE].kept.session.as_ref();
            life = life.max(kept.filter(|_| !lost).map_or(0, |saved| saved.life));
        }
        self.count_by(&places, life + 1);
        for (disk, lost) in lost.into_iter().enumerate() {
            let lineage = Uuid::from_u128(1 + disk as u128);
            let its = |place: &&Place| place.together.disks[place.place].disk == lineage;
            let place = places.iter().find(its).cloned();
            if self.is_released(disk) {
                place.inspect(Place::leave);
                self.comes_back_alone(disk);
                continue;
            }
            let Some(place) = place else {
                // It had left when its record was not durable yet.
                self.comes_back_alone(disk);
                continue;
            };
            let span = self.rng.below(60_000);
            let host = &mut self.disks[disk].hosts[SOURCE];
            host.up = true;
            let life = host.life;
            let how = if lost { How::Lost } else { How::Kept };
            self.disks[disk].back = Some(Back { place, how });
            self.after(Micros(span), Event::Back(disk, life));
        }
    }

    /// A disk is served again without a session of its group: its clients are sent on, if it was handed over.
    fn comes_back_alone(&mut self, disk: usize) {
        let gone = self.is_released(disk);
        let host = &mut self.disks[disk].hosts[SOURCE];
        host.up = true;
        // Where one has ended all have.
        host.kept.session = None;
        if gone {
            return self.send_on(disk);
        }
        host.mark = None;
        host.front = Front::Serving;
        self.start_waiting(disk);
    }

    /// A disk is served again: its session goes on, or waits for the others.
    pub(super) fn disk_is_back(&mut self, disk: usize, life: u64) {
        if self.disks[disk].hosts[SOURCE].life != life {
            return;
        }
        let Some(Back { place, how }) = self.disks[disk].back.take() else {
            return;
        };
        self.history.ended_at = None;
        let size = self.plan.size as u64;
        let forgets = self.plan.sabotage == Some(Sabotage::ForgetWhatChanged);
        let found = self.disks[disk].hosts[SOURCE].kept.found(size, forgets);
        if how == How::Arrives {
            self.arrives(disk, place);
        } else if let Some((saved, parts)) = found.filter(|_| how == How::Kept) {
            self.stats.resumed += 1;
            let unknown = self.rng.percent(8);
            let parts = if unknown { vec![(0, size)] } else { parts };
            let config = self.config(disk, saved.session, place);
            self.run_source(disk, config, |config, record, tracker| {
                Source::resumed(config, record, tracker, (&saved, &parts))
            });
        } else {
            self.stats.lost += 1;
            self.begin(disk, place, true);
        }
        self.disks[disk].hosts[SOURCE].mark = None;
        self.disks[disk].hosts[SOURCE].front = Front::Serving;
        self.start_waiting(disk);
    }

    pub(super) fn restart(&mut self, side: usize) {
        if side == SOURCE {
            return self.source_restarts();
        }
        for disk in 0..self.disks.len() {
            let host = &mut self.disks[disk].hosts[side];
            host.up = true;
            let (record, image) = (host.record.clone(), host.image);
            let known = self.record.as_ref().filter(|_| is_joined(host));
            let config = TargetConfig {
                window: 2 << 20,
                in_use: self.home,
                cut: known.and_then(|known| known.cut_of(&name_of(disk))),
                sabotage: self.plan.sabotage,
                ..TargetConfig::default()
            };
            let target = Target::new(config, record, image);
            self.disks[disk].hosts[TARGET].machine = Machine::Target(Box::new(target));
        }
        self.gathering = Gathering::new(GROUP, self.record.clone());
        self.gathering.of_one = self.plan.sabotage == Some(Sabotage::CutOfOne);
        for disk in 0..self.disks.len() {
            self.target_event(disk, TargetEvent::Tick);
            self.arm(disk, TARGET);
        }
    }
}
