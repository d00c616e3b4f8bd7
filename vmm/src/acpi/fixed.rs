//! The tables whose form is fixed: FADT, MADT and MCFG.
//!
//! Specified in ACPI 6.5, 5.2.9 and 5.2.12, and in the PCI Firmware Specification 3.3, 4.1.2.

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::devices::PULSE_RESET;
use crate::layout::{ECAM, IO_APIC, LOCAL_APIC, RESET, SLEEP};

/// `IAPC_BOOT_ARCH`: no VGA, no real-time clock; that the other bits are clear says that there is no
/// keyboard controller and that messages are supported (5.2.9.3).
const LEGACY: u16 = 1 << 2 | 1 << 5;

/// The MADT's revision (5.2.12).
const MADT_REVISION: u8 = 5;
/// Entries of the MADT, by type.
const PROCESSOR: u8 = 0;
const IO_CONTROLLER: u8 = 1;
const NON_MASKABLE: u8 = 4;
/// A processor is there and may be used.
const ENABLED: u32 = 1;
/// The number that stands for all processors, and their second local interrupt line.
const ALL_PROCESSORS: u8 = 0xFF;
const LINE_1: u8 = 1;

fn byte_at_port(port: u64) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
}

/// The FADT: how the machine is reset and switched off, and what it lacks.
pub(super) fn description(namespace: u64) -> Vec<u8> {
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(namespace)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    table.iapc_boot_arch = LEGACY.into();
    table.reset_reg = byte_at_port(RESET.start);
    table.reset_value = PULSE_RESET;
    table.sleep_control_reg = byte_at_port(SLEEP.start);
    table.sleep_status_reg = byte_at_port(SLEEP.start + 1);
    table.hypervisor_vendor_identity = u64::from_le_bytes(*b"DSKFERRY").into();
    super::bytes(&table.finalize())
}

/// The MADT: processors, which are numbered from 0 to at most 254 so that none needs an entry for x2APIC
/// ids, and the I/O APIC. Its lines are those of the ISA bus, none is moved.
pub(super) fn interrupts(processors: u8) -> Vec<u8> {
    let mut list = Vec::new();
    list.extend((LOCAL_APIC as u32).to_le_bytes());
    // Flags: no pair of 8259s that would have to be silenced.
    list.extend(0_u32.to_le_bytes());
    for id in 0..processors {
        list.extend([PROCESSOR, 8, id, id]);
        list.extend(ENABLED.to_le_bytes());
    }
    // The I/O APIC's id is the first that no processor has.
    list.extend([IO_CONTROLLER, 12, processors, 0]);
    list.extend((IO_APIC as u32).to_le_bytes());
    list.extend(0_u32.to_le_bytes());
    list.extend([NON_MASKABLE, 6, ALL_PROCESSORS, 0, 0, LINE_1]);
    let mut table = Sdt::new(*b"APIC", 36, MADT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&list);
    table.as_slice().to_vec()
}

/// The MCFG: where the configuration space of bus 0 is.
pub(super) fn configuration_space() -> Vec<u8> {
    let mut table = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    table.add_ecam(ECAM.start, 0, 0, 0);
    super::bytes(&table)
}
