//! Looking at a disk that is written to, with a link that takes its time.

use std::collections::VecDeque;

use vdisk::tap::{Change, WriteTap as _};
use vdisk::units::GuestOffset;

use super::*;
use crate::chance::Rng;

const BLOCK: usize = 4096;
const BLOCKS: usize = 64;
const LANE: ConnId = ConnId(3);

/// Two disks, what is on its way from one to the other, and looks on theirs.
struct World {
    rng: Rng,
    now: Micros,
    tracker: Tracker,
    verify: Verify,
    here: Vec<u8>,
    there: Vec<u8>,
    /// Writes that are in the disk and not acknowledged: block, and when they are.
    writing: VecDeque<(usize, Micros)>,
    /// Records that are not durable there: number, block, bytes.
    records: VecDeque<(u64, usize, Vec<u8>)>,
    /// Asked of this host's disk, and of the other one.
    asked: VecDeque<Step>,
    looks: VecDeque<(Look, Vec<u8>)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let size = BLOCK * BLOCKS;
        let tracker = Tracker::new(size as u64, 1 << 30);
        tracker.advance_cursor(size as u64);
        let mut rng = Rng::new(seed);
        let mut here = vec![0; size];
        for at in 0..BLOCKS {
            if rng.percent(60) {
                here[at * BLOCK..][..BLOCK].fill(1 + at as u8);
            }
        }
        let mut verify = Verify::default();
        verify.begin(size as u64, Micros::from_secs(1), &tracker);
        Self {
            rng,
            now: Micros::from_secs(1),
            tracker,
            verify,
            there: here.clone(),
            here,
            writing: VecDeque::new(),
            records: VecDeque::new(),
            asked: VecDeque::new(),
            looks: VecDeque::new(),
        }
    }

    fn block(&mut self) -> usize {
        // Some are written all the time, and nobody writes to the last one.
        let most = if self.rng.percent(70) {
            4
        } else {
            BLOCKS as u64 - 1
        };
        self.rng.below(most) as usize
    }

    fn write(&mut self) {
        let block = self.block();
        if self.writing.iter().any(|(other, _)| *other == block) {
            return;
        }
        let byte = self.rng.below(256) as u8;
        self.here[block * BLOCK..][..BLOCK].fill(byte);
        let after = Micros(self.rng.below(900_000));
        self.writing.push_back((block, self.now + after));
    }

    fn acknowledge(&mut self) {
        let now = self.now;
        let due = self.writing.iter().position(|(_, at)| *at <= now);
        let Some((block, _)) = due.and_then(|at| self.writing.remove(at)) else {
            return;
        };
        let bytes = self.here[block * BLOCK..][..BLOCK].to_vec();
        let change = Change::Data(bytes.clone().into());
        self.tracker
            .changed(GuestOffset((block * BLOCK) as u64), change);
        self.records
            .push_back((self.tracker.figures().seq, block, bytes));
    }

    fn deliver(&mut self) {
        if let Some((_, block, bytes)) = self.records.pop_front() {
            self.there[block * BLOCK..][..BLOCK].copy_from_slice(&bytes);
        }
    }

    /// The source's disk or the target answers the oldest question.
    fn answer(&mut self) {
        if self.rng.percent(50)
            && let Some(step) = self.asked.pop_front()
        {
            match step {
                Step::Status(op, offset, len) => {
                    let blocks = (offset as usize..(offset + len) as usize).step_by(BLOCK);
                    let extents: Vec<Extent> = blocks
                        .map(|at| Extent {
                            len: BLOCK as u64,
                            allocated: self.here[at] != 0,
                            zero: false,
                        })
                        .collect();
                    let some = 1 + self.rng.below(extents.len() as u64) as usize;
                    self.verify.answer(op, Some(&extents[..some]));
                }
                Step::Read(op, offset, len) => {
                    let bytes = self.here[offset as usize..][..len as usize].to_vec();
                    let with = (Some(LANE), BLOCK as u32);
                    if let Some((look, _)) = self.verify.read_done(op, Some(&bytes.into()), with) {
                        self.look(look);
                    }
                }
                Step::Send(look, _) => self.look(look),
            }
        } else if let Some((look, there)) = self.looks.pop_front() {
            let unlike = match &look.here {
                Here::Zeroes => u128::from(there.iter().any(|byte| *byte != 0)),
                Here::Blocks(_, hashes) => {
                    let pairs = there.chunks(BLOCK).zip(hashes).enumerate();
                    let unlike = pairs.filter(|(_, (a, b))| blake3::hash(a).as_bytes() != *b);
                    unlike.fold(0, |set, (number, _)| set | 1 << number)
                }
            };
            self.verify.seen(look.id, (unlike, 0), &self.tracker);
        }
    }

    /// The target looks now and its answer comes later.
    fn look(&mut self, look: Look) {
        let there = self.there[look.offset as usize..][..look.len as usize].to_vec();
        self.looks.push_back((look, there));
    }

    /// What is marked to be copied again is.
    fn mend(&mut self) {
        while let Some(claim) = self.tracker.claim(0, 1 << 20, true) {
            let part = claim.offset as usize..(claim.offset + claim.len) as usize;
            self.there[part.clone()].copy_from_slice(&self.here[part]);
        }
    }

    fn step(&mut self) {
        self.now += Micros(self.rng.below(20_000));
        match self.rng.below(10) {
            0..2 => self.write(),
            2 => self.acknowledge(),
            3..5 => self.deliver(),
            5 if self.rng.percent(1) => {
                self.asked.retain(|step| !matches!(step, Step::Send(..)));
                self.looks.clear();
                self.verify.link_lost(&self.tracker);
            }
            6 if self.rng.percent(20) => self.mend(),
            _ => self.answer(),
        }
        let durable = self.records.front().map_or(u64::MAX, |(seq, ..)| seq - 1);
        let settled = self.tracker.figures().dirty == 0;
        if self
            .verify
            .awaits(self.now)
            .is_some_and(|until| durable >= until && settled)
        {
            self.verify.go_on();
        }
        while let Some(step) = self.verify.next(LANE, 16384) {
            self.asked.push_back(step);
        }
        self.verify.settle(self.now, &self.tracker);
    }

    fn run(mut self) -> Self {
        for _ in 0..400_000 {
            self.step();
            if self.verify.figures().unwrap().stage == VerifyStage::Done {
                return self;
            }
        }
        panic!("it never ends: {:?}", self.verify);
    }
}

fn seeds() -> std::ops::Range<u64> {
    let one = std::env::var("DISKFERRY_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    one.map_or(0..300, |seed: u64| seed..seed + 1)
}

#[test]
fn what_is_the_same_is_never_called_wrong_whatever_is_written_meanwhile() {
    for seed in seeds() {
        let world = World::new(seed).run();
        let figures = world.verify.figures().unwrap();
        println!("seed {seed}: {figures:?}");
        assert_eq!(figures.wrong, 0, "seed {seed}");
        let size = (BLOCK * BLOCKS) as u64;
        assert_eq!(figures.compared + figures.unsettled, size, "seed {seed}");
        assert!(
            figures.unsettled <= 5 * BLOCK as u64,
            "seed {seed}: {figures:?}"
        );
    }
}

#[test]
fn what_is_wrong_is_found_and_mended_while_other_parts_are_written() {
    for seed in seeds() {
        let mut world = World::new(seed);
        let last = (BLOCKS - 1) * BLOCK;
        world.there[last + 77] ^= 1;
        let world = world.run();
        let figures = world.verify.figures().unwrap();
        println!("seed {seed}: {figures:?}");
        assert_eq!(figures.first_wrong, Some(last as u64), "seed {seed}");
        assert_eq!(figures.wrong, BLOCK as u64, "seed {seed}");
        assert_eq!(world.there[last..], world.here[last..], "seed {seed}");
    }
}

#[test]
fn one_that_runs_is_not_begun_again_and_one_that_is_over_is() {
    let mut world = World::new(1);
    let size = (BLOCK * BLOCKS) as u64;
    world.verify.begin(size, world.now, &world.tracker);
    assert_eq!(world.verify.figures().unwrap().begun, 1);
    let mut world = world.run();
    world.verify.begin(size, world.now, &world.tracker);
    assert_eq!(world.verify.figures().unwrap().begun, 2);
}
