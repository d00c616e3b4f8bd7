//! Groups of disks whose moves go on when their server comes back.
//!
//! The disks come back one by one, in any order, and what is kept of each names the others. The first one makes the places
//! of the group anew, each other one takes its own. Who is served here and has no part in it any more either was handed
//! over, and is left out, or is mirrored no more, which ends the moves of all. Who is not served here is waited for.
//!
//! Must never have a disk go on while another one of its group is written to here and is not mirrored with it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use mirror::files::{load_record, sidecar_path};
use mirror::record::State;
use mirror::saved::{Kin, Together};
use mirror::sequence::Place;
use uuid::Uuid;

/// How a disk that is served here came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CameBack {
    /// In the group that was started by that name.
    In(Uuid),
    /// It is in no group that goes on.
    Alone,
    /// It was handed over.
    Gone,
}

/// The groups that came back, by the names of their starts, and who came back at all.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    groups: BTreeMap<Uuid, Vec<Seat>>,
    disks: BTreeMap<Uuid, CameBack>,
}

#[derive(Debug)]
struct Seat {
    place: Place,
    taken: bool,
}

impl Seat {
    fn disk(&self) -> Option<Uuid> {
        let kin = self.place.together.disks.get(self.place.place);
        kin.map(|kin| kin.disk)
    }

    /// What the group makes of its disk, which came back like that.
    fn hear(&self, of: CameBack) {
        match of {
            CameBack::In(start) if start == self.place.together.start => {}
            CameBack::In(_) | CameBack::Alone => self.place.end(),
            CameBack::Gone => self.place.leave(),
        }
    }
}

impl Groups {
    /// The place of the disk of that lineage in the group of which it has kept that it goes on in it; `None` if the others
    /// know nothing of it, or it has been given before.
    pub(super) fn place_of(&self, disk: Uuid, together: &Together) -> Option<Place> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let start = together.start;
        known.came_back(disk, CameBack::In(start));
        if !known.groups.contains_key(&start) {
            let seats = known.seats(together);
            known.groups.insert(start, seats);
        }
        let seats = known.groups.get_mut(&start)?;
        let seat = seats
            .iter_mut()
            .find(|seat| seat.disk() == Some(disk) && !seat.taken)?;
        seat.taken = true;
        Some(seat.place.clone())
    }

    /// A disk of that lineage is served here, and goes on in no group.
    pub(super) fn is_alone(&self, disk: Uuid) {
        self.hear(disk, CameBack::Alone);
    }

    /// A disk of that lineage was handed over.
    pub(super) fn is_gone(&self, disk: Uuid) {
        self.hear(disk, CameBack::Gone);
    }

    fn hear(&self, disk: Uuid, how: CameBack) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.came_back(disk, how);
    }
}

impl Known {
    fn came_back(&mut self, disk: Uuid, how: CameBack) {
        self.disks.insert(disk, how);
        let seats = self.groups.values().flatten();
        let its = seats.filter(|seat| seat.disk() == Some(disk));
        its.for_each(|seat| seat.hear(how));
    }

    /// The places of a group of which the first disk came back just now.
    fn seats(&self, together: &Together) -> Vec<Seat> {
        // Numbers that were given out before the crash are no guide for those from now on.
        let places = Place::again(together.clone(), Uuid::new_v4());
        let seats = places.into_iter().zip(&together.disks);
        let seats = seats.map(|(place, kin)| {
            let seat = Seat {
                place,
                taken: false,
            };
            match self.disks.get(&kin.disk) {
                Some(how) => seat.hear(*how),
                // Nobody has to serve what was handed over.
                None if was_handed_over(kin) => seat.hear(CameBack::Gone),
                None => {}
            }
            seat
        });
        seats.collect()
    }
}

/// Whether its record, where it was when the group was started, says so.
fn was_handed_over(kin: &Kin) -> bool {
    let record = load_record(&sidecar_path(Path::new(&kin.path)));
    let record = record.ok().flatten();
    record.is_some_and(|record| {
        record.disk == kin.disk && matches!(record.state, State::Released { .. })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn together(start: u128, disks: u128) -> Together {
        let kin = |disk| Kin {
            disk: Uuid::from_u128(disk),
            name: format!("{disk}.vhdx"),
            path: format!("/nowhere/{disk}.vhdx"),
        };
        Together {
            id: Uuid::from_u128(7),
            start: Uuid::from_u128(start),
            disks: (1..=disks).map(kin).collect(),
        }
    }

    fn place(groups: &Groups, disk: u128, together: &Together) -> Option<Place> {
        groups.place_of(Uuid::from_u128(disk), together)
    }

    #[test]
    fn disks_that_come_back_one_by_one_count_by_one_sequence_each_in_its_own_place() {
        let (groups, both) = (Groups::default(), together(1, 2));
        let second = place(&groups, 2, &both).expect("a place");
        assert_eq!(second.awaited().len(), 2, "no session is there yet");
        let first = place(&groups, 1, &both).expect("a place");
        assert_eq!((first.place, second.place), (0, 1));
        assert!(std::sync::Arc::ptr_eq(&first.sequence, &second.sequence));
        assert!(!first.has_ended());
        assert!(place(&groups, 1, &both).is_none(), "it is taken");
        assert!(place(&groups, 3, &both).is_none(), "it is of no such group");
    }

    #[test]
    fn who_is_served_without_its_group_ends_that_whichever_of_them_comes_first() {
        for alone_first in [false, true] {
            let (groups, both) = (Groups::default(), together(1, 2));
            if alone_first {
                groups.is_alone(Uuid::from_u128(2));
            }
            let first = place(&groups, 1, &both).expect("a place");
            if !alone_first {
                groups.is_alone(Uuid::from_u128(2));
            }
            assert!(first.has_ended(), "{alone_first}");
        }
    }

    #[test]
    fn who_was_handed_over_is_waited_for_no_more_whichever_of_them_comes_first() {
        for gone_first in [false, true] {
            let (groups, both) = (Groups::default(), together(1, 2));
            if gone_first {
                groups.is_gone(Uuid::from_u128(2));
            }
            let first = place(&groups, 1, &both).expect("a place");
            if !gone_first {
                groups.is_gone(Uuid::from_u128(2));
            }
            assert!(!first.has_ended());
            assert_eq!(first.awaited(), ["/nowhere/1.vhdx"]);
        }
    }

    #[test]
    fn a_disk_that_was_started_anew_with_others_ends_the_group_that_was_before() {
        let groups = Groups::default();
        let old = place(&groups, 1, &together(1, 2)).expect("a place");
        let new = place(&groups, 2, &together(9, 2)).expect("a place");
        assert!(old.has_ended());
        // The first one came back in the old group, so it is missing in the new one.
        assert!(new.has_ended());
    }
}
