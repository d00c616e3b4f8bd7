//! Devices that are not on PCI: a serial port, and the ports that end a machine.
//!
//! Machines: registers in, bytes and decisions out. Must never panic on what a guest does.

mod ending;
mod serial;

pub(crate) use ending::{PowerOffPort, ResetPort};
pub use serial::Output;
pub(crate) use serial::SerialPort;
