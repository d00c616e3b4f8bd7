//! Groups of disks whose moves go on when their server comes back.
//!
//! The disks come back one by one, in any order, and what is kept of each names the others. The first one makes the places
//! of the group anew, each other one takes its own. Who is served here and has no part in it any more either was handed
//! over, and is left out, or is mirrored no more, which ends the moves of all. Who is not served here is waited for.
//!
//! Must never have a disk go on while another one is written to here that goes on with it by what was kept of either, and is not
//! mirrored. One of which the others kept that it was being handed over is none of theirs.

mod home;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use mirror::files::{load_record, sidecar_path};
use mirror::record::{Ownership, State};
use mirror::saved::{Kin, Saved, Together};
use mirror::sequence::Place;
use uuid::Uuid;

pub(crate) use self::home::Home;

/// How a disk that is served here came back.
#[derive(Clone, Debug, PartialEq, Eq)]
enum CameBack {
    /// In the group that was started by that name.
    In(Uuid),
    /// It is in no group that goes on.
    Alone,
    /// It was handed over to that target.
    Gone(String),
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
    /// The newest start of each group that goes home from here.
    home: BTreeMap<Uuid, Uuid>,
}

#[derive(Debug)]
struct Seat {
    place: Place,
    /// Where the group goes.
    to: String,
    taken: bool,
}

impl Seat {
    fn disk(&self) -> Option<Uuid> {
        let kin = self.place.together.disks.get(self.place.place);
        kin.map(|kin| kin.disk)
    }

    /// What the group makes of its disk, which came back like that.
    fn hear(&self, of: &CameBack) {
        match of {
            CameBack::In(start) if *start == self.place.together.start => {}
            CameBack::Gone(to) if *to == self.to => self.place.leave(),
            // To another target it did not go with the others.
            CameBack::In(_) | CameBack::Alone | CameBack::Gone(_) => self.place.end(),
        }
    }
}

impl Groups {
    /// The place of a disk in the group of which it has kept that it goes on in it; `None` if the others know nothing of it
    /// any more, or it has been given before. `goes_home`: they go back to where they came from.
    pub(super) fn place_of(&self, saved: &Saved, goes_home: bool) -> Option<Place> {
        let together = saved.group.as_ref()?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let start = together.start;
        known.came_back(saved.disk, CameBack::In(start));
        if !known.groups.contains_key(&start) {
            let seats = known.seats(together, &saved.wishes.to);
            known.groups.insert(start, seats);
        }
        if goes_home {
            // Who comes later finds it, and no other one goes on beside it.
            let before = known.home.insert(together.id, start);
            let other = before.filter(|before| *before != start);
            for seat in other
                .and_then(|other| known.groups.remove(&other))
                .into_iter()
                .flatten()
            {
                seat.place.end();
            }
        }
        let seats = known.groups.get_mut(&start)?;
        for seat in seats.iter().filter(|seat| !seat.taken) {
            // Who comes later may know of more that were handed over.
            let names = |disk| together.disks.iter().any(|kin| kin.disk == disk);
            if !seat.disk().is_some_and(names) {
                seat.place.leave();
            }
        }
        let seat = seats.iter_mut().find(|seat| {
            let its = seat.disk() == Some(saved.disk);
            its && !seat.taken && !seat.place.has_left()
        })?;
        seat.taken = true;
        Some(seat.place.clone())
    }

    /// A disk of that lineage is served here, and goes on in no group.
    pub(super) fn is_alone(&self, disk: Uuid) {
        self.hear(disk, CameBack::Alone);
    }

    /// The disk of that record, which is served here, was handed over.
    pub(super) fn is_gone(&self, record: &Ownership) {
        if let State::Released { to, .. } = &record.state {
            self.hear(record.disk, CameBack::Gone(to.clone()));
        }
    }

    fn hear(&self, disk: Uuid, how: CameBack) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.came_back(disk, how);
    }
}

impl Known {
    fn came_back(&mut self, disk: Uuid, how: CameBack) {
        let seats = self.groups.values().flatten();
        let its = seats.filter(|seat| seat.disk() == Some(disk));
        its.for_each(|seat| seat.hear(&how));
        self.disks.insert(disk, how);
    }

    /// The places of a group of which the first disk came back just now.
    fn seats(&self, together: &Together, to: &str) -> Vec<Seat> {
        // Numbers that were given out before the crash are no guide for those from now on.
        let places = Place::again(together.clone(), Uuid::new_v4());
        let seats = places.into_iter().zip(&together.disks);
        let seats = seats.map(|(place, kin)| {
            let seat = Seat {
                place,
                to: to.to_owned(),
                taken: false,
            };
            // Nobody has to serve what was handed over.
            let known = self.disks.get(&kin.disk).cloned();
            if let Some(how) = known.or_else(|| handed_over(kin)) {
                seat.hear(&how);
            }
            seat
        });
        seats.collect()
    }
}

/// Whether its record, where it was when the group was started, says that it was handed over.
fn handed_over(kin: &Kin) -> Option<CameBack> {
    let record = load_record(&sidecar_path(Path::new(&kin.path)));
    let record = record.ok().flatten()?;
    match record.state {
        State::Released { to, .. } if record.disk == kin.disk => Some(CameBack::Gone(to)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use mirror::arbiter::Switchover;
    use mirror::saved::Wishes;
    use mirror::timetable::Timetable;

    use super::*;

    const TO: &str = "tcp:there:9000";

    /// What disks 1 to `disks` keep of a group.
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
            all: (1..=disks).map(Uuid::from_u128).collect(),
        }
    }

    fn place(groups: &Groups, disk: u128, together: &Together) -> Option<Place> {
        groups.place_of(&saved(disk, together), false)
    }

    /// What is kept of that disk in that group.
    pub(super) fn saved(disk: u128, together: &Together) -> Saved {
        let wishes = Wishes {
            to: TO.into(),
            name: "disk".into(),
            automatic: false,
            follow: true,
            max_pause: 0,
            rate: Timetable::default(),
            switchover: Switchover::Safe,
            arbiter: None,
            deadline: None,
            max_slowdown: None,
        };
        Saved {
            session: Uuid::from_u128(100 + disk),
            disk: Uuid::from_u128(disk),
            epoch: 1,
            life: 0,
            size: 1 << 20,
            wishes,
            checkpoint: None,
            rest: Vec::new(),
            group: Some(together.clone()),
        }
    }

    /// That disk was handed over.
    fn gone(disk: u128, to: &str) -> Ownership {
        let state = State::Released {
            epoch: 2,
            session: Uuid::from_u128(100 + disk),
            attempt: 1,
            to: to.into(),
        };
        let disk = Uuid::from_u128(disk);
        Ownership { disk, state }
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
                groups.is_gone(&gone(2, TO));
            }
            let first = place(&groups, 1, &both).expect("a place");
            if !gone_first {
                groups.is_gone(&gone(2, TO));
            }
            assert!(!first.has_ended());
            assert_eq!(first.awaited(), ["/nowhere/1.vhdx"]);
        }
    }

    #[test]
    fn who_was_handed_over_to_another_target_did_not_go_with_its_group() {
        let (groups, both) = (Groups::default(), together(1, 2));
        groups.is_gone(&gone(2, "/elsewhere/2.vhdx"));
        assert!(place(&groups, 1, &both).expect("a place").has_ended());
    }

    #[test]
    fn who_comes_later_and_knows_of_fewer_lets_the_others_wait_for_those_alone() {
        let groups = Groups::default();
        let all = together(1, 3);
        let mut fewer = all.clone();
        fewer.disks.remove(1);
        let third = place(&groups, 3, &all).expect("a place");
        place(&groups, 1, &fewer).expect("a place");
        let awaited = ["/nowhere/1.vhdx", "/nowhere/3.vhdx"];
        assert_eq!(third.awaited(), awaited, "of which no session is there yet");
        // It was about to be handed over, and was not.
        assert!(place(&groups, 2, &all).is_none());
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
