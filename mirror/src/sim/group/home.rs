//! Disks that go home: the host that has them was handed them over one by one, and keeps them in step where they came from.
//!
//! Each arrives by itself, its clients write to it at once, and nothing is sent before the last one has arrived.

use uuid::Uuid;

use super::super::host::Front;
use super::super::world::SOURCE;
use super::back::{Back, How};
use super::{Event, GROUP, World, name_of};
use crate::clock::Micros;
use crate::record::{Ownership, State};
use crate::saved::{Kin, Together};
use crate::sequence::Place;
use crate::session::Left;

/// Under which the disks arrive.
const EPOCH: u64 = 2;

impl World {
    /// All disks have been handed over by the host that is the target now, and arrive one by one.
    pub(super) fn come_from_home(&mut self) {
        self.home = true;
        self.stats.home += 1;
        let kin = |disk| Kin {
            disk: Uuid::from_u128(1 + disk as u128),
            name: name_of(disk),
            path: name_of(disk),
        };
        let start = self.fresh();
        let together = Together {
            id: GROUP,
            start,
            disks: (0..self.disks.len()).map(kin).collect(),
            all: Vec::new(),
        };
        let places = Place::again(together, start);
        self.count_by(&places, 0);
        for (disk, place) in places.into_iter().enumerate() {
            self.was_left(disk);
            let life = self.disks[disk].hosts[SOURCE].life;
            let how = How::Arrives;
            self.disks[disk].back = Some(Back { place, how });
            let span = Micros(self.rng.below(60_000));
            self.after(span, Event::Back(disk, life));
        }
    }

    /// What both hosts have of a disk that was handed over. Of some the other host has lost what it handed over.
    fn was_left(&mut self, disk: usize) {
        let (session, other) = (self.fresh(), self.fresh());
        let same = self.rng.percent(75);
        let lineage = Uuid::from_u128(1 + disk as u128);
        let record = |state| {
            Some(Ownership {
                disk: lineage,
                state,
            })
        };
        let at = self.rng.below(self.plan.size as u64 / 4096) * 4096;
        let [source, target] = &mut self.disks[disk].hosts;
        source.front = Front::Closed;
        source.record = record(State::Owner {
            epoch: EPOCH,
            session: Some(session),
        });
        target.record = record(State::Released {
            epoch: EPOCH,
            session: if same { session } else { other },
            attempt: 1,
            to: "a".into(),
        });
        target.image = true;
        target.disk = source.disk.clone();
        if !same {
            target.disk.write(at, &[7; 4096]);
            target.disk.flushed(u64::MAX);
        }
    }

    /// A disk has arrived: a session is begun with it before anybody changes it.
    pub(super) fn arrives(&mut self, disk: usize, place: Place) {
        let record = self.disks[disk].hosts[SOURCE].record.as_ref();
        let Some(State::Owner {
            session: Some(session),
            ..
        }) = record.map(|record| record.state.clone())
        else {
            return;
        };
        let left = Left {
            session,
            epoch: EPOCH,
        };
        self.begin_with(disk, place, |config| config.replica.left = Some(left));
    }
}
