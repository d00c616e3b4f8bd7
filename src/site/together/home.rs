//! Disks that go home together: they came here one by one, each from the same group, and each begins to go back when it comes.
//!
//! The first one to come makes the places of all; nothing is sent before the others are there, or nobody waits for them any
//! more. Who comes later than that goes back by itself, until all of them begin anew. Must never put a disk into a group of
//! which a disk goes back by itself without having left it.

use std::path::Path;
use std::sync::PoisonError;

use mirror::files::{RECORD_SUFFIX, load_record, sidecar_path};
use mirror::group::of_lineages;
use mirror::saved::{Kin, Together};
use mirror::sequence::Place;
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

impl Groups {
    /// The place of that disk among those with which it goes back; `None` if it goes by itself.
    pub(crate) fn place_home(&self, home: &Home<'_>) -> Option<Place> {
        let id = of_lineages(home.together.to_vec());
        let together = Together {
            id,
            start: Uuid::new_v4(),
            disks: home.together.iter().map(|disk| kin(*disk, home)).collect(),
        };
        if home.together.len() < 2 || !together.holds(home.disk) {
            return None;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let start = match known.home.get(&id) {
            Some(start) if !known.is_over(*start, home.disk) => *start,
            _ => known.begin_home(together, home.to),
        };
        let seats = known.groups.get_mut(&start)?;
        let seat = seats
            .iter_mut()
            .find(|seat| seat.disk() == Some(home.disk))?;
        if seat.place.has_left() {
            return None;
        }
        seat.taken = true;
        let place = seat.place.clone();
        // A group in which it came back before has ended.
        known.came_back(home.disk, CameBack::In(start));
        Some(place)
    }

    /// The disk of that lineage has waited enough for those with which it goes back.
    pub(crate) fn waits_no_more(&self, disk: Uuid) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
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
    /// Make the places of a group that goes home, in place of those that were.
    fn begin_home(&mut self, together: Together, to: &str) -> Uuid {
        let (id, start) = (together.id, together.start);
        if let Some(before) = self.home.insert(id, start) {
            let seats = self.groups.remove(&before).unwrap_or_default();
            for seat in &seats {
                seat.place.end();
            }
        }
        let kin = together.disks.clone();
        let seat = |(place, kin): (Place, &Kin)| {
            let went = CameBack::Gone(to.to_owned());
            if handed_over(kin) == Some(went) {
                // It is at home already.
                place.leave();
            }
            Seat {
                place,
                to: to.to_owned(),
                taken: false,
            }
        };
        let places = Place::again(together, start).into_iter();
        let seats = places.zip(&kin).map(seat).collect();
        self.groups.insert(start, seats);
        start
    }

    /// Whether that group is none that the disk could join, or stay out of: all begin anew.
    fn is_over(&self, start: Uuid, disk: Uuid) -> bool {
        let seats = self.groups.get(&start).map_or(&[][..], Vec::as_slice);
        let mut its = seats.iter().filter(|seat| seat.disk() == Some(disk));
        let ended = seats.iter().any(|seat| seat.place.has_ended());
        let all_left = seats.iter().all(|seat| seat.place.has_left());
        ended || all_left || its.all(|seat| seat.taken && !seat.place.has_left())
    }
}

/// What is known here of a disk with which `home` came: it comes to the same folder.
fn kin(disk: Uuid, home: &Home<'_>) -> Kin {
    let path = if disk == home.disk {
        Some(home.path.to_owned())
    } else {
        home.path.parent().and_then(|folder| lies_in(folder, disk))
    };
    let name = path.as_deref().and_then(Path::file_name);
    let name = name.and_then(|name| name.to_str()).unwrap_or_default();
    let unknown = || disk.to_string();
    Kin {
        disk,
        name: name.to_owned(),
        path: path.map_or_else(unknown, |path| path.display().to_string()),
    }
}

/// The disk of that lineage in a folder.
fn lies_in(folder: &Path, disk: Uuid) -> Option<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut disks = names.filter_map(|name| {
        let name = name.to_str()?.strip_suffix(RECORD_SUFFIX)?;
        Some(folder.join(name))
    });
    disks.find(|path| {
        let record = load_record(&sidecar_path(path)).ok().flatten();
        record.is_some_and(|record| record.disk == disk)
    })
}

#[cfg(test)]
mod tests;
