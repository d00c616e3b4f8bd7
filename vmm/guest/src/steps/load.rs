//! `load`: random or sequential reads and writes, as many at once as `depth` says.

use crate::command::Step;
use crate::machine::boot::Boot;
use crate::machine::memory::Window;
use crate::random::{Random, stamp};
use crate::vcpu::Vcpu;
use crate::virtio::disk::{Disk, Finished, OK, Request, Verb, Work, pump};

use super::histogram::Histogram;
use super::verify::range;

/// Operations of each vCPU, when neither `ops` nor `ticks` is said.
const OPERATIONS: u64 = 1000;

/// One vCPU's share of the load.
struct Load {
    random: Random,
    sequential: bool,
    /// Of a hundred operations, how many write.
    writes: u64,
    /// The first request's number and how many fit, of `size` bytes each.
    first: u64,
    places: u64,
    size: u32,
    /// When to stop: after so many, and at that moment.
    operations: u64,
    end: u64,
    sum: Sum,
}

/// What was done.
struct Sum {
    issued: u64,
    reads: u64,
    writes: u64,
    errors: u64,
    times: Histogram,
}

impl Load {
    fn new(vcpu: &Vcpu, step: &Step, disk: &Disk) -> Self {
        let size = disk.shape.size;
        let (from, end) = range(step, disk);
        let (first, last) = (from.div_ceil(u64::from(size)), end / u64::from(size));
        assert!(first < last, "a range without a whole request");
        let writes = step.number_or("write", 0);
        assert!(writes <= 100, "write={writes} of a hundred");
        let ticks = step.number("ticks");
        let operations = match (step.number("ops"), ticks) {
            (Some(operations), _) => operations,
            (None, Some(_)) => u64::MAX,
            (None, None) => OPERATIONS,
        };
        let seed = step.number_or("seed", 1);
        Self {
            random: Random::new(stamp(seed, u64::from(vcpu.index))),
            sequential: step.is_set("sequential"),
            writes,
            first,
            places: last - first,
            size,
            operations,
            end: ticks.map_or(u64::MAX, |ticks| vcpu.beat().saturating_add(ticks)),
            sum: Sum {
                issued: 0,
                reads: 0,
                writes: 0,
                errors: 0,
                times: Histogram::new(),
            },
        }
    }
}

impl Work for Load {
    fn next(&mut self, now: u64, buffer: &Window) -> Option<Request> {
        if self.sum.issued == self.operations || now >= self.end {
            return None;
        }
        let place = if self.sequential {
            self.sum.issued % self.places
        } else {
            self.random.below(self.places)
        };
        self.sum.issued += 1;
        let offset = (self.first + place) * u64::from(self.size);
        let writes = self.writes > 0 && self.random.below(100) < self.writes;
        let verb = if writes { Verb::WRITE } else { Verb::READ };
        if writes {
            buffer.write(0, offset);
            buffer.write(8, self.sum.issued);
        }
        Some(Request::at(verb, offset, self.size))
    }

    fn done(&mut self, now: u64, finished: &Finished, _buffer: &Window) {
        let sum = &mut self.sum;
        sum.times.add(now.saturating_sub(finished.since));
        match (finished.status, finished.request.verb) {
            (OK, Verb::WRITE) => sum.writes += 1,
            (OK, _) => sum.reads += 1,
            _ => sum.errors += 1,
        }
    }
}

/// Does the load, and says how many operations there were, how long they took all and each, in ticks.
pub(super) fn load(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    let (disk, channel) = Disk::open(vcpu, boot, step);
    if let Some(channel) = &channel {
        for slot in 0..channel.shape.depth {
            // Memory that was never touched is slow once.
            channel.buffer(slot).clear();
            vcpu.beat();
        }
    }
    vcpu.meet();
    if let Some(mut channel) = channel {
        vcpu.longest_gap();
        let begun = vcpu.beat();
        let mut load = Load::new(vcpu, step, &disk);
        pump(vcpu, &mut channel, &mut load);
        let took = vcpu.beat() - begun;
        let sum = load.sum;
        super::found_wrong(sum.errors);
        let line = vcpu
            .event("load")
            .number("reads", sum.reads)
            .number("writes", sum.writes)
            .number("errors", sum.errors)
            .number("ticks", took)
            .number("depth", u64::from(channel.shape.depth))
            .number("size", u64::from(channel.shape.size))
            .number("p50", sum.times.at_most(500))
            .number("p99", sum.times.at_most(990))
            .number("longest", sum.times.longest);
        vcpu.say(line.number("gap", vcpu.longest_gap()));
    }
    disk.close(vcpu);
}
