//! The freestanding guest: a program without an operating system that drives virtio itself.
//!
//! Every test of a device, of a pause, a snapshot or a migration runs it, and so do the benchmarks of
//! our machine; it also runs under QEMU, so that both can be measured with the same binary. It
//! lives in ring 3 with the right to use ports, has no interrupts and polls. The command line says
//! what it does (`docs/vmm-guest.md`); what it found is said on the serial line, a line of JSON for
//! each event, and a byte at the exit port ends the machine.
//!
//! `vmm/build.rs` compiles it with `--cfg freestanding` into an ELF file. Compiled by cargo it is a
//! library, so that it is linted, documented and, where it only computes, tested like all else. It
//! must never need what a disk's host has to promise: it takes nothing for granted that a device
//! says, and stops with a message instead.

#![no_std]
#![cfg_attr(freestanding, no_main)]

mod command;
mod json;
mod machine;
mod pci;
mod random;
mod steps;
mod vcpu;
mod virtio;

use machine::boot::Boot;
use vcpu::Vcpu;

/// Does what the command line says and ends the machine, on vCPU `index` of `count`.
///
/// `start_info` is the physical address of an `hvm_start_info` of the PVH boot protocol, below the first MiB as
/// all that it points to.
pub fn run(start_info: u64, index: u64, count: u64) -> ! {
    let vcpu = Vcpu::new(index, count);
    let boot = Boot::read(start_info);
    for step in command::steps(boot.command_line()) {
        vcpu.meet();
        steps::run(&vcpu, &boot, &step);
    }
    vcpu.meet();
    if vcpu.leads() {
        machine::exit(steps::verdict());
    }
    machine::halt()
}
