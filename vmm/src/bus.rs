//! Which device answers an access to a port or an address where no memory is.
//!
//! Machine. Whatever the guest accesses, of any width, is answered: what belongs to no device reads as all
//! ones and swallows writes, as an empty bus does. Must never panic on what a guest does.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// What a processor's accesses go to.
pub(crate) trait Ports: Sync {
    /// `in` from a port.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// `out` to a port.
    fn port_write(&self, port: u16, data: &[u8]);
    /// A read where no memory is.
    fn memory_read(&self, address: u64, data: &mut [u8]);
    /// A write where no memory is.
    fn memory_write(&self, address: u64, data: &[u8]);
}

/// Something with registers. Offsets are from the beginning of its range; the width is `data`'s.
pub(crate) trait BusDevice: Send + Sync {
    /// Fill `data`, all of it.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Take `data`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Ranges of one kind of address, and whose they are.
#[derive(Default)]
pub(crate) struct Ranges(Vec<(Range<u64>, Arc<dyn BusDevice>)>);

impl fmt::Debug for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(range, _)| range))
            .finish()
    }
}

impl Ranges {
    /// `range` is `device`'s. The ranges of a machine are its own constants: they do not overlap.
    pub(crate) fn add(&mut self, range: Range<u64>, device: Arc<dyn BusDevice>) {
        self.0.push((range, device));
    }

    fn find(&self, at: u64, bytes: usize) -> Option<(u64, &dyn BusDevice)> {
        let end = at.checked_add(bytes as u64)?;
        let mut all = self.0.iter();
        let (range, device) = all.find(|(range, _)| range.start <= at && end <= range.end)?;
        Some((at - range.start, device.as_ref()))
    }

    fn read(&self, at: u64, data: &mut [u8]) {
        match self.find(at, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xFF),
        }
    }

    fn write(&self, at: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(at, data.len()) {
            device.write(offset, data);
        }
    }
}

/// Ports and addresses of a machine.
#[derive(Debug, Default)]
pub(crate) struct Bus {
    /// Devices behind ports.
    pub(crate) ports: Ranges,
    /// Devices behind addresses.
    pub(crate) memory: Ranges,
}

impl Ports for Bus {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(u64::from(port), data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.ports.write(u64::from(port), data);
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        self.memory.read(address, data);
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        self.memory.write(address, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&self, _: u64, _: &[u8]) {}
    }

    #[test]
    fn what_belongs_to_nobody_reads_as_ones() {
        let mut bus = Bus::default();
        bus.ports.add(0x10..0x14, Arc::new(Echo));
        for (port, bytes, expected) in [
            (0x11, 1, 1),
            (0x10, 4, 0),
            (0x13, 2, 0xFF),
            (0xF, 1, 0xFF),
            (0xFFFF, 4, 0xFF),
        ] {
            let mut data = vec![0xAA; bytes];
            bus.port_read(port, &mut data);
            assert_eq!(data, vec![expected; bytes], "{port:#x}");
        }
        let mut data = [0; 8];
        bus.memory_read(u64::MAX, &mut data);
        bus.memory_write(u64::MAX - 3, &data);
        assert_eq!(data, [0xFF; 8]);
    }
}
