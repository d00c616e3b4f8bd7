//! Devices: the serial port, the events device, PCI and the virtio devices on it.
//!
//! What is checked here is what a state says of itself; whether it is one that a driver can bring about with
//! the device that is there is checked by the device's own registers, see `crate::virtio`.

use super::bytes::{Encoded, Reader, layout};
use super::error::DecodeError;

layout! {
    /// The serial port (16550A).
    pub struct Serial {
        /// Divisor latch, low byte.
        pub divisor_low: u8,
        /// Divisor latch, high byte.
        pub divisor_high: u8,
        /// Interrupt enable register.
        pub interrupt_enable: u8,
        /// Interrupt identification register.
        pub interrupt_identification: u8,
        /// Line control register.
        pub line_control: u8,
        /// Line status register.
        pub line_status: u8,
        /// Modem control register.
        pub modem_control: u8,
        /// Modem status register.
        pub modem_status: u8,
        /// Scratch register.
        pub scratch: u8,
        /// What the guest has not read yet, at most 64 bytes.
        pub input: Vec<u8>,
    }

    /// The events device: what its registers would read.
    pub struct Events {
        /// What happened.
        pub happened: u32,
        /// Slots that are to be looked at again.
        pub changed: u32,
        /// Slots whose device is wanted back.
        pub wanted: u32,
    }

    /// PCI, but its functions.
    pub struct Pci {
        /// The address register at port 0xCF8.
        pub address: u32,
        /// The configuration space of the host bridge.
        pub host_bridge: [u8; 256],
    }

    /// How far a queue is that its device had (VIRTIO 1.2, 2.7).
    pub struct Position {
        /// Index of the next available entry that the device takes.
        pub next_available: u16,
        /// Index of the next used entry that the device writes.
        pub next_used: u16,
    }

    /// A queue as its driver has set it up (VIRTIO 1.2, 4.1.4.3).
    pub struct Queue {
        /// The greatest size it may have: zero, or a power of two up to 32768.
        pub most: u16,
        /// Its size.
        pub size: u16,
        /// Its vector; 0xFFFF for none.
        pub vector: u16,
        /// It is enabled.
        pub enabled: bool,
        /// Guest addresses of the descriptor table, the driver area and the device area.
        pub areas: [u64; 3],
        /// How far it is, of a queue that is enabled in a device that is at work.
        pub position: Option<Position>,
        /// The driver was signalled while the vector was masked, and does not know it yet.
        pub signalled: bool,
    }

    /// The registers of a virtio device.
    pub struct Transport {
        /// Features that the device offers.
        pub offered: u64,
        /// Features that the driver has accepted so far.
        pub accepted: u64,
        /// Which half of the features is read, and written.
        pub halves: [u32; 2],
        /// The device status.
        pub status: u8,
        /// The generation of the configuration.
        pub generation: u8,
        /// The ISR status.
        pub isr: u8,
        /// The vector of the configuration; 0xFFFF for none.
        pub config_vector: u16,
        /// It was signalled while its vector was masked.
        pub config_signalled: bool,
        /// Which queue is selected.
        pub selected: u16,
        /// The queues.
        pub queues: Vec<Queue>,
    }

    /// A virtio device on PCI.
    pub struct Function {
        /// Its slot on bus 0, from 1 to 31.
        pub slot: u8,
        /// Its configuration space.
        pub config: [u8; 256],
        /// The table of MSI-X: address, upper address, data and control of each vector.
        pub vectors: Vec<[u32; 4]>,
        /// Its registers.
        pub transport: Transport,
        /// What the device itself remembers.
        pub device: DeviceState,
    }

    /// What a disk remembers.
    pub struct Disk {
        /// Its size in sectors of 512 bytes.
        pub sectors: u64,
        /// Bytes of a logical sector.
        pub logical_sector: u32,
        /// What it calls itself: 20 bytes, zero behind its end.
        pub serial: [u8; 20],
    }

    /// What a network device remembers (VIRTIO 1.2, 5.1.4): both stay as its driver has read them.
    pub struct Network {
        /// Its address.
        pub mac: [u8; 6],
        /// Its MTU in bytes.
        pub mtu: u16,
    }
}

/// What a virtio device itself remembers, by its number (VIRTIO 1.2, 5).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceState {
    /// A disk.
    Disk(Disk),
    /// A network device.
    Network(Network),
    /// A device of this number that remembers nothing.
    Plain(u16),
}

/// The numbers of a network device and of a block device (VIRTIO 1.2, 5).
const NET: u16 = 1;
const BLOCK: u16 = 2;

impl DeviceState {
    /// The number of the device.
    #[must_use]
    pub fn kind(&self) -> u16 {
        match self {
            Self::Disk(_) => BLOCK,
            Self::Network(_) => NET,
            Self::Plain(kind) => *kind,
        }
    }
}

/// Forms in which a device remembers something.
const NOTHING: u8 = 0;
const DISK: u8 = 1;
const NETWORK: u8 = 2;

impl Encoded for DeviceState {
    fn put(&self, to: &mut Vec<u8>) {
        self.kind().put(to);
        match self {
            Self::Plain(_) => NOTHING.put(to),
            Self::Disk(disk) => {
                DISK.put(to);
                disk.put(to);
            }
            Self::Network(network) => {
                NETWORK.put(to);
                network.put(to);
            }
        }
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = from.take::<u16>()?;
        match (from.take::<u8>()?, kind) {
            (NOTHING, _) => Ok(Self::Plain(kind)),
            (DISK, BLOCK) => Ok(Self::Disk(from.take()?)),
            (NETWORK, NET) => Ok(Self::Network(from.take()?)),
            _ => Err(from.wrong("a device of this kind does not remember this")),
        }
    }
}
