//! What can be done, by name.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::command::Step;
use crate::machine::boot::Boot;
use crate::vcpu::Vcpu;

/// What the machine ends with when every step found what it had to.
const GOOD: u8 = 0;
/// What it ends with otherwise.
const BAD: u8 = 1;

/// Whether a step found something wrong.
static WRONG: AtomicBool = AtomicBool::new(false);

/// Does one step, on every vCPU at once.
pub(crate) fn run(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    match step.name {
        "hello" => hello(vcpu, boot),
        other => panic!("do={other} is not known"),
    }
}

/// A step found something wrong: the machine will end with another code.
pub(crate) fn found_wrong() {
    WRONG.store(true, Ordering::Relaxed);
}

/// The code that the machine ends with.
pub(crate) fn verdict() -> u8 {
    if WRONG.load(Ordering::Relaxed) {
        BAD
    } else {
        GOOD
    }
}

/// Each vCPU says that it is there, and the first one how much memory there is.
fn hello(vcpu: &Vcpu, boot: &Boot) {
    let line = vcpu.event("hello").number("tsc", vcpu.beat());
    if vcpu.leads() {
        let memory: u64 = boot.memory().map(|region| region.len).sum();
        let line = line.number("vcpus", u64::from(vcpu.count));
        vcpu.say(line.number("memory", memory));
    } else {
        vcpu.say(line);
    }
}
