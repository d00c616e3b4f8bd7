//! `plug-watch`: takes up disks that are put in while the machine runs, and lets go of those that are wanted back.
//!
//! What happened is asked of the machine's own registers, as `docs/vmm.md` describes them.

use crate::command::Step;
use crate::machine::boot::Boot;
use crate::machine::{memory, ports};
use crate::pci::{self, Function};
use crate::random::stamp;
use crate::vcpu::Vcpu;
use crate::virtio::device::{self, Device};
use crate::virtio::disk::{Channel, Disk, OK, Request, Shape, Verb};

/// Where the machine says what happened.
const HAPPENED: u16 = 0xae00;
const CHANGED: u16 = 0xae04;
const WANTED: u16 = 0xae08;
const EJECT: u16 = 0xae0c;
/// What happened: somebody pressed the power button; slots changed.
const POWER_BUTTON: u32 = 1;
const SLOTS_CHANGED: u32 = 2;

/// Ticks between two looks.
const PAUSE: u64 = 1 << 22;
/// What is written to a new disk, and where.
const SEED: u64 = 7;
const OFFSET: u64 = 1 << 20;

/// The disk in a slot, at work.
struct Plugged {
    slot: u32,
    function: Function,
    disk: Disk,
    channel: Channel,
}

/// Until `rounds` devices have left, or the power button is pressed. With `deaf=1` it lets go of nothing.
pub(super) fn watch(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    if !vcpu.leads() {
        return;
    }
    let mut left = step.number_or("rounds", 1);
    let deaf = step.is_set("deaf");
    let mut plugged: Option<Plugged> = None;
    vcpu.say(vcpu.event("plug-watch").number("rounds", left));
    while left > 0 {
        let begun = vcpu.beat();
        while vcpu.beat().wrapping_sub(begun) < PAUSE {}
        if let Some(here) = &mut plugged
            && !here.goes_on(vcpu)
        {
            gone(vcpu, here.slot);
            plugged = None;
            left -= 1;
        }
        let happened = ports::read32(HAPPENED);
        if happened & POWER_BUTTON != 0 {
            vcpu.say(vcpu.event("button"));
            return;
        }
        if happened & SLOTS_CHANGED == 0 {
            continue;
        }
        for slot in slots(ports::read32(CHANGED)) {
            if let Some(function) = pci::functions().find(|function| function.device() == slot) {
                take_up(vcpu, boot, step, (slot, function), &mut plugged);
            }
        }
        for slot in slots(ports::read32(WANTED)) {
            vcpu.say(vcpu.event("wanted").number("slot", u64::from(slot)));
            if deaf {
                continue;
            }
            if let Some(here) = plugged.take_if(|here| here.slot == slot) {
                here.disk.device.reset(vcpu);
                memory::give_back();
            }
            ports::write32(EJECT, 1 << slot);
            gone(vcpu, slot);
            left -= 1;
        }
    }
}

/// The numbers of the bits of a mask.
fn slots(mask: u32) -> impl Iterator<Item = u32> {
    (0..32).filter(move |slot| mask & 1 << slot != 0)
}

/// Says that a slot lost its device, and whether it is empty.
fn gone(vcpu: &Vcpu, slot: u32) {
    let there = pci::functions().any(|function| function.device() == slot);
    super::found_wrong(u64::from(there));
    let line = vcpu.event("left").number("slot", u64::from(slot));
    vcpu.say(line.number("there", u64::from(there)));
}

/// Says what came, and if it is a disk writes and reads it. One disk at a time is kept at work.
fn take_up(
    vcpu: &Vcpu,
    boot: &Boot,
    step: &Step,
    (slot, function): (u32, Function),
    plugged: &mut Option<Plugged>,
) {
    let kind = device::kind_of(function);
    let line = vcpu.event("came").number("slot", u64::from(slot));
    if kind != Some(device::BLOCK) || plugged.is_some() {
        vcpu.say(line.number("virtio", u64::from(kind.unwrap_or(0))));
        return;
    }
    let device = Device::of(boot, function);
    let disk = Disk::prepare(vcpu, boot, step, (device, Shape::new(step)));
    let mut channel = Channel::new(&disk, 0);
    let len = disk.shape.size;
    let (written, _) = channel.call(vcpu, Request::at(Verb::WRITE, OFFSET, len), |buffer| {
        for at in (0..buffer.len()).step_by(8) {
            buffer.write(at, stamp(SEED, OFFSET + at));
        }
    });
    let (flushed, _) = channel.call(vcpu, Request::flush(), |_| {});
    let (read, buffer) = channel.call(vcpu, Request::at(Verb::READ, OFFSET, len), |buffer| {
        buffer.clear();
    });
    let answers = [written, flushed, read];
    let errors = answers.iter().filter(|status| **status != OK);
    let errors = errors.count() as u64;
    let mut words = (0..buffer.len()).step_by(8);
    let wrong = words.any(|at| buffer.read::<u64>(at) != stamp(SEED, OFFSET + at));
    super::found_wrong(errors + u64::from(wrong));
    let line = line.number("virtio", u64::from(device::BLOCK));
    let line = line.number("capacity", disk.capacity());
    vcpu.say(
        line.number("errors", errors)
            .number("wrong", u64::from(wrong)),
    );
    *plugged = Some(Plugged {
        slot,
        function,
        disk,
        channel,
    });
}

impl Plugged {
    /// One read more, without waiting for any; whether the disk is still there.
    fn goes_on(&mut self, vcpu: &Vcpu) -> bool {
        while self.channel.finished().is_some() {}
        if !self.function.is_there() {
            return false;
        }
        if let Some((slot, _)) = self.channel.free_slot() {
            let read = Request::at(Verb::READ, OFFSET, self.disk.shape.size);
            self.channel.start(slot, read, vcpu.beat());
            self.channel.publish();
        }
        true
    }
}
