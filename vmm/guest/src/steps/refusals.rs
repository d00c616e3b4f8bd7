//! `disk` says what a disk is; `refusals` asks it for what it must not do (5.2.6.1, 5.2.6.2).

use crate::command::Step;
use crate::machine::boot::Boot;
use crate::machine::memory::Window;
use crate::vcpu::Vcpu;
use crate::virtio::disk::{
    BLOCK_SIZE, Channel, DISCARD, Disk, FAILED, FLUSH, OK, READ_ONLY, Request, SECTOR, UNSUPPORTED,
    Verb, ZEROES,
};

use super::discard::{SEGMENT, UNMAP, put_segment};

/// Where the block size is in the configuration (5.2.4).
const BLK_SIZE: u64 = 20;
/// Bytes of a disk's name.
const NAME: u64 = 20;
/// A request that no version of virtio knows.
const NONSENSE: Verb = Verb(0x1234);
/// A flag that discarding has no meaning for.
const BAD_FLAG: u32 = 1 << 1;

/// One request and what has to be answered.
struct Case {
    name: &'static str,
    request: Request,
    /// Its segment, if it has one: sector, sectors, flags.
    segment: Option<(u64, u32, u32)>,
    answer: u8,
}

impl Case {
    fn new(name: &'static str, request: Request, answer: u8) -> Self {
        Self {
            name,
            request,
            segment: None,
            answer,
        }
    }

    fn segment(name: &'static str, verb: Verb, segment: (u64, u32, u32), answer: u8) -> Self {
        let request = Request::at(verb, 0, SEGMENT);
        Self {
            name,
            request,
            segment: Some(segment),
            answer,
        }
    }
}

/// Says what the disk is.
pub(super) fn describe(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    let (disk, channel) = Disk::open(vcpu, boot, step);
    if vcpu.leads()
        && let Some(mut channel) = channel
    {
        let request = Request::at(Verb::IDENTIFY, 0, NAME as u32);
        let (status, buffer) = channel.call(vcpu, request, Window::clear);
        super::found_wrong(u64::from(status != OK));
        let mut name = [0; NAME as usize];
        for (at, byte) in (0..).zip(&mut name) {
            *byte = buffer.read(at);
        }
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = core::str::from_utf8(name).unwrap_or("?");
        let block = if disk.has(BLOCK_SIZE) {
            disk.device.config::<1>(BLK_SIZE)[0]
        } else {
            512
        };
        let line = vcpu
            .event("disk")
            .number("capacity", disk.capacity())
            .number("block", u64::from(block))
            .number("features", disk.features)
            .number("queues", u64::from(disk.device.queues()))
            .number("longest_queue", u64::from(disk.longest));
        vcpu.say(line.text("name", name));
    }
    disk.close(vcpu);
}

/// Asks for what has to be refused, with a good read after each, and says which answers were others.
pub(super) fn refusals(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    let (disk, mut channel) = Disk::open(vcpu, boot, step);
    if vcpu.leads()
        && let Some(channel) = &mut channel
    {
        let end = disk.capacity() / SECTOR;
        let (mut tried, mut unexpected) = (0, 0);
        let mut attempt = |case: Case| {
            tried += 1;
            unexpected += u64::from(!answers(vcpu, channel, &case));
        };
        for case in reads_and_writes(&disk, end) {
            attempt(case);
        }
        if disk.has(DISCARD) {
            let verb = Verb::DISCARD;
            attempt(Case::segment("discard-beyond", verb, (end, 8, 0), FAILED));
            attempt(Case::segment(
                "discard-flags",
                verb,
                (0, 8, UNMAP),
                UNSUPPORTED,
            ));
            attempt(Case::segment(
                "discard-unknown-flag",
                verb,
                (0, 8, BAD_FLAG),
                UNSUPPORTED,
            ));
        }
        if disk.has(ZEROES) {
            let verb = Verb::ZEROES;
            attempt(Case::segment(
                "zeroes-across-end",
                verb,
                (end - 8, 16, 0),
                FAILED,
            ));
            attempt(Case::segment(
                "zeroes-unknown-flag",
                verb,
                (0, 8, BAD_FLAG),
                UNSUPPORTED,
            ));
        }
        if disk.has(FLUSH) {
            attempt(Case::new("flush", Request::flush(), OK));
        }
        super::found_wrong(unexpected);
        let line = vcpu.event("refusals").number("tried", tried);
        vcpu.say(line.number("unexpected", unexpected));
    }
    disk.close(vcpu);
}

fn reads_and_writes(disk: &Disk, end: u64) -> [Case; 7] {
    let at = |verb, sector, len| Request { verb, sector, len };
    let write = if disk.has(READ_ONLY) { FAILED } else { OK };
    let (read, long) = (Verb::READ, 4096);
    [
        Case::new("read-beyond", at(read, end, long), FAILED),
        Case::new("read-across-end", at(read, end - 1, long), FAILED),
        Case::new("read-far-beyond", at(read, u64::MAX, long), FAILED),
        Case::new("read-part-of-a-sector", at(read, 0, 100), FAILED),
        Case::new("write-beyond", at(Verb::WRITE, end, long), FAILED),
        Case::new("unknown", at(NONSENSE, 0, long), UNSUPPORTED),
        // The last sectors get what they had.
        Case::new("write", at(Verb::WRITE, end - 8, long), write),
    ]
}

/// Whether the disk answers a case as it has to, and goes on.
fn answers(vcpu: &Vcpu, channel: &mut Channel, case: &Case) -> bool {
    if case.request.verb == Verb::WRITE {
        // An idle channel uses one slot again and again: what was read is what is written back.
        let verb = Verb::READ;
        channel.call(
            vcpu,
            Request {
                verb,
                ..case.request
            },
            |_| (),
        );
    }
    let (answer, _) = channel.call(vcpu, case.request, |buffer| {
        if let Some((sector, sectors, flags)) = case.segment {
            put_segment(buffer, sector, sectors, flags);
        }
    });
    let (after, _) = channel.call(vcpu, Request::at(Verb::READ, 0, 4096), Window::clear);
    if (answer, after) == (case.answer, OK) {
        return true;
    }
    let line = vcpu.event("unexpected").text("case", case.name);
    let line = line
        .number("answer", u64::from(answer))
        .number("expected", u64::from(case.answer));
    vcpu.say(line.number("read_after", u64::from(after)));
    false
}
