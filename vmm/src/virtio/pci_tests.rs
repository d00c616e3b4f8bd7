//! A virtio function on a bus, with wires that remember what was asked of them.

#[path = "pci/leaving_tests.rs"]
mod leaving;
#[path = "pci/saved_tests.rs"]
mod saved;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};

use super::super::Alarm;
use super::*;
use crate::Memory;
use crate::bus::{Bus, Ports};
use crate::layout::{ECAM, PCI_PORTS, PCI_WINDOW};
use crate::pci::{ConfigPorts, Ecam, Message, PciBus, Window};

/// What was asked of the host and of the device.
#[derive(Debug, Default)]
struct Seen {
    vectors: BTreeMap<u16, Message>,
    connected: BTreeMap<Source, u16>,
    signals: Vec<Source>,
    rings: Vec<u16>,
    doorbells: Option<u64>,
    pending: BTreeSet<u16>,
    live: Option<(u64, Vec<u16>)>,
    alarm: Option<Alarm>,
    resets: u32,
    /// How often a reset is asked for before it has ended.
    slow: u32,
}

type Shared = Arc<Mutex<Seen>>;

#[derive(Debug)]
struct Remembered(Shared);

impl Wires for Remembered {
    fn set_vector(&mut self, vector: u16, message: Option<Message>) -> io::Result<()> {
        let vectors = &mut self.0.lock().unwrap().vectors;
        match message {
            Some(message) => vectors.insert(vector, message),
            None => vectors.remove(&vector),
        };
        Ok(())
    }

    fn connect(&mut self, source: Source, vector: Option<u16>) -> io::Result<()> {
        let connected = &mut self.0.lock().unwrap().connected;
        match vector {
            Some(vector) => connected.insert(source, vector),
            None => connected.remove(&source),
        };
        Ok(())
    }

    fn is_pending(&self, vector: u16) -> bool {
        self.0.lock().unwrap().pending.contains(&vector)
    }

    fn settle(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn is_signalled(&self, source: Source) -> bool {
        let seen = self.0.lock().unwrap();
        let vector = seen.connected.get(&source);
        vector.is_some_and(|vector| seen.pending.contains(vector))
    }

    fn signal(&self, source: Source) {
        self.0.lock().unwrap().signals.push(source);
    }

    fn ring(&self, queue: u16) {
        self.0.lock().unwrap().rings.push(queue);
    }

    fn queue_fds(&self, _: u16) -> io::Result<(OwnedFd, OwnedFd)> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC);
        Ok((event()?, event()?))
    }

    fn alarm(&self, raised: Arc<AtomicBool>) -> io::Result<Alarm> {
        Ok(Alarm::new(move || raised.store(true, Ordering::SeqCst)))
    }

    fn place_doorbells(&mut self, address: Option<u64>, _: u64) -> io::Result<()> {
        self.0.lock().unwrap().doorbells = address;
        Ok(())
    }
}

/// A device of two queues whose configuration is eight bytes.
#[derive(Debug)]
struct Device {
    seen: Shared,
    config: [u8; 8],
    queues: Vec<(u16, QueueState)>,
}

impl VirtioDevice for Device {
    fn kind(&self) -> u16 {
        2
    }

    fn features(&self) -> u64 {
        1 << 9
    }

    fn queues(&self) -> Vec<u16> {
        vec![64, 64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (to, byte) in data
            .iter_mut()
            .zip(self.config.iter().skip(offset as usize))
        {
            *to = *byte;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (to, byte) in self.config.iter_mut().skip(offset as usize).zip(data) {
            *to = *byte;
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let mut seen = self.seen.lock().unwrap();
        let queues = activation.queues.iter();
        seen.live = Some((
            activation.features,
            queues.map(|(number, _)| *number).collect(),
        ));
        seen.alarm = Some(activation.alarm);
        let queues = activation.queues.into_iter();
        self.queues = queues
            .map(|(number, setup)| (number, setup.state))
            .collect();
        Ok(())
    }

    fn reset(&mut self) -> Vec<(u16, QueueState)> {
        let mut seen = self.seen.lock().unwrap();
        seen.live = None;
        seen.resets += 1;
        std::mem::take(&mut self.queues)
    }

    fn try_reset(&mut self) -> Option<Vec<(u16, QueueState)>> {
        {
            let mut seen = self.seen.lock().unwrap();
            let left = seen.slow.checked_sub(1);
            if let Some(left) = left {
                seen.slow = left;
                return None;
            }
        }
        Some(self.reset())
    }
}

const AT: u64 = PCI_WINDOW.start + 0x1_0000;

struct Machine {
    bus: Bus,
    function: Arc<Mutex<VirtioFunction>>,
    seen: Shared,
}

impl Machine {
    fn new() -> Self {
        Self::put_in(true)
    }

    /// A machine whose function was there from the beginning, or is put in.
    fn put_in(from_the_beginning: bool) -> Self {
        let seen = Shared::default();
        let device = Device {
            seen: Arc::clone(&seen),
            config: [1, 2, 3, 4, 5, 6, 7, 8],
            queues: Vec::new(),
        };
        let memory = Memory::new(4 << 20, false).unwrap();
        let wires = Box::new(Remembered(Arc::clone(&seen)));
        let memory = memory.guest().clone();
        let mut function = VirtioFunction::new(Box::new(device), wires, memory, AT);
        if from_the_beginning {
            function.switch_on();
        }
        let function = Arc::new(Mutex::new(function));
        let pci = Arc::new(PciBus::new(PCI_WINDOW));
        assert!(pci.insert(1, &(function.clone() as _)));
        assert!(
            !pci.insert(1, &(function.clone() as _)),
            "the slot is taken"
        );
        let mut bus = Bus::default();
        bus.ports
            .add(PCI_PORTS, Arc::new(ConfigPorts::new(Arc::clone(&pci))));
        bus.memory.add(ECAM, Arc::new(Ecam(Arc::clone(&pci))));
        bus.memory.add(PCI_WINDOW, Arc::new(Window(pci)));
        Self {
            bus,
            function,
            seen,
        }
    }

    fn config<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0xAA; N];
        self.bus.memory_read(ECAM.start + (1 << 15) + at, &mut data);
        data
    }

    fn set_config(&self, at: u64, data: &[u8]) {
        self.bus.memory_write(ECAM.start + (1 << 15) + at, data);
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0xAA; N];
        self.bus.memory_read(AT + at, &mut data);
        data
    }

    fn write(&self, at: u64, data: &[u8]) {
        self.bus.memory_write(AT + at, data);
    }

    /// Stop a device that does so at once.
    fn stop(&self) -> Vec<(u16, QueueState)> {
        self.function.lock().unwrap().try_stop().unwrap()
    }

    /// Where the capability of this id, and of this kind of structure, is.
    fn capability(&self, id: u8, kind: Option<u8>) -> u64 {
        let [mut at] = self.config(0x34);
        while at != 0 {
            let [found, next, _, structure] = self.config(u64::from(at));
            if found == id && kind.is_none_or(|kind| kind == structure) {
                return u64::from(at);
            }
            at = next;
        }
        panic!("no capability {id} {kind:?}");
    }

    /// Go through 3.1.1 with queue 0 at 1 MiB.
    fn go_live(&self) {
        for status in [1, 3] {
            self.write(0x14, &[status]);
        }
        self.write(8, &1_u32.to_le_bytes());
        self.write(0xC, &1_u32.to_le_bytes());
        self.write(0x14, &[11]);
        self.write(0x16, &0_u16.to_le_bytes());
        for (register, address) in [(0x20, 0x10_0000_u64), (0x28, 0x10_1000), (0x30, 0x10_2000)] {
            self.write(register, &address.to_le_bytes());
        }
        self.write(0x1C, &1_u16.to_le_bytes());
        self.write(0x14, &[15]);
    }
}

#[test]
fn a_driver_finds_the_device_by_both_ways_to_configuration_space() {
    // 4.1.2: vendor 0x1AF4, device 0x1040 and its type, revision at least 1.
    let machine = Machine::new();
    assert_eq!(machine.config(0), [0xF4, 0x1A, 0x42, 0x10]);
    assert_eq!(machine.config(8), [1]);
    let mut id = [0; 4];
    let address = 1_u32 << 31 | 1 << 11;
    machine.bus.port_write(0xCF8, &address.to_le_bytes());
    machine.bus.port_read(0xCFC, &mut id);
    assert_eq!(id, [0xF4, 0x1A, 0x42, 0x10]);
    machine.bus.port_read(0xCFE, &mut id[..2]);
    assert_eq!(id[..2], [0x42, 0x10]);
    for absent in [
        0_u32,
        1 << 31 | 2 << 11,
        1 << 31 | 1 << 11 | 1 << 8,
        1 << 31 | 1 << 16,
    ] {
        machine.bus.port_write(0xCF8, &absent.to_le_bytes());
        machine.bus.port_read(0xCFC, &mut id);
        assert_eq!(id, [0xFF; 4], "{absent:#x}");
    }
}

#[test]
fn every_structure_is_where_its_capability_says() {
    // 4.1.4: a driver goes by the capabilities alone.
    let machine = Machine::new();
    let place = |kind| {
        let at = machine.capability(9, Some(kind));
        let [bar] = machine.config(at + 4);
        let offset = u64::from(u32::from_le_bytes(machine.config(at + 8)));
        let length = u64::from(u32::from_le_bytes(machine.config(at + 12)));
        assert!(bar == 0 && offset + length <= BAR_BYTES);
        offset
    };
    assert_eq!(machine.read(place(1) + 0x12), [2, 0], "4.1.4.3: two queues");
    assert_eq!(machine.read(place(4)), [1, 2, 3, 4], "4.1.4.6");
    assert_eq!(machine.read(place(3)), [0], "4.1.4.5");
    let notify = machine.capability(9, Some(2));
    assert_eq!(machine.config(notify + 16), 4_u32.to_le_bytes());
    machine.write(place(2) + 4, &1_u16.to_le_bytes());
    assert_eq!(
        machine.seen.lock().unwrap().rings,
        [1],
        "4.1.4.4: queue 1 at its offset"
    );
    machine.write(place(2) + 8, &2_u16.to_le_bytes());
    machine.write(place(2) + 5, &[1]);
    assert_eq!(
        machine.seen.lock().unwrap().rings,
        [1],
        "there is no queue 2"
    );
}

#[test]
fn a_device_goes_live_with_what_was_negotiated_and_stops_at_a_reset() {
    let machine = Machine::new();
    machine.go_live();
    assert_eq!(machine.seen.lock().unwrap().live, Some((1 << 32, vec![0])));
    machine.write(0x14, &[0]);
    assert_eq!(
        machine.read(0x14),
        [0],
        "2.4, 4.1.4.3.1: zero once the device is reset"
    );
    assert_eq!(machine.seen.lock().unwrap().live, None);
    machine.go_live();
    assert!(machine.seen.lock().unwrap().live.is_some(), "and again");
}

#[test]
fn a_queue_that_is_not_in_memory_is_the_drivers_fault() {
    let machine = Machine::new();
    machine.write(0x16, &1_u16.to_le_bytes());
    machine.write(0x30, &(1_u64 << 40).to_le_bytes());
    machine.write(0x1C, &1_u16.to_le_bytes());
    machine.go_live();
    assert_eq!(machine.read(0x14), [79], "2.1.2: DEVICE_NEEDS_RESET");
    assert_eq!(machine.seen.lock().unwrap().live, None);
    assert_eq!(machine.seen.lock().unwrap().signals, [Source::Config]);
}

#[test]
fn interrupts_follow_the_table_and_its_masks() {
    // PCI 3.0, 6.8.2; 4.1.5.1.2: vectors of the configuration and of queues.
    let machine = Machine::new();
    let capability = machine.capability(0x11, None);
    assert_eq!(machine.config(capability + 2), [2, 0], "three vectors");
    machine.write(0x16, &1_u16.to_le_bytes());
    machine.write(0x1A, &2_u16.to_le_bytes());
    let source = Source::Queue(1);
    assert_eq!(
        machine.seen.lock().unwrap().connected.get(&source),
        Some(&2)
    );
    machine.write(TABLE + 32, &0xFEE0_0000_u64.to_le_bytes());
    machine.write(TABLE + 40, &0x51_u64.to_le_bytes());
    assert!(
        machine.seen.lock().unwrap().vectors.is_empty(),
        "MSI-X is off"
    );
    machine.set_config(capability + 2, &0x8000_u16.to_le_bytes());
    let message = Message {
        address: 0xFEE0_0000,
        data: 0x51,
    };
    assert_eq!(machine.seen.lock().unwrap().vectors.get(&2), Some(&message));
    machine.set_config(capability + 2, &0xC000_u16.to_le_bytes());
    assert!(
        machine.seen.lock().unwrap().vectors.is_empty(),
        "all masked"
    );
    machine.seen.lock().unwrap().pending.insert(2);
    assert_eq!(machine.read(PENDING), [0b100]);
}

#[test]
fn a_function_that_is_moved_is_found_at_its_new_place() {
    let machine = Machine::new();
    assert_eq!(machine.seen.lock().unwrap().doorbells, Some(AT + DOORBELLS));
    let there = PCI_WINDOW.start + 0x80_0000;
    machine.set_config(0x10, &(there as u32).to_le_bytes());
    assert_eq!(
        machine.seen.lock().unwrap().doorbells,
        Some(there + DOORBELLS)
    );
    assert_eq!(machine.read(0x12), [0, 0], "not where it was");
    let mut queues = [0; 2];
    machine.bus.memory_read(there + 0x12, &mut queues);
    assert_eq!(queues, [2, 0]);
    machine.set_config(4, &[0, 0]);
    machine.bus.memory_read(there + 0x12, &mut queues);
    assert_eq!(
        (queues, machine.seen.lock().unwrap().doorbells),
        ([0; 2], None)
    );
    machine.set_config(4, &[6, 0]);
    machine.set_config(0x14, &1_u32.to_le_bytes());
    machine.bus.memory_read(there + 0x12, &mut queues);
    assert_eq!(queues, [0; 2], "outside of the window nothing is decoded");
}

#[test]
fn registers_are_reached_through_configuration_space() {
    // 4.1.4.9: the capability for access without base addresses.
    let machine = Machine::new();
    let at = machine.capability(9, Some(5));
    let ask = |offset: u64, length: u32| {
        machine.set_config(at + 4, &[0]);
        machine.set_config(at + 8, &(offset as u32).to_le_bytes());
        machine.set_config(at + 12, &length.to_le_bytes());
    };
    ask(DEVICE, 4);
    assert_eq!(machine.config(at + 16), [1, 2, 3, 4]);
    ask(0x14, 1);
    machine.set_config(at + 16, &[1]);
    assert_eq!(machine.read(0x14), [1]);
    for (offset, length) in [
        (0x14, 3),
        (0x15, 2),
        (BAR_BYTES, 4),
        (u64::from(u32::MAX), 1),
    ] {
        ask(offset, length);
        machine.set_config(at + 16, &[3, 0, 0, 0]);
        let _ = machine.config::<4>(at + 16);
        assert_eq!(machine.read(0x14), [1], "{offset:#x}, {length}");
    }
}

#[test]
fn a_device_that_was_stopped_goes_on_with_its_queues() {
    let machine = Machine::new();
    assert!(machine.stop().is_empty(), "not live");
    machine.go_live();
    let queues = machine.stop();
    assert_eq!((queues.len(), queues[0].1.descriptors), (1, 0x10_0000));
    assert_eq!(machine.stop(), queues, "stopped is stopped");
    assert_eq!(machine.seen.lock().unwrap().live, None);
    machine.function.lock().unwrap().go_on();
    let seen = machine.seen.lock().unwrap();
    assert_eq!(seen.live, Some((1 << 32, vec![0])));
    assert_eq!(seen.rings, [0], "what was rung meanwhile is not missed");
}

#[test]
fn a_reset_that_takes_long_keeps_nobody_waiting_and_ends_with_status_zero() {
    // 2.4, 4.1.4.3.2: the driver waits until it reads zero.
    let machine = Machine::new();
    machine.go_live();
    machine.seen.lock().unwrap().slow = 5;
    machine.write(0x14, &[0]);
    assert_eq!(machine.read(0x14), [15]);
    machine.write(0x14, &[1]);
    machine.write(0x16, &1_u16.to_le_bytes());
    assert_eq!(machine.seen.lock().unwrap().resets, 0);
    assert!(machine.function.lock().unwrap().try_stop().is_none());
    assert_eq!(machine.read(0x14), [0]);
    assert_eq!(machine.read(0x16), [0, 0], "what was written is not kept");
    assert_eq!(machine.seen.lock().unwrap().resets, 1);
    machine.go_live();
    assert_eq!(machine.read(0x14), [15]);
}

#[test]
fn an_alarm_shows_in_the_status_until_the_reset() {
    // 2.1.2.
    let machine = Machine::new();
    machine.go_live();
    let alarm = machine.seen.lock().unwrap().alarm.clone().unwrap();
    alarm.raise();
    assert_eq!(machine.read(0x14), [79]);
    machine.write(0x14, &[0]);
    assert_eq!(machine.read(0x14), [0]);
    machine.function.lock().unwrap().config_changed();
    assert!(
        machine.seen.lock().unwrap().signals.is_empty(),
        "nobody is there"
    );
    machine.go_live();
    machine.function.lock().unwrap().config_changed();
    assert_eq!(machine.seen.lock().unwrap().signals, [Source::Config]);
    assert_eq!(machine.read(ISR), [2], "4.1.4.5");
}

#[derive(Clone, Debug)]
enum Access {
    Port(u16, Vec<u8>),
    Config(u64, Vec<u8>),
    Memory(u64, Vec<u8>),
}

impl Access {
    /// Write, and read what is there then.
    fn make(self, machine: &Machine) {
        match self {
            Self::Port(at, mut data) => {
                machine.bus.port_write(at, &data);
                machine.bus.port_read(at, &mut data);
            }
            Self::Config(at, mut data) => {
                machine.bus.memory_write(ECAM.start + at, &data);
                machine.bus.memory_read(ECAM.start + at, &mut data);
            }
            Self::Memory(at, mut data) => {
                machine.bus.memory_write(at, &data);
                machine.bus.memory_read(at, &mut data);
            }
        }
    }
}

fn access() -> impl Strategy<Value = Access> {
    let data = || prop::collection::vec(any::<u8>(), 1..=8);
    let near = prop_oneof![
        0_u64..0x48,
        TABLE..TABLE + 64,
        PENDING..PENDING + 16,
        DOORBELLS..DOORBELLS + 16,
        0..BAR_BYTES
    ];
    prop_oneof![
        (0xCF8_u16..0xD00, data()).prop_map(|(at, data)| Access::Port(at, data)),
        (0_u64..ECAM.end - ECAM.start, data()).prop_map(|(at, data)| Access::Config(at, data)),
        (0_u64..0x110, data()).prop_map(|(at, data)| Access::Config((1 << 15) + at, data)),
        (near, data()).prop_map(|(at, data)| Access::Memory(AT + at, data)),
        (PCI_WINDOW.start..PCI_WINDOW.end, data()).prop_map(|(at, data)| Access::Memory(at, data)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn hostile_accesses_are_all_answered(accesses in prop::collection::vec(access(), 0..300)) {
        let machine = Machine::new();
        for access in accesses {
            access.make(&machine);
        }
        let seen = machine.seen.lock().unwrap();
        prop_assert!(seen.vectors.keys().all(|vector| *vector < 3));
        prop_assert!(seen.connected.values().all(|vector| *vector < 3));
        prop_assert!(seen.rings.iter().all(|queue| *queue < 2));
        prop_assert_eq!(machine.config(0), [0xF4, 0x1A, 0x42, 0x10]);
    }
}
