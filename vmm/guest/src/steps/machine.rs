//! Steps that need no device: `hello`, `pci`, `spin`, `crash`.

use crate::command::Step;
use crate::machine::{self, boot::Boot};
use crate::pci;
use crate::vcpu::Vcpu;
use crate::virtio::device;

/// Ticks between two lines of `spin`, without a word about it.
const PAUSE: u64 = 1 << 30;

/// Each vCPU says that it is there, and the first one how much memory there is.
pub(super) fn hello(vcpu: &Vcpu, boot: &Boot) {
    let line = vcpu.event("hello").number("tsc", vcpu.beat());
    if vcpu.leads() {
        let memory: u64 = boot.memory().map(|region| region.len).sum();
        let line = line.number("vcpus", u64::from(vcpu.count));
        vcpu.say(line.number("memory", memory));
    } else {
        vcpu.say(line);
    }
}

/// A line about each function on the bus.
pub(super) fn pci(vcpu: &Vcpu) {
    if !vcpu.leads() {
        return;
    }
    for function in pci::functions() {
        let (vendor, id) = function.ids();
        let line = vcpu
            .event("pci")
            .number("device", u64::from(function.device()))
            .number("function", u64::from(function.number()))
            .text("ids", format_args!("{vendor:04x}:{id:04x}"));
        vcpu.say(match device::kind_of(function) {
            Some(kind) => line.number("virtio", u64::from(kind)),
            None => line,
        });
    }
}

/// Counts on every vCPU, with a line each `every` ticks, `rounds` times or for ever.
pub(super) fn spin(vcpu: &Vcpu, step: &Step) {
    let every = step.number_or("every", PAUSE);
    let rounds = step.number_or("rounds", 0);
    let (mut count, mut round) = (0, 0);
    while rounds == 0 || round < rounds {
        let begun = vcpu.beat();
        while vcpu.beat().wrapping_sub(begun) < every {
            count += 1;
        }
        round += 1;
        let line = vcpu
            .event("spin")
            .number("round", round)
            .number("count", count);
        vcpu.say(line.number("gap", vcpu.longest_gap()));
    }
}

/// Fails on purpose on vCPU `on`, in the way that `how` says; the others go on to where all meet.
pub(super) fn crash(vcpu: &Vcpu, step: &Step) {
    if u64::from(vcpu.index) != step.number_or("on", 0) {
        return;
    }
    let how = step.text("how").unwrap_or("ud2");
    vcpu.say(vcpu.event("crash").text("how", how));
    match how {
        "ud2" => machine::undefined_instruction(),
        "panic" => panic!("as the command line asked"),
        "hang" => machine::halt(),
        other => panic!("how={other} is not known"),
    }
}
