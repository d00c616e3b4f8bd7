//! The bare machine: ports, physical memory, the serial line, and how the program is entered.
//!
//! All unsafe code of the guest is here. It is sound because nothing else runs in this machine:
//! memory is mapped one to one and all of it is ours, but for the first MiB, which the boot loader
//! filled and which is only read.

pub(crate) mod boot;
#[cfg(freestanding)]
mod entry;
pub(crate) mod lock;
#[cfg(freestanding)]
mod memcpy;
pub(crate) mod memory;
pub(crate) mod ports;
pub(crate) mod serial;

use core::arch::asm;

/// A byte written here ends the machine: QEMU calls it `isa-debug-exit`, ours knows it too.
const EXIT_PORT: u16 = 0xf4;

/// The time stamp counter.
pub(crate) fn ticks() -> u64 {
    let (high, low): (u32, u32);
    // SAFETY: it reads a counter; the entry left CR4.TSD clear, so ring 3 may.
    unsafe { asm!("rdtsc", out("edx") high, out("eax") low, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Ends the machine with a code.
pub(crate) fn exit(code: u8) -> ! {
    ports::write8(EXIT_PORT, code);
    halt()
}

/// Does nothing any more. `hlt` is not ring 3's.
pub(crate) fn halt() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// An exception that nothing handles: the machine shuts down.
pub(crate) fn undefined_instruction() -> ! {
    // SAFETY: nothing runs after it.
    unsafe { asm!("ud2", options(noreturn, nostack)) }
}
