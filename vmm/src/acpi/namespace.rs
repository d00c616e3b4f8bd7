//! The DSDT: devices by name, in AML.
//!
//! Specified in ACPI 6.5, chapters 5, 6, 19 and 20. PCI with a place for each device that can be put in and
//! taken out, COM1, the power button, the Generic Event Device that says what happened (`devices/events.rs`),
//! and the port by which a kernel says that it panicked (QEMU's `docs/specs/pvpanic.rst`).

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, Notify,
    OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::layout::{
    ECAM, EVENTS, EVENTS_IRQ, PANIC, PCI_PORTS, PCI_WINDOW, SERIAL, SERIAL_IRQ, SLEEP_OFF,
};
use crate::pci::SLOTS;

/// `_STA`: present, enabled, shown, works (6.3.7).
const PRESENT: u8 = 0xF;
/// What a device is notified of (5.6.6): look again at all of a bus, or at it; let go of it; and the power button was
/// pressed.
const BUS_CHECK: u8 = 0;
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
const PRESSED: u8 = 0x80;
/// Registers of the events device, in their order: what happened, slots filled, slots wanted back, slots that
/// the guest lets go of.
const REGISTERS: [&[u8; 4]; 4] = [b"HPND", b"FILL", b"WANT", b"LETG"];
const BUTTON: u8 = 1;
const SLOTS_CHANGED: u8 = 2;

/// AML that was put into bytes already: what a list of them is built of.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn name(of: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(of), value)
}

/// The table.
pub(super) fn table() -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    let devices: [&dyn Aml; 7] = [
        &Raw(bus()),
        &Raw(kept()),
        &Raw(serial_port()),
        &Raw(panic_port()),
        &Raw(power_button()),
        &Raw(registers()),
        &Raw(events()),
    ];
    table.append_slice(&super::bytes(&Scope::new(
        Path::new("_SB_"),
        devices.to_vec(),
    )));
    // Only switching off is there (7.4.2). The second number is of a register that the machine lacks.
    let off = Package::new(vec![&SLEEP_OFF, &ZERO]);
    table.append_slice(&super::bytes(&name("_S5_", &off)));
    table.as_slice().to_vec()
}

/// A device by its id, with number 0 and what else is said of it.
fn device(path: &str, id: &dyn Aml, parts: Vec<&dyn Aml>) -> Vec<u8> {
    let (id, number) = (name("_HID", id), name("_UID", &ZERO));
    let mut children: Vec<&dyn Aml> = vec![&id, &number];
    children.extend(parts);
    super::bytes(&Device::new(Path::new(path), children))
}

/// A range of ports that is where it is.
fn ports(range: &std::ops::Range<u64>) -> IO {
    let first = range.start as u16;
    IO::new(first, first, 1, (range.end - range.start) as u8)
}

/// An interrupt line of the I/O APIC by rising edge, not shared.
fn line(number: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, number)
}

/// A slot's name.
fn slot_name(slot: usize) -> String {
    format!("S{slot:03}")
}

/// The mask of a slot.
fn mask(slot: usize) -> u32 {
    1 << slot
}

/// Bus 0 with its slots (PCI Firmware Specification 3.3, 4.1.3).
fn bus() -> Vec<u8> {
    let compatible = name("_CID", &EISAName::new("PNP0A03"));
    let (segment, number) = (name("_SEG", &ZERO), name("_BBN", &ZERO));
    let buses = AddressSpace::new_bus_number(0_u16, 0);
    let mechanism = ports(&PCI_PORTS);
    let window = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        PCI_WINDOW.start as u32,
        (PCI_WINDOW.end - 1) as u32,
        None,
    );
    let resources = name(
        "_CRS",
        &ResourceTemplate::new(vec![&buses, &mechanism, &window]),
    );
    let slots: Vec<Raw> = (1..SLOTS).map(|slot| Raw(slot_device(slot))).collect();
    let look = Raw(look_at_slots());
    let mut parts: Vec<&dyn Aml> = vec![&compatible, &segment, &number, &resources];
    parts.extend(slots.iter().map(|slot| slot as &dyn Aml));
    parts.push(&look);
    device("PCI0", &EISAName::new("PNP0A08"), parts)
}

/// A device of bus 0 that can be put in and taken out while the machine runs (6.3.3).
fn slot_device(slot: usize) -> Vec<u8> {
    let address = name("_ADR", &((slot as u32) << 16));
    let number = name("_SUN", &(slot as u32));
    let (register, mask) = (Path::new("\\_SB_.LETG"), mask(slot));
    let eject = Store::new(&register, &mask);
    let eject = Method::new(Path::new("_EJ0"), 1, true, vec![&eject]);
    super::bytes(&Device::new(
        Path::new(&slot_name(slot)),
        vec![&address, &number, &eject],
    ))
}

/// Notifies every slot of which a register says something. Reading clears the registers, so each is read once. A bus
/// is looked at as a whole too: a kernel that checks a slot finds what is new there, but not what is gone.
fn look_at_slots() -> Vec<u8> {
    let mut body = Vec::new();
    let registers = [("FILL", 0, DEVICE_CHECK), ("WANT", 1, EJECT_REQUEST)];
    for (register, local, _) in registers {
        let (local, register) = (Local(local), Path::new(&format!("\\_SB_.{register}")));
        body.extend(super::bytes(&Store::new(&local, &register)));
    }
    for slot in 1..SLOTS {
        for (_, local, what) in registers {
            let (local, mask, path) = (Local(local), mask(slot), Path::new(&slot_name(slot)));
            let (is_set, tell) = (And::new(&ZERO, &local, &mask), Notify::new(&path, &what));
            body.extend(super::bytes(&If::new(&is_set, vec![&tell])));
        }
    }
    let (filled, bus) = (Local(0), Path::new("\\_SB_.PCI0"));
    let check = Notify::new(&bus, &BUS_CHECK);
    body.extend(super::bytes(&If::new(&filled, vec![&check])));
    let body = Raw(body);
    super::bytes(&Method::new(Path::new("LOOK"), 0, true, vec![&body]))
}

/// Configuration space, which must be somebody's so that nothing is put there (PCI Firmware 3.3, 4.1.2).
fn kept() -> Vec<u8> {
    let length = (ECAM.end - ECAM.start) as u32;
    let space = Memory32Fixed::new(true, ECAM.start as u32, length);
    let resources = name("_CRS", &ResourceTemplate::new(vec![&space]));
    device("KEPT", &EISAName::new("PNP0C02"), vec![&resources])
}

fn serial_port() -> Vec<u8> {
    let (ports, line) = (ports(&SERIAL), line(SERIAL_IRQ));
    let resources = name("_CRS", &ResourceTemplate::new(vec![&ports, &line]));
    let status = name("_STA", &PRESENT);
    device("COM1", &EISAName::new("PNP0501"), vec![&status, &resources])
}

fn panic_port() -> Vec<u8> {
    let ports = ports(&PANIC);
    let resources = name("_CRS", &ResourceTemplate::new(vec![&ports]));
    let status = name("_STA", &PRESENT);
    device("PANC", &"QEMU0001", vec![&status, &resources])
}

fn power_button() -> Vec<u8> {
    let status = name("_STA", &PRESENT);
    device("PWRB", &EISAName::new("PNP0C0C"), vec![&status])
}

/// The registers of the events device, as fields.
fn registers() -> Vec<u8> {
    let (start, length) = (EVENTS.start as u32, (EVENTS.end - EVENTS.start) as u32);
    let path = || Path::new("EVTS");
    let region = OpRegion::new(path(), OpRegionSpace::SystemIO, &start, &length);
    let fields = REGISTERS.map(|name| FieldEntry::Named(*name, 32));
    let field = Field::new(
        path(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        fields.to_vec(),
    );
    [super::bytes(&region), super::bytes(&field)].concat()
}

/// The Generic Event Device: on its interrupt line, ask what happened and tell those whom it is about.
fn events() -> Vec<u8> {
    let line = line(EVENTS_IRQ);
    let resources = name("_CRS", &ResourceTemplate::new(vec![&line]));
    let (happened, register) = (Local(0), Path::new("\\_SB_.HPND"));
    let read = Store::new(&happened, &register);
    let (button, path) = (
        And::new(&ZERO, &happened, &BUTTON),
        Path::new("\\_SB_.PWRB"),
    );
    let press = Notify::new(&path, &PRESSED);
    let press = If::new(&button, vec![&press]);
    let slots = And::new(&ZERO, &happened, &SLOTS_CHANGED);
    let look = Path::new("\\_SB_.PCI0.LOOK");
    let look = If::new(&slots, vec![&look]);
    let event = Method::new(Path::new("_EVT"), 1, true, vec![&read, &press, &look]);
    device("GEDV", &"ACPI0013", vec![&resources, &event])
}
