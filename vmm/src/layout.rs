//! Where things are in a machine's physical addresses.
//!
//! Numbers only, drawn in `docs/vmm.md`. Memory begins at 0; what does not fit below the hole goes on at
//! 4 GiB. What the machine itself puts into memory before it starts is below 1 MiB, so that a kernel, which
//! is loaded above, can never lie over it.

use std::ops::Range;

/// Size of a page.
pub const PAGE: u64 = 4096;
/// One GiB.
pub const GIB: u64 = 1 << 30;
/// Where no memory is, so that devices can be there.
pub const HOLE: Range<u64> = 3 * GIB..4 * GIB;
/// Where the base address registers of PCI functions point to.
pub const PCI_WINDOW: Range<u64> = 0xC000_0000..0xE000_0000;
/// The configuration space of PCI bus 0, a page a function (PCI Express 5.0, 7.2.2).
pub const ECAM: Range<u64> = 0xE000_0000..0xE010_0000;
/// The I/O APIC, where KVM has it.
pub const IO_APIC: u64 = 0xFEC0_0000;
/// The local APICs.
pub const LOCAL_APIC: u64 = 0xFEE0_0000;
/// Pages that KVM wants for itself on processors that cannot run real mode: one page table.
pub const IDENTITY_MAP: u64 = 0xFFFB_C000;
/// And three pages of task state.
pub const TASK_STATE: u64 = 0xFFFB_D000;

/// The descriptor table that vCPUs start with.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` of the PVH boot protocol.
pub const START_INFO: u64 = 0x6000;
/// Its list of modules: one, the initrd.
pub const MODULES: u64 = 0x6080;
/// Its map of memory.
pub const MEMORY_MAP: u64 = 0x6100;
/// `boot_params` of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables that vCPUs start with; at most eight pages.
pub const PAGE_TABLES: u64 = 0x9000;
/// The task state segment that they start with, with its map of ports: three pages.
pub const TSS: u64 = 0x1_2000;
/// The command line, and its greatest length with the NUL.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes that there are for the command line and its NUL.
pub const COMMAND_LINE_BYTES: usize = 0x1_0000;
/// Where memory that a kernel may use freely ends, below 1 MiB.
pub const LOW_END: u64 = 0x9_FC00;
/// The ACPI tables, the pointer to their root first: where kernels look for it.
pub const ACPI: Range<u64> = 0xE_0000..0xF_0000;
/// Where firmware begins after a reset, for a kernel that jumps there in real mode.
pub const RESET_VECTOR: u64 = 0xF_FFF0;
/// Where programs and kernels are loaded: nothing of theirs may be below.
pub const LOAD: u64 = 0x10_0000;

/// The 8250's ports (COM1), and its interrupt.
pub const SERIAL: Range<u64> = 0x3F8..0x400;
/// The interrupt line of COM1.
pub const SERIAL_IRQ: u32 = 4;
/// The keyboard controller's command port: 0xFE resets the machine.
pub const RESET: Range<u64> = 0x64..0x65;
/// A byte written here ends the machine with that code.
pub const POWER_OFF: Range<u64> = 0xF4..0xF5;
/// What happened while the machine runs: the power button, and slots of PCI that changed.
pub const EVENTS: Range<u64> = 0xAE00..0xAE10;
/// The interrupt line of [`EVENTS`], by edge.
pub const EVENTS_IRQ: u32 = 5;
/// The sleep registers of ACPI: control, status.
pub const SLEEP: Range<u64> = 0xAE10..0xAE12;
/// What a guest writes into the sleep control register to be switched off (the type of sleep S5).
pub const SLEEP_OFF: u8 = 5;
/// A kernel that panics says so here (QEMU's pvpanic).
pub const PANIC: Range<u64> = 0x505..0x506;
/// PCI configuration mechanism 1: address and data.
pub const PCI_PORTS: Range<u64> = 0xCF8..0xD00;

/// Interrupt lines of the I/O APIC; numbers of messages begin behind them.
pub const LINES: u32 = 24;

/// Where `bytes` of memory, of which there are less than 2^63, are: below the hole, and from 4 GiB on.
#[must_use]
pub fn memory_ranges(bytes: u64) -> Vec<Range<u64>> {
    let below = 0..bytes.min(HOLE.start);
    let above = HOLE.end..HOLE.end + bytes.saturating_sub(HOLE.start);
    let parts = [below, above].into_iter();
    parts.filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_never_lies_in_the_hole_and_none_is_lost() {
        for bytes in [PAGE, HOLE.start, HOLE.start + PAGE, 512 * GIB, 1024 * GIB] {
            let ranges = memory_ranges(bytes);
            let sum: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            assert_eq!(sum, bytes);
            for range in ranges {
                assert!(range.end <= HOLE.start || range.start >= HOLE.end);
            }
        }
    }

    #[test]
    fn what_is_in_the_hole_does_not_overlap() {
        let places = [
            PCI_WINDOW,
            ECAM,
            IO_APIC..IO_APIC + PAGE,
            LOCAL_APIC..LOCAL_APIC + PAGE,
            IDENTITY_MAP..TASK_STATE,
            TASK_STATE..TASK_STATE + 3 * PAGE,
        ];
        for (at, one) in places.iter().enumerate() {
            assert!(HOLE.start <= one.start && one.end <= HOLE.end);
            for other in places.iter().skip(at + 1) {
                assert!(one.end <= other.start || other.end <= one.start);
            }
        }
    }

    #[test]
    fn ports_do_not_overlap() {
        let mut ports = [SERIAL, RESET, POWER_OFF, EVENTS, SLEEP, PANIC, PCI_PORTS];
        ports.sort_by_key(|range| range.start);
        for pair in ports.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:x?}");
        }
    }
}
