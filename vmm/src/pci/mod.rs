//! PCI: one bus with up to 32 functions, as a guest sees it (PCI Local Bus 3.0, PCI Express 5.0 for ECAM).
//!
//! Machines: accesses in, values and effects out. Every access of any width at any offset is answered and
//! none panics; an access to what is not there reads as all ones. No ports of I/O, no `INTx`, no bridges.

mod bus;
mod config;
mod host_bridge;
mod msix;

pub(crate) use bus::{ConfigPorts, Ecam, PciBus, SLOTS, Window};
pub(crate) use config::{ConfigSpace, Identity};
pub(crate) use host_bridge::HostBridge;
pub(crate) use msix::{Change, Msix};

/// An interrupt by message: a write of `data` to `address` (PCI 3.0, 6.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Where it is written to.
    pub(crate) address: u64,
    /// What is written.
    pub(crate) data: u32,
}

/// A function on the bus.
pub(crate) trait Function: Send {
    /// Read configuration space. `offset` and `data` lie in its 256 bytes.
    fn config_read(&mut self, offset: usize, data: &mut [u8]);
    /// Write configuration space.
    fn config_write(&mut self, offset: usize, data: &[u8]);
    /// Where each of its base addresses is decoded now, with its number.
    fn decoded(&self) -> Vec<(u8, std::ops::Range<u64>)>;
    /// Read behind base address `bar`; the access lies in its range.
    fn memory_read(&mut self, bar: u8, offset: u64, data: &mut [u8]);
    /// Write behind base address `bar`.
    fn memory_write(&mut self, bar: u8, offset: u64, data: &[u8]);
}
