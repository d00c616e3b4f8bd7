//! The state of a machine that stands still, but its memory and its disks: types of its own, and their bytes.
//!
//! Total on every input: bytes become a [`MachineState`] or a [`DecodeError`] that names the part, the field and
//! the offset. A state that was decoded is written again alike. Must never do I/O, and must not name a
//! structure of KVM: a state written on one kernel is read on another. Specified in `docs/vm-snapshot.md`.

#![deny(clippy::indexing_slicing)]

mod bytes;
mod check;
mod chips;
mod container;
mod devices;
mod error;
mod features;
mod fit;
mod host;
mod processor;

pub use chips::{Chips, Clock, IoApic, Pic, PicMode, Pit, PitChannel};
pub use container::{FORMAT, Kind, MAGIC, MOST_BYTES, SKIPPABLE};
pub use devices::{
    DeviceState, Disk, Events, Function, Network, Pci, Position, Queue, Serial, Transport,
};
pub use error::{DecodeError, Fault};
pub use fit::Misfit;
pub use host::{CpuidLeaf, HostFacts, MemorySlot, Shape};
pub use processor::{
    Activity, Controls, Debug, Exception, General, Interrupt, Msr, Pending, Processor, Segment,
    Segments, Table, Tsc,
};

use check::Order;

/// The state of a machine that stands still, but its memory and its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineState {
    /// The host that it ran on.
    pub host: HostFacts,
    /// How large it is.
    pub shape: Shape,
    /// Its clock.
    pub clock: Clock,
    /// Its interrupt controllers.
    pub chips: Chips,
    /// Its interval timer.
    pub pit: Pit,
    /// Its processors.
    pub processors: Vec<Processor>,
    /// Its serial port.
    pub serial: Serial,
    /// Its events device.
    pub events: Events,
    /// PCI, but its functions.
    pub pci: Pci,
    /// Its virtio devices, by their slots.
    pub functions: Vec<Function>,
}

impl MachineState {
    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = container::begin();
        container::append(&mut bytes, Kind::Host, &self.host);
        container::append(&mut bytes, Kind::Shape, &self.shape);
        container::append(&mut bytes, Kind::Clock, &self.clock);
        container::append(&mut bytes, Kind::Chips, &self.chips);
        container::append(&mut bytes, Kind::Pit, &self.pit);
        for processor in &self.processors {
            container::append(&mut bytes, Kind::Processor, processor);
        }
        container::append(&mut bytes, Kind::Serial, &self.serial);
        container::append(&mut bytes, Kind::Events, &self.events);
        container::append(&mut bytes, Kind::Pci, &self.pci);
        for function in &self.functions {
            container::append(&mut bytes, Kind::Function, function);
        }
        container::finish(bytes)
    }

    /// What these bytes say.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let messages = container::messages(bytes)?;
        let mut order = Order::new(&messages, bytes.len() as u64);
        let state = Self {
            host: order.one(Kind::Host)?,
            shape: order.one(Kind::Shape)?,
            clock: order.one(Kind::Clock)?,
            chips: order.one(Kind::Chips)?,
            pit: order.one(Kind::Pit)?,
            processors: order.all(Kind::Processor)?,
            serial: order.one(Kind::Serial)?,
            events: order.one(Kind::Events)?,
            pci: order.one(Kind::Pci)?,
            functions: order.all(Kind::Function)?,
        };
        order.end()?;
        state.check()?;
        Ok(state)
    }
}

impl HostFacts {
    /// The bytes of them, in the form of a state that says nothing else.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = container::begin();
        container::append(&mut bytes, Kind::Host, self);
        container::finish(bytes)
    }

    /// What these bytes say.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let messages = container::messages(bytes)?;
        let mut order = Order::new(&messages, bytes.len() as u64);
        let facts = order.one(Kind::Host)?;
        order.end()?;
        Ok(facts)
    }
}

#[cfg(test)]
mod tests;
