//! `verify`: a range is filled with a pattern, flushed, read back and compared.
//!
//! The word at byte offset `o` of the disk is `stamp(seed, o)`, so that another run, or the host, can
//! compare too.

use crate::command::Step;
use crate::machine::boot::Boot;
use crate::machine::memory::Window;
use crate::random::stamp;
use crate::vcpu::Vcpu;
use crate::virtio::disk::{Channel, Disk, FLUSH, Finished, OK, Request, Verb, Work, pump};

/// What is expected of a range.
#[derive(Clone, Copy)]
pub(super) enum Pattern {
    /// Stamps of a seed.
    Stamps(u64),
    /// Nothing but zero.
    Zero,
}

impl Pattern {
    fn word(self, offset: u64) -> u64 {
        match self {
            Self::Stamps(seed) => stamp(seed, offset),
            Self::Zero => 0,
        }
    }

    fn fill(self, offset: u64, buffer: &Window) {
        for at in (0..buffer.len()).step_by(8) {
            buffer.write(at, self.word(offset + at));
        }
    }

    fn differs(self, offset: u64, buffer: &Window) -> bool {
        let mut words = (0..buffer.len()).step_by(8);
        words.any(|at| buffer.read::<u64>(at) != self.word(offset + at))
    }
}

/// A range of the disk in requests of which one channel does its share.
pub(super) struct Sweep {
    verb: Verb,
    pattern: Pattern,
    next: u64,
    stride: u64,
    end: u64,
    len: u64,
    /// What was done, and what was found.
    pub(super) sum: Sum,
}

/// What was done, and what was found.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum {
    pub(super) requests: u64,
    pub(super) errors: u64,
    pub(super) wrong: u64,
    /// The lowest offset of a request that failed or brought something else.
    pub(super) first: Option<u64>,
}

impl Sweep {
    /// The share of a channel: requests `share`, `share + channels`, and so on, of those of the range.
    pub(super) fn new(
        verb: Verb,
        pattern: Pattern,
        range: (u64, u64),
        disk: &Disk,
        share: u64,
    ) -> Self {
        let len = u64::from(disk.shape.size);
        let (from, end) = range;
        Self {
            verb,
            pattern,
            next: from + share * len,
            stride: u64::from(disk.channels) * len,
            end,
            len,
            sum: Sum::default(),
        }
    }
}

impl Work for Sweep {
    fn next(&mut self, _now: u64, buffer: &Window) -> Option<Request> {
        let offset = self.next;
        if offset >= self.end {
            return None;
        }
        let len = self.len.min(self.end - offset);
        self.next += self.stride;
        let data = buffer.part(0, len);
        match self.verb {
            Verb::WRITE => self.pattern.fill(offset, &data),
            // What was there before must not pass for what was read.
            _ => data.fill(!self.pattern.word(offset)),
        }
        Some(Request::at(self.verb, offset, len as u32))
    }

    fn done(&mut self, _now: u64, finished: &Finished, buffer: &Window) {
        let (offset, len) = (finished.request.offset(), u64::from(finished.request.len));
        let failed = finished.status != OK;
        let reads = self.verb == Verb::READ;
        let differs = !failed && reads && self.pattern.differs(offset, &buffer.part(0, len));
        let sum = &mut self.sum;
        sum.requests += 1;
        sum.errors += u64::from(failed);
        sum.wrong += u64::from(differs);
        if failed || differs {
            sum.first = Some(sum.first.map_or(offset, |first| first.min(offset)));
        }
    }
}

/// The range that `from` and `length` say, all of the disk without them.
pub(super) fn range(step: &Step, disk: &Disk) -> (u64, u64) {
    let capacity = disk.capacity();
    let from = step.number_or("from", 0);
    assert!(from < capacity, "from={from} of {capacity}");
    let length = step.number_or("length", capacity - from);
    let end = from.checked_add(length).filter(|end| *end <= capacity);
    (from, end.expect("a range within the disk"))
}

/// Writes, flushes, reads and compares a range, or with `only=write` or `only=read` half of it.
pub(super) fn verify(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    let (disk, mut channel) = Disk::open(vcpu, boot, step);
    let pattern = Pattern::Stamps(step.number_or("seed", 1));
    let range = range(step, &disk);
    let only = step.text("only");
    let index = u64::from(vcpu.index);
    if only != Some("read")
        && let Some(channel) = &mut channel
    {
        let mut sweep = Sweep::new(Verb::WRITE, pattern, range, &disk, index);
        pump(vcpu, channel, &mut sweep);
        sweep.sum.errors += u64::from(!flushed(vcpu, &disk, channel));
        report(vcpu, "written", sweep.sum);
    }
    vcpu.meet();
    if only != Some("write")
        && let Some(channel) = &mut channel
    {
        // What another channel wrote, if there is one.
        let share = (index + 1) % u64::from(disk.channels);
        let mut sweep = Sweep::new(Verb::READ, pattern, range, &disk, share);
        pump(vcpu, channel, &mut sweep);
        report(vcpu, "verified", sweep.sum);
    }
    disk.close(vcpu);
}

/// Flushes, where the disk knows how: whether it worked.
pub(super) fn flushed(vcpu: &Vcpu, disk: &Disk, channel: &mut Channel) -> bool {
    !disk.has(FLUSH) || channel.call(vcpu, Request::flush(), |_| ()).0 == OK
}

/// Says what a sweep did and found.
pub(super) fn report(vcpu: &Vcpu, event: &str, sum: Sum) {
    super::found_wrong(sum.errors + sum.wrong);
    let line = vcpu
        .event(event)
        .number("requests", sum.requests)
        .number("errors", sum.errors)
        .number("wrong", sum.wrong);
    vcpu.say(match sum.first {
        Some(first) => line.number("first", first),
        None => line,
    });
}
