//! `discard` and `zeroes`: a range is given back, or made zero (5.2.6.2).

use crate::command::Step;
use crate::machine::boot::Boot;
use crate::machine::memory::Window;
use crate::vcpu::Vcpu;
use crate::virtio::disk::{DISCARD, Disk, OK, Request, SECTOR, Verb, ZEROES, pump};

use super::verify::{Pattern, Sum, Sweep, flushed, range, report};

/// Where the most sectors of one segment are in the configuration (5.2.4).
const MAX_DISCARD: u64 = 36;
const MAX_ZEROES: u64 = 48;
/// Bytes of a segment.
pub(super) const SEGMENT: u32 = 16;
/// The segment's flag that lets the device give the space back.
pub(super) const UNMAP: u32 = 1;

/// Discards or zeroes a range, flushes, and reads it back where it has to be zero: after `zeroes`, and
/// with `zero=1`.
pub(super) fn run(vcpu: &Vcpu, boot: &Boot, step: &Step, verb: Verb) {
    let (disk, mut channel) = Disk::open(vcpu, boot, step);
    let range = range(step, &disk);
    let zeroes = verb == Verb::ZEROES;
    let flags = if zeroes && step.is_set("unmap") {
        UNMAP
    } else {
        0
    };
    if vcpu.leads()
        && let Some(channel) = &mut channel
    {
        let (feature, max_at) = if zeroes {
            (ZEROES, MAX_ZEROES)
        } else {
            (DISCARD, MAX_DISCARD)
        };
        assert!(disk.has(feature), "the disk does not offer it");
        let [most] = disk.device.config(max_at);
        assert!(most > 0, "segments of at most no sector");
        let mut sum = Sum::default();
        let (mut sector, end) = (range.0 / SECTOR, range.1 / SECTOR);
        while sector < end {
            let sectors = (end - sector).min(u64::from(most)) as u32;
            let request = Request {
                verb,
                sector: 0,
                len: SEGMENT,
            };
            let (status, _) = channel.call(vcpu, request, |buffer| {
                put_segment(buffer, sector, sectors, flags);
            });
            sum.requests += 1;
            if status != OK {
                sum.errors += 1;
                sum.first.get_or_insert(sector * SECTOR);
            }
            sector += u64::from(sectors);
        }
        sum.errors += u64::from(!flushed(vcpu, &disk, channel));
        report(vcpu, if zeroes { "zeroed" } else { "discarded" }, sum);
    }
    vcpu.meet();
    if (zeroes || step.is_set("zero"))
        && let Some(channel) = &mut channel
    {
        let share = u64::from(vcpu.index);
        let mut sweep = Sweep::new(Verb::READ, Pattern::Zero, range, &disk, share);
        pump(vcpu, channel, &mut sweep);
        report(vcpu, "verified", sweep.sum);
    }
    disk.close(vcpu);
}

/// Writes a segment into a request's buffer.
pub(super) fn put_segment(buffer: &Window, sector: u64, sectors: u32, flags: u32) {
    buffer.write(0, sector);
    buffer.write(8, sectors);
    buffer.write(12, flags);
}
