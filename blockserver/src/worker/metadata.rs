//! What the file system is asked and told besides bytes, where the ring has no operation for it.

use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, ftruncate, seek};
use rustix::io::Errno;
use vdisk::engine::Extent;

use super::Worker;

/// The most extents that one look for holes answers.
const MAX_EXTENTS: usize = 4096;

impl Worker {
    /// Set the length of a disk's file.
    pub(super) fn set_length(&self, disk: u32, len: u64) -> io::Result<()> {
        let here = self.disks.get(disk);
        let here = here.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(ftruncate(here.disk.file(), len)?)
    }

    /// What the file system says of a range: data and holes, as far as it tells.
    pub(super) fn holes(&mut self, disk: u32, at: u64, len: u64) -> Vec<Extent> {
        let Some(here) = self.disks.get(disk) else {
            return vec![DATA.of(len)];
        };
        let file = here.disk.file();
        let known = match &mut self.agenda.data {
            Some((of, known)) if *of == disk => known,
            other => &mut other.insert((disk, 0..0)).1,
        };
        look(|place| seek(file, place), known, at, len)
    }
}

const DATA: Kind = Kind(true);
const HOLE: Kind = Kind(false);

/// Whether it is data.
struct Kind(bool);

impl Kind {
    fn of(&self, len: u64) -> Extent {
        Extent {
            len,
            allocated: self.0,
            zero: !self.0,
        }
    }
}

/// Data and holes of `len` bytes from `at`. What is `known` to be data is not asked for, and what is found out is known: a
/// file system that goes from page to page for its answer does it once for many small parts of one large one.
fn look(
    seek: impl Fn(SeekFrom) -> Result<u64, Errno>,
    known: &mut Range<u64>,
    at: u64,
    len: u64,
) -> Vec<Extent> {
    let end = at + len;
    let mut extents = Vec::new();
    let mut next = at;
    while next < end && extents.len() < MAX_EXTENTS {
        if known.contains(&next) {
            let data = known.end.min(end) - next;
            extents.push(DATA.of(data));
            next += data;
            continue;
        }
        let data_at = match seek(SeekFrom::Data(next)) {
            Ok(found) => found,
            Err(Errno::NXIO) => end,
            // A file system that does not tell: all of it may hold data.
            Err(_) => next,
        };
        if data_at > next {
            let hole = data_at.min(end) - next;
            extents.push(HOLE.of(hole));
            next += hole;
        }
        if next < end {
            let hole_at = seek(SeekFrom::Hole(next)).unwrap_or(end);
            *known = next..hole_at.max(next + 1);
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const KIB: u64 = 1 << 10;

    /// Data from 8 to 64 KiB and from 72 to 80, in a file of 96.
    fn place(asked: SeekFrom) -> Result<u64, Errno> {
        let runs = [8 * KIB..64 * KIB, 72 * KIB..80 * KIB];
        match asked {
            SeekFrom::Data(at) => {
                let run = runs.iter().find(|run| at < run.end);
                run.map(|run| at.max(run.start)).ok_or(Errno::NXIO)
            }
            SeekFrom::Hole(at) => {
                let run = runs.iter().find(|run| run.contains(&at));
                Ok(run.map_or(at, |run| run.end))
            }
            _ => Err(Errno::INVAL),
        }
    }

    #[test]
    fn a_file_that_is_looked_at_in_small_parts_is_told_the_same_and_asked_for_each_run_of_data_once()
     {
        let hole_seeks = Cell::new(0);
        let seek = |asked| {
            hole_seeks.set(hole_seeks.get() + u32::from(matches!(asked, SeekFrom::Hole(_))));
            place(asked)
        };
        let mut known = 0..0;
        let mut all: Vec<Extent> = Vec::new();
        for at in (0..96 * KIB).step_by(KIB as usize) {
            for extent in look(seek, &mut known, at, KIB) {
                match all.last_mut() {
                    Some(last) if last.allocated == extent.allocated => last.len += extent.len,
                    _ => all.push(extent),
                }
            }
        }
        let told: Vec<_> = all.iter().map(|e| (e.len / KIB, e.allocated)).collect();
        let wanted = [(8, false), (56, true), (8, false), (8, true), (16, false)];
        assert_eq!(told, wanted);
        assert_eq!(hole_seeks.get(), 2);
        let at_once = look(place, &mut (0..0), 0, 96 * KIB);
        assert_eq!(at_once, all);
    }

    #[test]
    fn a_file_system_that_does_not_tell_has_data_everywhere() {
        let refuses = |_| Err(Errno::INVAL);
        let told = look(refuses, &mut (0..0), 4 * KIB, 8 * KIB);
        assert_eq!(told, [DATA.of(8 * KIB)]);
    }
}
