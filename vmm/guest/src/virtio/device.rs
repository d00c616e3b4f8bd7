//! A virtio device on PCI by its modern registers (4.1.4).

use crate::machine::boot::Boot;
use crate::machine::memory::Window;
use crate::pci::{self, Function};
use crate::vcpu::Vcpu;

use super::queue::{Doorbell, Queue};

/// Device types (5).
pub(crate) const NETWORK: u16 = 1;
pub(crate) const BLOCK: u16 = 2;
pub(crate) const ENTROPY: u16 = 4;

/// Feature bits of every device (6).
pub(crate) const INDIRECT: u64 = 1 << 28;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

const VENDOR: u16 = 0x1af4;
/// A modern device's identifier is its type and this.
const MODERN: u16 = 0x1040;
/// The first identifier of transitional devices, whose subsystem tells the type (4.1.2.3).
const TRANSITIONAL: u16 = 0x1000;
/// PCI's capability for what a vendor likes.
const VENDOR_CAPABILITY: u8 = 9;

/// Kinds of virtio's capabilities (4.1.4).
const REGISTERS: u8 = 1;
const NOTIFY: u8 = 2;
const CONFIG: u8 = 4;

/// The registers (4.1.4.3).
const DEVICE_FEATURE_SELECT: u64 = 0;
const DEVICE_FEATURE: u64 = 4;
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const NUM_QUEUES: u64 = 18;
const STATUS: u64 = 20;
const GENERATION: u64 = 21;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_NOTIFY_OFF: u64 = 30;
const QUEUE_ADDRESSES: u64 = 32;
/// Bytes of the registers up to the last that is used.
const REGISTERS_LEN: u32 = 56;

/// Device status (2.1).
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;

/// A device and where its registers are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    registers: Window,
    notify: Window,
    notify_step: u32,
    config: Option<Window>,
}

impl Device {
    /// The device of a type that is `nth` on the bus, from 0.
    pub(crate) fn find(boot: &Boot, kind: u16, nth: usize) -> Self {
        let is_it = |function: &Function| kind_of(*function) == Some(kind);
        let function = pci::functions().filter(is_it).nth(nth);
        let function = function.unwrap_or_else(|| panic!("no virtio device {nth} of type {kind}"));
        Self::of(boot, function)
    }

    /// The device that a function is.
    pub(crate) fn of(boot: &Boot, function: Function) -> Self {
        function.switch_on();
        let registers = place(function, REGISTERS).expect("the registers of a virtio 1.0 device");
        let notify = place(function, NOTIFY).expect("where to notify");
        let notify_step = function.read(notify.at + 16);
        let config = place(function, CONFIG);
        assert!(registers.len >= REGISTERS_LEN, "{registers:?}");
        Self {
            registers: registers.window(boot, function),
            notify: notify.window(boot, function),
            notify_step,
            config: config.map(|place| place.window(boot, function)),
        }
    }

    /// Resets it, and agrees with it on those of the `wanted` features that it offers: which (3.1.1).
    pub(crate) fn negotiate(&self, vcpu: &Vcpu, wanted: u64) -> u64 {
        self.reset(vcpu);
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        let mut offered = 0;
        for half in [0u32, 1] {
            self.registers.write(DEVICE_FEATURE_SELECT, half);
            let features = self.registers.read::<u32>(DEVICE_FEATURE);
            offered |= u64::from(features) << (32 * half);
        }
        assert!(offered & VERSION_1 != 0, "a device older than virtio 1.0");
        let agreed = offered & (wanted | VERSION_1);
        for half in [0u32, 1] {
            self.registers.write(DRIVER_FEATURE_SELECT, half);
            let features = (agreed >> (32 * half)) as u32;
            self.registers.write(DRIVER_FEATURE, features);
        }
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert!(
            self.status() & FEATURES_OK != 0,
            "features {agreed:#x} were refused"
        );
        agreed
    }

    /// Takes everything from it (2.4).
    pub(crate) fn reset(&self, vcpu: &Vcpu) {
        self.set_status(0);
        while self.status() != 0 {
            vcpu.beat();
        }
    }

    /// How many queues it has.
    pub(crate) fn queues(&self) -> u16 {
        self.registers.read(NUM_QUEUES)
    }

    /// How many descriptors its queue `index` may have.
    pub(crate) fn longest_queue(&self, index: u16) -> u16 {
        self.registers.write(QUEUE_SELECT, index);
        self.registers.read(QUEUE_SIZE)
    }

    /// Gives it a queue, whose memory is zero.
    pub(crate) fn set_queue(&self, index: u16, queue: &Queue) {
        self.registers.write(QUEUE_SELECT, index);
        self.registers.write(QUEUE_SIZE, queue.size());
        for (at, address) in (QUEUE_ADDRESSES..).step_by(8).zip(queue.addresses()) {
            self.registers.write(at, address as u32);
            self.registers.write(at + 4, (address >> 32) as u32);
        }
        self.registers.write(QUEUE_ENABLE, 1u16);
    }

    /// Where to say that its queue `index` has something new (4.1.4.4).
    pub(crate) fn doorbell(&self, index: u16) -> Doorbell {
        self.registers.write(QUEUE_SELECT, index);
        let off = self.registers.read::<u16>(QUEUE_NOTIFY_OFF);
        let at = u64::from(off) * u64::from(self.notify_step);
        Doorbell::new(self.notify.part(at, 2), index)
    }

    /// From now on it works.
    pub(crate) fn start(&self) {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        self.expect_health();
    }

    /// Panics if it says that it is broken.
    pub(crate) fn expect_health(&self) {
        let status = self.status();
        assert!(
            status & NEEDS_RESET == 0 && status & DRIVER_OK != 0,
            "the device's status is {status:#x}"
        );
    }

    /// `N` words of four bytes of its own configuration from `offset` on, all of one moment (2.5.1).
    pub(crate) fn config<const N: usize>(&self, offset: u64) -> [u32; N] {
        let config = self.config.expect("a device with a configuration");
        loop {
            let before = self.registers.read::<u8>(GENERATION);
            let words = core::array::from_fn(|i| config.read(offset + 4 * i as u64));
            if self.registers.read::<u8>(GENERATION) == before {
                return words;
            }
        }
    }

    fn status(&self) -> u8 {
        self.registers.read(STATUS)
    }

    fn set_status(&self, status: u8) {
        self.registers.write(STATUS, status);
    }
}

/// The type of a virtio device; `None` for others.
pub(crate) fn kind_of(function: Function) -> Option<u16> {
    match function.ids() {
        (VENDOR, id @ MODERN..0x1080) => Some(id - MODERN),
        (VENDOR, TRANSITIONAL..MODERN) => Some(function.subsystem().1),
        _ => None,
    }
}

/// What one of virtio's capabilities says.
#[derive(Debug)]
struct Place {
    at: u8,
    bar: u8,
    offset: u32,
    len: u32,
}

impl Place {
    fn window(&self, boot: &Boot, function: Function) -> Window {
        function.registers(boot, self.bar, self.offset, self.len)
    }
}

/// The first capability of a kind: a device lists what it prefers first.
fn place(function: Function, kind: u8) -> Option<Place> {
    let is_it = |at: &u8| (function.read(*at) >> 24) as u8 == kind;
    let at = function.capabilities(VENDOR_CAPABILITY).find(is_it)?;
    Some(Place {
        at,
        bar: function.read(at + 4) as u8,
        offset: function.read(at + 8),
        len: function.read(at + 12),
    })
}
