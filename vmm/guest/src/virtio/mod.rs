//! The driver's side of virtio 1.2: devices on PCI, split queues, disks and network cards.
//!
//! It polls and never asks for an interrupt. Clauses are those of the specification.

pub(crate) mod device;
pub(crate) mod disk;
pub(crate) mod net;
pub(crate) mod queue;
