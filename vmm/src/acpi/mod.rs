//! The ACPI tables by which a distribution's kernel finds what a machine has.
//!
//! Codec: bytes out, no I/O. They say nothing but this machine's own constants and how many processors it has,
//! so that they are total. The machine is of the hardware-reduced kind: no PM1 and GPE blocks, no legacy
//! timer, no real-time clock; events come by a Generic Event Device (ACPI 6.5, 3.11.1 and 5.6.9).

mod fixed;
mod namespace;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

use crate::layout::ACPI;

/// Who made the tables (ACPI 6.5, 5.2.6).
const OEM: [u8; 6] = *b"DSKFRY";
const OEM_TABLE: [u8; 8] = *b"MACHINE ";
const OEM_REVISION: u32 = 1;
/// Tables begin at a multiple of this.
const ALIGN: u64 = 16;

/// Where the root pointer is: a kernel that was not told looks for it at multiples of 16 from here (5.2.5.1).
pub(crate) const ROOT: u64 = ACPI.start;

/// The tables of a machine with so many processors, each with the address where it belongs.
pub(crate) fn tables(processors: u8) -> Vec<(u64, Vec<u8>)> {
    let mut placed = Vec::new();
    let mut free = ROOT + (Rsdp::len() as u64).next_multiple_of(ALIGN);
    let mut place = |bytes: Vec<u8>| {
        let at = free;
        free = (at + bytes.len() as u64).next_multiple_of(ALIGN);
        placed.push((at, bytes));
        at
    };
    let namespace = place(namespace::table());
    let described = [
        fixed::description(namespace),
        fixed::interrupts(processors),
        fixed::configuration_space(),
    ]
    .map(&mut place);
    let mut list = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in described {
        list.add_entry(table);
    }
    let list = place(bytes(&list));
    placed.push((ROOT, bytes(&Rsdp::new(OEM, list))));
    placed
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
