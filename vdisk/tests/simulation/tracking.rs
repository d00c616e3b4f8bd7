//! What must be known of changes: for each checkpoint, what the disk held then, and what was asked of it
//! since. Whatever differs now must be listed; after a clean life, nothing else.

use std::collections::{BTreeMap, BTreeSet};

use vdisk::disk::{OpenOptions, open_child_engine_with};
use vdisk::engine::Request;
use vdisk::format::track::CheckpointName;
use vdisk::storage::MemoryStorage;
use vdisk::track::{self, Changed, Since, changed};

use super::model::{Model, SECTOR, Stamp};
use super::random::Random;
use super::world::whole_stamp;

/// The finest there is: what is listed beyond what was written shows soonest.
pub const GRANULARITY: u32 = 4096;

/// Bytes of the disk for which there are bits at least: twice as many as a new one has, and more. A disk
/// that becomes larger still has no bits for the rest, which is always listed.
const COVERED: u64 = 16 << 30;

/// One checkpoint.
#[derive(Clone, Debug)]
struct Moment {
    name: String,
    size: u64,
    /// What sectors held that had ever been written; others were as at the beginning.
    content: BTreeMap<u64, Option<Stamp>>,
    /// From here on they may also have been zero.
    half_cut: u64,
    /// Granules that requests under way then, or later, were to change.
    asked: BTreeSet<u64>,
    /// The power was cut since.
    cut: bool,
    /// The disk had another size since.
    resized: bool,
}

/// All of a disk's checkpoints.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    moments: Vec<Moment>,
    /// How many sectors were found changed and listed.
    pub found: u64,
}

fn granules(request: &Request) -> std::ops::Range<u64> {
    let (offset, len) = request.range().unwrap_or((0, 0));
    let granularity = u64::from(GRANULARITY);
    offset / granularity..(offset + len).div_ceil(granularity)
}

/// A checkpoint of a name that no other has.
pub fn random_checkpoint(random: &mut Random) -> Request {
    Request::Checkpoint {
        name: CheckpointName::new(&format!("{:x}", random.next())).unwrap(),
        time: 7,
    }
}

impl Ledger {
    /// `request` was submitted.
    pub fn asked(&mut self, request: &Request) {
        for moment in &mut self.moments {
            moment.resized |= matches!(request, Request::Resize { .. });
            if request.changes() {
                moment.asked.extend(granules(request));
            }
        }
    }

    /// A checkpoint was taken while `open` requests were under way; `live` is the file now.
    pub fn taken<'a>(
        &mut self,
        name: CheckpointName,
        live: &MemoryStorage,
        model: &Model,
        open: impl Iterator<Item = &'a Request>,
    ) {
        let mut image = live.clone();
        let options = OpenOptions {
            read_only: true,
            allow_marked: true,
            ..OpenOptions::default()
        };
        let opened = open_child_engine_with(&mut image, &options, &mut || 0, |options| options);
        let (mut engine, _) = opened.expect("the file is whole when a checkpoint was taken");
        let size = engine.map().size();
        let mut content = BTreeMap::new();
        for sector in model.touched().filter(|sector| sector * SECTOR < size) {
            let at = sector * SECTOR;
            let bytes = super::world::read(&mut engine, &mut image, at, SECTOR);
            content.insert(sector, whole_stamp(&bytes));
        }
        let open: Vec<&Request> = open.collect();
        let changing = open.iter().filter(|request| request.changes());
        self.moments.push(Moment {
            name: name.to_string(),
            size,
            content,
            half_cut: model.half_cut(),
            asked: changing.flat_map(|request| granules(request)).collect(),
            cut: false,
            resized: open.iter().any(|one| matches!(one, Request::Resize { .. })),
        });
    }

    /// The power was cut, or the disk failed: more than what changed may be listed from now on.
    pub fn cut(&mut self) {
        for moment in &mut self.moments {
            moment.cut = true;
        }
    }

    /// Remove one checkpoint now and then; the image after it.
    pub fn remove_some(&mut self, image: &mut MemoryStorage, random: &mut Random) {
        if self.moments.is_empty() || random.one_in(2) {
            return;
        }
        let number = random.below(self.moments.len() as u64) as usize;
        let mut bits = || u128::from(random.next());
        track::remove_checkpoint(image, &self.moments[number].name, &mut bits)
            .expect("a checkpoint that is there can be removed");
        self.moments.remove(number);
    }

    /// Everything that must be known of `image`, in which sectors hold what `seen` says.
    pub fn verify(&mut self, image: &MemoryStorage, model: &Model, seen: &BTreeMap<u64, Stamp>) {
        for moment in &mut self.moments {
            let mut listed = Vec::new();
            let since = Since {
                checkpoint: &moment.name,
                until: None,
            };
            let told = listing(&mut image.clone(), since, &mut listed);
            assert!(told.known, "nobody else wrote to the disk");
            for (sector, stamp) in seen {
                let before = moment.content.get(sector).copied();
                let same = match before {
                    Some(before) => before == Some(*stamp),
                    None if *stamp == 0 && *sector >= moment.half_cut => true,
                    None => sector * SECTOR < moment.size && *stamp == model.base(*sector),
                };
                let is_listed = covers(&listed, sector * SECTOR);
                self.found += u64::from(!same && is_listed);
                assert!(
                    same || is_listed,
                    "sector {sector} held {before:?} at checkpoint {}, holds {stamp} now, and is not \
                     listed as changed",
                    moment.name
                );
            }
            if !moment.cut && !moment.resized {
                assert!(!told.rough);
                let all = listed.iter().flat_map(|(start, end)| {
                    let granularity = u64::from(GRANULARITY);
                    start / granularity..end.min(&COVERED).div_ceil(granularity)
                });
                let more: Vec<_> = all
                    .filter(|one| !moment.asked.contains(one))
                    .take(9)
                    .collect();
                assert!(more.is_empty(), "listed and never asked for: {more:?}");
            }
        }
    }
}

/// What is listed, as first bytes and those behind the last ones, in ascending order.
fn listing(image: &mut MemoryStorage, since: Since<'_>, listed: &mut Vec<(u64, u64)>) -> Changed {
    let mut each = |offset: u64, len: u64| {
        listed.push((offset, offset + len));
        Ok(())
    };
    changed(image, since, &mut each).unwrap_or_else(|error| panic!("nothing is known: {error}"))
}

fn covers(listed: &[(u64, u64)], at: u64) -> bool {
    let next = listed.partition_point(|(_, end)| *end <= at);
    listed.get(next).is_some_and(|(start, _)| *start <= at)
}
