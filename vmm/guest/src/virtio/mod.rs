//! The driver's side of virtio 1.2: devices on PCI, split queues, and disks.
//!
//! It polls and never asks for an interrupt. Clauses are those of the specification.

pub(crate) mod device;
pub(crate) mod disk;
pub(crate) mod queue;
