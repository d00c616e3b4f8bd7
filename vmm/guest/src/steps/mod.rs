//! What can be done, by name. Each step runs on every vCPU at once.

mod discard;
mod echo;
mod entropy;
mod fill;
mod histogram;
mod ledger;
mod load;
mod machine;
mod net;
mod plug;
mod refusals;
mod resize;
mod touch;
mod verify;

use core::sync::atomic::{AtomicBool, Ordering};

use crate::command::Step;
use crate::machine::boot::Boot;
use crate::vcpu::Vcpu;
use crate::virtio::disk::Verb;

/// What the machine ends with when every step found what it had to.
const GOOD: u8 = 0;
/// What it ends with otherwise.
const BAD: u8 = 1;

/// Whether a step found something wrong.
static WRONG: AtomicBool = AtomicBool::new(false);

/// Does one step.
pub(crate) fn run(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    match step.name {
        "hello" => machine::hello(vcpu, boot),
        "pci" => machine::pci(vcpu),
        "spin" => machine::spin(vcpu, step),
        "crash" => machine::crash(vcpu, step),
        "touch" => touch::touch(vcpu, boot, step),
        "fill" => fill::fill(vcpu, boot, step),
        "fill-check" => fill::check(vcpu, boot, step),
        "rng" => entropy::read(vcpu, boot, step),
        "disk" => refusals::describe(vcpu, boot, step),
        "refusals" => refusals::refusals(vcpu, boot, step),
        "verify" => verify::verify(vcpu, boot, step),
        "load" => load::load(vcpu, boot, step),
        "ledger" => ledger::write(vcpu, boot, step),
        "ledger-check" => ledger::check(vcpu, boot, step),
        "discard" => discard::run(vcpu, boot, step, Verb::DISCARD),
        "zeroes" => discard::run(vcpu, boot, step, Verb::ZEROES),
        "echo" => echo::echo(vcpu),
        "plug-watch" => plug::watch(vcpu, boot, step),
        "resize-watch" => resize::watch(vcpu, boot, step),
        "net" => net::describe(vcpu, boot, step),
        "net-echo" => net::echo(vcpu, boot, step),
        "net-send" => net::send(vcpu, boot, step),
        "net-link" => net::link(vcpu, boot, step),
        other => panic!("do={other} is not known"),
    }
}

/// The code that the machine ends with.
pub(crate) fn verdict() -> u8 {
    if WRONG.load(Ordering::Relaxed) {
        BAD
    } else {
        GOOD
    }
}

/// A step found `count` things that are wrong: with any, the machine ends with another code.
fn found_wrong(count: u64) {
    if count > 0 {
        WRONG.store(true, Ordering::Relaxed);
    }
}
