//! A KVM machine monitor that runs from Diskferry's disks.
//!
//! [`Machine`] is memory, processors and devices of one guest; `docs/vmm.md` draws it. Floors: `pci`,
//! `virtio` and `devices` are machines (registers in, effects out) over guest memory; `snapshot` is a codec; `kvm`, `memory`,
//! `vcpus` and `machine` are drivers; what is read of a kernel's file is decoded in `boot`. Nothing in this
//! crate may decide what a disk holds: that is the engine's, and a device hands ranges to it.

mod acpi;
mod boot;
mod bus;
pub mod confine;
pub mod description;
mod devices;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod guest;
pub mod installed;
mod kvm;
pub mod layout;
mod machine;
pub mod memory;
mod pci;
mod slots;
pub mod snapshot;
pub mod statistics;
pub mod text;
mod threads;
mod vcpus;
pub mod virtio;
mod wiring;

pub use devices::Output;
pub use error::{Error, ErrorKind, Result};
pub use machine::{Devices, Exit, Machine, MachineConfig, host_facts};
pub use memory::Memory;
pub use slots::DeviceLeaving;
