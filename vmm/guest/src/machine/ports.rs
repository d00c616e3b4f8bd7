//! The ports of the machine.
//!
//! Safe to call: a port changes what a device does, and a device changes only memory that was given
//! to it by a queue, which is never lent as a reference.

use core::arch::asm;

/// Reads a byte.
pub(crate) fn read8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: the entry sets IOPL to 3, so that ring 3 may; no memory is touched.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Writes a byte.
pub(crate) fn write8(port: u16, value: u8) {
    // SAFETY: as above.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) };
}

/// Reads four bytes.
pub(crate) fn read32(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as above.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

/// Writes four bytes.
pub(crate) fn write32(port: u16, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) };
}
