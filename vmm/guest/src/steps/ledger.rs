//! `ledger` and `ledger-check`: proof that no acknowledged and flushed write is lost.
//!
//! Each vCPU keeps a ledger of its own: `blocks` places of 4 KiB one behind the other. It writes blocks
//! numbered from 1 on, number `n` to place `n % blocks`, some of them, then a flush; then it says the highest
//! number so far. That is the promise: every number up to it is on the disk, or a later one in its place.
//! What was acknowledged is also read back now and then, so that a disk that forgets is seen by the guest
//! itself. A round that failed is done again before anything is promised.

use crate::command::Step;
use crate::machine::boot::Boot;
use crate::machine::memory::Window;
use crate::random::{Random, stamp};
use crate::vcpu::Vcpu;
use crate::virtio::disk::{
    Channel, Disk, Finished, MOST, OK, Request, SECTOR, Shape, Verb, Work, pump,
};

use super::verify::flushed;

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// Begins each sector of a block, with the seed mixed in.
const MAGIC: u64 = 0x5245_4744_454c_4644;

/// Where one vCPU's ledger is.
#[derive(Clone, Copy)]
struct Ledger {
    from: u64,
    blocks: u64,
    magic: u64,
    owner: u64,
}

impl Ledger {
    /// That of vCPU `owner`, by the words `from`, `blocks` and `seed`.
    fn new(step: &Step, disk: &Disk, owner: u64) -> Self {
        let blocks = step.number_or("blocks", 1024);
        let from = step.number_or("from", 0) + owner * blocks * BLOCK;
        assert!(
            blocks > 0 && from + blocks * BLOCK <= disk.capacity(),
            "the ledger of vCPU {owner} does not fit on the disk"
        );
        Self {
            from,
            blocks,
            magic: MAGIC ^ stamp(step.number_or("seed", 1), 0),
            owner,
        }
    }

    fn request(&self, verb: Verb, place: u64) -> Request {
        Request::at(verb, self.from + place * BLOCK, BLOCK as u32)
    }

    fn place(&self, request: &Request) -> u64 {
        (request.offset() - self.from) / BLOCK
    }

    /// Writes block `number`: each sector says whose it is, which number, and which sector.
    fn fill(&self, number: u64, block: &Window) {
        for at in (0..BLOCK).step_by(32) {
            block.write(at, self.magic);
            block.write(at + 8, self.owner);
            block.write(at + 16, number);
            block.write(at + 24, at / SECTOR);
        }
    }

    /// The number in a sector at a place; 0 when it holds none of this ledger.
    fn number(&self, place: u64, sector: u64, block: &Window) -> u64 {
        let begin = sector * SECTOR;
        let number: u64 = block.read(begin + 16);
        let lines = (begin..begin + SECTOR).step_by(32);
        let whole = lines.map(|at| [0, 8, 16, 24].map(|word| block.read::<u64>(at + word)));
        let expected = [self.magic, self.owner, number, sector];
        let ours = number % self.blocks == place && whole.into_iter().all(|line| line == expected);
        if ours { number } else { 0 }
    }

    /// The lowest and the highest number of a block's sectors.
    fn numbers(&self, place: u64, block: &Window) -> (u64, u64) {
        let sectors = 0..BLOCK / SECTOR;
        sectors.fold((u64::MAX, 0), |(low, high), sector| {
            let number = self.number(place, sector, block);
            (low.min(number), high.max(number))
        })
    }

    /// The highest promise that a place keeps whose lowest number is `number`: the next one it would
    /// hold belongs to a block beyond it.
    fn keeps(&self, place: u64, number: u64) -> u64 {
        match number {
            // Never written: the first number of the place is missing.
            0 if place > 0 => place - 1,
            number => number + self.blocks - 1,
        }
    }

    /// The last of the numbers up to `flushed` that went to a place; 0 when none did.
    fn last(&self, place: u64, flushed: u64) -> u64 {
        let behind = (flushed % self.blocks + self.blocks - place) % self.blocks;
        flushed.saturating_sub(behind)
    }
}

/// Writing the blocks of one round.
struct Round {
    ledger: Ledger,
    next: u64,
    end: u64,
    /// Numbers to be written again.
    again: [u64; MOST],
    again_len: usize,
    errors: u64,
    /// The longest that a request took, in ticks.
    longest: u64,
}

impl Work for Round {
    fn next(&mut self, _now: u64, buffer: &Window) -> Option<Request> {
        let number = if let Some(last) = self.again_len.checked_sub(1) {
            self.again_len = last;
            self.again[last]
        } else if self.next < self.end {
            self.next += 1;
            self.next - 1
        } else {
            return None;
        };
        self.ledger.fill(number, buffer);
        let place = number % self.ledger.blocks;
        Some(self.ledger.request(Verb::WRITE, place))
    }

    fn done(&mut self, now: u64, finished: &Finished, buffer: &Window) {
        self.longest = self.longest.max(now.saturating_sub(finished.since));
        if finished.status != OK {
            self.errors += 1;
            self.again[self.again_len] = buffer.read(16);
            self.again_len += 1;
        }
    }
}

/// Reading some places that have to hold what was flushed.
struct Look<'a> {
    ledger: Ledger,
    random: &'a mut Random,
    left: u64,
    flushed: u64,
    errors: u64,
    wrong: u64,
    /// The longest that a request took, in ticks.
    longest: u64,
}

impl Work for Look<'_> {
    fn next(&mut self, _now: u64, buffer: &Window) -> Option<Request> {
        self.left = self.left.checked_sub(1)?;
        let place = self.random.below(self.ledger.blocks);
        buffer.fill(0);
        Some(self.ledger.request(Verb::READ, place))
    }

    fn done(&mut self, now: u64, finished: &Finished, buffer: &Window) {
        self.longest = self.longest.max(now.saturating_sub(finished.since));
        if finished.status != OK {
            self.errors += 1;
            return;
        }
        let place = self.ledger.place(&finished.request);
        let expected = self.ledger.last(place, self.flushed);
        // What a place holds that was never written is not for us to say.
        if expected > 0 && self.ledger.numbers(place, buffer) != (expected, expected) {
            self.wrong += 1;
        }
    }
}

/// A ledger's shape: its blocks have a size of their own.
fn shape(step: &Step) -> Shape {
    let mut shape = Shape::new(step);
    shape.size = BLOCK as u32;
    shape
}

/// Writes `rounds` rounds of `batch` blocks, or for ever, each begun `pace` ticks after the one before at the
/// earliest, and says after every `every` rounds what is promised.
pub(super) fn write(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    let (disk, channel) = Disk::open_as(vcpu, boot, step, shape(step));
    if let Some(mut channel) = channel {
        let ledger = Ledger::new(step, &disk, u64::from(vcpu.index));
        keep(vcpu, step, &disk, &mut channel, ledger);
    }
    disk.close(vcpu);
}

fn keep(vcpu: &Vcpu, step: &Step, disk: &Disk, channel: &mut Channel, ledger: Ledger) {
    let rounds = step.number_or("rounds", 0);
    let every = step.number_or("every", 1).max(1);
    let batch = step.number_or("batch", 32);
    let pace = step.number_or("pace", 0);
    // Two writes to one place must not be under way at once.
    assert!((1..=ledger.blocks).contains(&batch), "batch={batch}");
    let mut random = Random::new(stamp(ledger.magic, ledger.owner));
    let (mut round, mut errors, mut wrong, mut longest) = (0, 0, 0, 0);
    let mut flushed = step.number_or("start", 1).saturating_sub(1);
    vcpu.longest_gap();
    while rounds == 0 || round < rounds {
        round += 1;
        let begun = vcpu.beat();
        let numbers = flushed + 1..flushed + 1 + batch;
        let settled = settle(vcpu, disk, channel, ledger, numbers);
        errors += settled.errors;
        flushed += batch;
        let mut look = Look {
            ledger,
            random: &mut random,
            left: step.number_or("look", 4),
            flushed,
            errors: 0,
            wrong: 0,
            longest: settled.longest.max(longest),
        };
        pump(vcpu, channel, &mut look);
        longest = look.longest;
        errors += look.errors;
        wrong += look.wrong;
        super::found_wrong(look.wrong);
        if round % every == 0 || round == rounds || look.wrong > 0 {
            let line = vcpu
                .event("ledger")
                .number("round", round)
                .number("flushed", flushed);
            let line = line.number("errors", errors).number("wrong", wrong);
            let line = line.number("longest", longest);
            vcpu.say(line.number("gap", vcpu.longest_gap()));
            longest = 0;
        }
        while vcpu.beat().wrapping_sub(begun) < pace {
            core::hint::spin_loop();
        }
    }
}

/// What it took to write the blocks of a round.
#[derive(Default)]
struct Settled {
    /// Requests that failed.
    errors: u64,
    /// The longest that a write or a flush took, in ticks.
    longest: u64,
}

/// Writes blocks until all of them are acknowledged and flushed.
fn settle(
    vcpu: &Vcpu,
    disk: &Disk,
    channel: &mut Channel,
    ledger: Ledger,
    numbers: core::ops::Range<u64>,
) -> Settled {
    let mut settled = Settled::default();
    loop {
        let mut round = Round {
            ledger,
            next: numbers.start,
            end: numbers.end,
            again: [0; MOST],
            again_len: 0,
            errors: 0,
            longest: settled.longest,
        };
        pump(vcpu, channel, &mut round);
        settled.errors += round.errors;
        let since = vcpu.beat();
        let durable = flushed(vcpu, disk, channel);
        settled.longest = round.longest.max(vcpu.beat() - since);
        // After a flush that failed nobody knows what is durable: all of the round is written again.
        if durable {
            return settled;
        }
        settled.errors += 1;
    }
}

/// Reading a ledger as a whole.
struct Audit {
    ledger: Ledger,
    next: u64,
    holds: u64,
    highest: u64,
    torn: u64,
    errors: u64,
}

impl Work for Audit {
    fn next(&mut self, _now: u64, buffer: &Window) -> Option<Request> {
        if self.next == self.ledger.blocks {
            return None;
        }
        buffer.fill(0);
        self.next += 1;
        Some(self.ledger.request(Verb::READ, self.next - 1))
    }

    fn done(&mut self, _now: u64, finished: &Finished, buffer: &Window) {
        if finished.status != OK {
            self.errors += 1;
            return;
        }
        let place = self.ledger.place(&finished.request);
        let (low, high) = self.ledger.numbers(place, buffer);
        self.holds = self.holds.min(self.ledger.keeps(place, low));
        self.highest = self.highest.max(high);
        self.torn += u64::from(low != high);
    }
}

/// Reads the ledgers of `ledgers` vCPUs, as many as there are channels without the word, and says which promise
/// each of them keeps.
pub(super) fn check(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    let (disk, channel) = Disk::open_as(vcpu, boot, step, shape(step));
    if let Some(mut channel) = channel {
        let ledgers = step.number_or("ledgers", u64::from(disk.channels));
        let mine = u64::from(vcpu.index)..ledgers;
        for owner in mine.step_by(usize::from(disk.channels)) {
            let ledger = Ledger::new(step, &disk, owner);
            let mut audit = Audit {
                ledger,
                next: 0,
                holds: u64::MAX,
                highest: 0,
                torn: 0,
                errors: 0,
            };
            pump(vcpu, &mut channel, &mut audit);
            super::found_wrong(audit.errors);
            let line = vcpu
                .event("ledger-check")
                .number("ledger", owner)
                .number("holds", audit.holds)
                .number("highest", audit.highest)
                .number("torn", audit.torn);
            vcpu.say(line.number("errors", audit.errors));
        }
    }
    disk.close(vcpu);
}

#[cfg(test)]
mod tests {
    use super::Ledger;

    const BLOCKS: u64 = 7;

    fn ledger() -> Ledger {
        Ledger {
            from: 0,
            blocks: BLOCKS,
            magic: 1,
            owner: 0,
        }
    }

    /// What a ledger holds at every place after `count` blocks.
    fn written(count: u64) -> [u64; BLOCKS as usize] {
        let mut places = [0; BLOCKS as usize];
        for number in 1..=count {
            places[(number % BLOCKS) as usize] = number;
        }
        places
    }

    fn holds(places: &[u64]) -> u64 {
        let keeps = (0..)
            .zip(places)
            .map(|(place, number)| ledger().keeps(place, *number));
        keeps.min().expect("a place")
    }

    #[test]
    fn a_ledger_holds_exactly_what_was_written() {
        for count in 0..40 {
            let places = written(count);
            assert_eq!(holds(&places), count);
            for (place, number) in (0..).zip(places) {
                assert_eq!(ledger().last(place, count), number, "{count} at {place}");
            }
        }
    }

    #[test]
    fn a_lost_block_is_seen_and_a_later_one_is_not_missed() {
        for count in 1..40_u64 {
            for lost in (count.saturating_sub(BLOCKS) + 1)..=count {
                let mut places = written(count);
                places[(lost % BLOCKS) as usize] = lost.saturating_sub(BLOCKS);
                assert_eq!(holds(&places), lost - 1, "{count} without {lost}");
            }
            let mut places = written(count);
            places[((count + 1) % BLOCKS) as usize] = count + 1;
            assert!(
                holds(&places) >= count,
                "{count}, and the next one written too"
            );
        }
    }
}
