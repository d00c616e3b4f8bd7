//! Disks that go home together: they came here one by one, each from the same group, and each begins to go back when it comes.
//!
//! The first one to come makes the places of all; nothing is sent before the others are there, or nobody waits for them any
//! more. Who comes later than that goes back by itself, until all of them begin anew. Must never have two starts of one group
//! go on at a time: at home they would write the same record.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use mirror::files::{RECORD_SUFFIX, load_record, sidecar_path};
use mirror::group::of_lineages;
use mirror::saved::{Kin, Together};
use mirror::sequence::Place;
use mirror::wire::MAX_DISKS;
use uuid::Uuid;

use super::{CameBack, Groups, Known, Seat, handed_over};

/// A disk that may go home.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Home<'a> {
    /// Its lineage.
    pub(crate) disk: Uuid,
    pub(crate) path: &'a Path,
    /// The lineages of those with which it came, as their old host said: perhaps of none, and perhaps nonsense.
    pub(crate) together: &'a [Uuid],
    /// Where it goes.
    pub(crate) to: &'a str,
}

impl Home<'_> {
    /// Whether it came with others, and can have come with those.
    fn came_with_others(&self) -> bool {
        let each: BTreeSet<&Uuid> = self.together.iter().collect();
        let count = self.together.len();
        let sound = each.len() == count && each.contains(&self.disk);
        sound && (2..=usize::from(MAX_DISKS)).contains(&count)
    }
}

impl Groups {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place of that disk among those with which it goes back; `None` if it goes by itself.
    pub(crate) fn place_home(&self, home: &Home<'_>) -> Option<Place> {
        if !home.came_with_others() {
            return None;
        }
        let id = of_lineages(home.together.to_vec());
        let mut known = self.lock();
        let start = match known.home.get(&id) {
            Some(start) if !known.is_over(*start, home.disk) => *start,
            _ => known.begin_home(id, home),
        };
        let seats = known.groups.get_mut(&start)?;
        let mut seats = seats.iter_mut();
        let seat = seats.find(|seat| seat.disk() == Some(home.disk))?;
        if seat.place.has_left() {
            return None;
        }
        seat.taken = true;
        let place = seat.place.clone();
        // A group in which it came back before has ended.
        known.came_back(home.disk, CameBack::In(start));
        Some(place)
    }

    /// Nothing came of the session for which that disk was given its place.
    pub(crate) fn gives_back(&self, disk: Uuid) {
        for seat in self.lock().seats_home() {
            if seat.disk() == Some(disk) {
                seat.taken = false;
            }
        }
    }

    /// That disk goes by itself, whatever the others do.
    pub(crate) fn goes_alone(&self, disk: Uuid) {
        for seat in self.lock().seats_home() {
            if seat.disk() == Some(disk) && !seat.taken {
                seat.place.leave();
            }
        }
    }

    /// The disk of that lineage has waited enough for those with which it goes back.
    pub(crate) fn waits_no_more(&self, disk: Uuid) {
        let known = self.lock();
        for start in known.home.values() {
            let seats = known.groups.get(start).map_or(&[][..], Vec::as_slice);
            let waits = |seat: &Seat| seat.taken && seat.disk() == Some(disk);
            if seats.iter().any(waits) {
                let absent = seats.iter().filter(|seat| !seat.taken);
                absent.for_each(|seat| seat.place.leave());
            }
        }
    }
}

impl Known {
    /// The places of all that go home.
    fn seats_home(&mut self) -> impl Iterator<Item = &mut Seat> {
        let home = &self.home;
        let groups = self.groups.iter_mut();
        let groups = groups.filter(|(start, _)| home.values().any(|home| home == *start));
        groups.flat_map(|(_, seats)| seats)
    }

    /// Make the places of that group, in place of those that were.
    fn begin_home(&mut self, id: Uuid, of: &Home<'_>) -> Uuid {
        if let Some(before) = self.home.remove(&id) {
            for seat in self.groups.remove(&before).unwrap_or_default() {
                seat.place.end();
            }
        }
        self.forget_what_is_over();
        let start = Uuid::new_v4();
        let together = Together {
            id,
            start,
            disks: kin(of),
            all: of.together.to_vec(),
        };
        let kin = together.disks.clone();
        let seat = |(place, kin): (Place, &Kin)| {
            let went = CameBack::Gone(of.to.to_owned());
            if handed_over(kin) == Some(went) {
                // It is at home already.
                place.leave();
            }
            Seat {
                place,
                to: of.to.to_owned(),
                taken: false,
            }
        };
        let places = Place::again(together, start).into_iter();
        let seats = places.zip(&kin).map(seat).collect();
        self.groups.insert(start, seats);
        self.home.insert(id, start);
        start
    }

    /// Whoever brings disks here makes up as many groups as he likes.
    fn forget_what_is_over(&mut self) {
        let groups = &mut self.groups;
        self.home.retain(|_, start| {
            let seats = groups.get(start).map_or(&[][..], Vec::as_slice);
            let goes_on = |seat: &Seat| !seat.place.has_left() && !seat.place.has_ended();
            let keep = seats.iter().any(goes_on);
            if !keep {
                groups.remove(start);
            }
            keep
        });
    }

    /// Whether that group is none that the disk could join, or stay out of: all begin anew.
    fn is_over(&self, start: Uuid, disk: Uuid) -> bool {
        let seats = self.groups.get(&start).map_or(&[][..], Vec::as_slice);
        let mut its = seats.iter().filter(|seat| seat.disk() == Some(disk));
        let ended = seats.iter().any(|seat| seat.place.has_ended());
        let all_left = seats.iter().all(|seat| seat.place.has_left());
        // Of one that came back without it, it is none.
        ended || all_left || its.all(|seat| seat.taken && !seat.place.has_left())
    }
}

/// What is known here of the disks with which that one came: they come to the same folder.
fn kin(home: &Home<'_>) -> Vec<Kin> {
    let folder = home.path.parent().unwrap_or(Path::new("."));
    let mut found = lie_in(folder, home.together);
    found.insert(home.disk, home.path.to_owned());
    let kin = |disk: &Uuid| {
        let path = found.get(disk);
        let name = path.and_then(|path| path.file_name()?.to_str());
        let unknown = || disk.to_string();
        Kin {
            disk: *disk,
            name: name.unwrap_or_default().to_owned(),
            path: path.map_or_else(unknown, |path| path.display().to_string()),
        }
    };
    home.together.iter().map(kin).collect()
}

/// Those of the disks that lie in a folder.
fn lie_in(folder: &Path, disks: &[Uuid]) -> BTreeMap<Uuid, PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name());
    let found = names.filter_map(|name| {
        let path = folder.join(name.to_str()?.strip_suffix(RECORD_SUFFIX)?);
        let record = load_record(&sidecar_path(&path)).ok().flatten()?;
        disks.contains(&record.disk).then_some((record.disk, path))
    });
    found.collect()
}

#[cfg(test)]
mod tests;
