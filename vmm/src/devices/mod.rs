//! Devices that are not on PCI: a serial port, what tells the guest of events, and the ports that end a machine.
//!
//! Machines: registers in, bytes and decisions out. Must never panic on what a guest does.

mod ending;
mod events;
mod serial;

pub(crate) use ending::{PULSE_RESET, PanicPort, PowerOffPort, ResetPort, SleepPorts};
pub(crate) use events::Events;
pub use serial::Output;
pub(crate) use serial::SerialPort;
