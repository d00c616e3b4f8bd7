//! The host bridge: a function that is there so that a guest finds a bus.

use std::ops::Range;

use super::{ConfigSpace, Function, Identity};

/// Function 0 of device 0.
#[derive(Debug)]
pub(crate) struct HostBridge(ConfigSpace);

impl HostBridge {
    /// A generic host bridge, by the numbers that QEMU gives one.
    pub(crate) fn new() -> Self {
        Self(ConfigSpace::new(Identity {
            id: (0x1B36, 0x0008),
            subsystem: (0x1AF4, 0x1100),
            class: 0x06_0000,
            revision: 0,
        }))
    }
}

impl Function for HostBridge {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.0.write(offset, data);
    }

    fn decoded(&self) -> Vec<(u8, Range<u64>)> {
        Vec::new()
    }

    fn memory_read(&mut self, _: u8, _: u64, data: &mut [u8]) {
        data.fill(0xFF);
    }

    fn memory_write(&mut self, _: u8, _: u64, _: &[u8]) {}
}
