//! The configuration space of a function: a header of type 0, base addresses, capabilities (PCI 3.0, 6.1 to 6.7).
//!
//! 256 bytes and which bits of them a guest may change. Base addresses are nothing else: their lower bits
//! cannot be changed, so that writing all ones tells the size.

use std::ops::Range;

/// Size of the space.
pub(crate) const BYTES: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BASE_ADDRESSES: usize = 0x10;
const CAPABILITIES: usize = 0x34;
/// First byte behind the header.
const HEADER_END: usize = 0x40;

/// Command: accesses to memory are decoded.
const MEMORY: u8 = 1 << 1;
/// Command: the function may access memory itself.
const MASTER: u8 = 1 << 2;
/// Command, second byte: no `INTx`.
const NO_LINE: u8 = 1 << 2;
/// Status: there is a list of capabilities.
const HAS_CAPABILITIES: u8 = 1 << 4;
/// Base address: 64 bits, in memory.
const MEMORY_64: u8 = 0b100;

/// What a function is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    /// Vendor and device.
    pub(crate) id: (u16, u16),
    /// Subsystem vendor and subsystem.
    pub(crate) subsystem: (u16, u16),
    /// Class, subclass, programming interface: 24 bits.
    pub(crate) class: u32,
    /// Revision.
    pub(crate) revision: u8,
}

/// A configuration space.
#[derive(Clone, Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
    sizes: [u64; 6],
    last_capability: usize,
    free: usize,
}

impl ConfigSpace {
    /// A function without base addresses and capabilities.
    pub(crate) fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            sizes: [0; 6],
            last_capability: CAPABILITIES,
            free: HEADER_END,
        };
        space.set(0, &identity.id.0.to_le_bytes());
        space.set(2, &identity.id.1.to_le_bytes());
        space.set(
            8,
            &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes(),
        );
        space.set(0x2C, &identity.subsystem.0.to_le_bytes());
        space.set(0x2E, &identity.subsystem.1.to_le_bytes());
        space.allow(COMMAND, &[MEMORY | MASTER, NO_LINE]);
        space.allow(0x0C, &[0xFF]);
        space.allow(0x3C, &[0xFF]);
        space
    }

    /// Set bytes, whatever a guest may do to them.
    pub(crate) fn set(&mut self, at: usize, bytes: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
    }

    /// A guest may change the bits that are set here.
    pub(crate) fn allow(&mut self, at: usize, bits: &[u8]) {
        for (place, bits) in self.writable.iter_mut().skip(at).zip(bits) {
            *place = *bits;
        }
    }

    /// `size` bytes (a power of two, at least 16) of 64-bit memory at base addresses `bar` and `bar + 1`,
    /// at `address` at first, and decoded nowhere, as after a reset (PCI 3.0, 6.2.2).
    pub(crate) fn add_memory(&mut self, bar: u8, size: u64, address: u64) {
        let at = BASE_ADDRESSES + usize::from(bar) * 4;
        self.set(at, &address.to_le_bytes());
        self.set(at, &[address as u8 & 0xF0 | MEMORY_64]);
        let mask = !(size - 1) & !0xF;
        self.allow(at, &mask.to_le_bytes());
        if let Some(place) = self.sizes.get_mut(usize::from(bar)) {
            *place = size;
        }
    }

    /// It is decoded and may reach memory: what firmware leaves behind.
    pub(crate) fn switch_on(&mut self) {
        self.set(COMMAND, &[MEMORY | MASTER]);
    }

    /// Append a capability (PCI 3.0, 6.7) with its bytes behind id and pointer; says where it begins. One that does
    /// not fit is not there.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.free;
        let end = at + 2 + body.len();
        if end > BYTES {
            return at;
        }
        self.set(STATUS, &[HAS_CAPABILITIES]);
        self.set(self.last_capability, &[at as u8]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.last_capability = at + 1;
        self.free = end.next_multiple_of(4);
        at
    }

    /// Read; what lies behind the space reads as zero.
    pub(crate) fn read(&self, at: usize, data: &mut [u8]) {
        data.fill(0);
        for (to, byte) in data.iter_mut().zip(self.bytes.iter().skip(at)) {
            *to = *byte;
        }
    }

    /// Write the bits that may be changed.
    pub(crate) fn write(&mut self, at: usize, data: &[u8]) {
        let places = self.bytes.iter_mut().zip(self.writable).skip(at);
        for ((place, bits), byte) in places.zip(data) {
            *place = *place & !bits | byte & bits;
        }
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> [u8; BYTES] {
        self.bytes
    }

    /// Hold these bytes, as far as a guest may have changed them; the offset of the first that differs in what a
    /// guest cannot change.
    pub(crate) fn restore(&mut self, bytes: &[u8; BYTES]) -> Result<(), usize> {
        let mut places = self.bytes.iter().zip(self.writable).zip(bytes);
        if let Some(at) = places.position(|((own, bits), byte)| (own ^ byte) & !bits != 0) {
            return Err(at);
        }
        self.write(0, bytes);
        Ok(())
    }

    /// Two bytes.
    pub(crate) fn word(&self, at: usize) -> u16 {
        let mut bytes = [0; 2];
        self.read(at, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Four bytes.
    pub(crate) fn double_word(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Where base addresses are decoded now.
    pub(crate) fn decoded(&self) -> Vec<(u8, Range<u64>)> {
        if self.word(COMMAND) as u8 & MEMORY == 0 {
            return Vec::new();
        }
        let sizes = (0_u8..).zip(self.sizes).filter(|(_, size)| *size > 0);
        sizes
            .filter_map(|(bar, size)| {
                let at = BASE_ADDRESSES + usize::from(bar) * 4;
                let low = u64::from(self.double_word(at) & !0xF);
                let start = u64::from(self.double_word(at + 4)) << 32 | low;
                Some((bar, start..start.checked_add(size)?))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let identity = Identity {
            id: (0x1AF4, 0x1044),
            subsystem: (0x1AF4, 0x40),
            class: 0x00_FF00,
            revision: 1,
        };
        ConfigSpace::new(identity)
    }

    #[test]
    fn writing_ones_to_a_base_address_tells_its_size() {
        let mut space = space();
        space.add_memory(0, 0x1_0000, 0xC001_0000);
        assert!(space.decoded().is_empty(), "not decoded: 6.2.2");
        space.switch_on();
        assert_eq!(space.decoded(), [(0, 0xC001_0000..0xC002_0000)]);
        space.write(0x10, &[0xFF; 8]);
        assert_eq!(space.double_word(0x10), 0xFFFF_0004);
        assert_eq!(space.double_word(0x14), 0xFFFF_FFFF);
        assert!(space.decoded().is_empty(), "a range may not wrap round");
        space.write(0x10, &0x4_0012_3456_u64.to_le_bytes());
        assert_eq!(space.decoded(), [(0, 0x4_0012_0000..0x4_0013_0000)]);
        space.write(4, &[0, 0]);
        assert!(space.decoded().is_empty(), "not decoded: 6.2.2");
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = space();
        assert_eq!(space.word(6) & 0x10, 0);
        let first = space.add_capability(9, &[1; 14]);
        let second = space.add_capability(0x11, &[2; 10]);
        assert_eq!(space.word(6) & 0x10, 0x10);
        assert_eq!(usize::from(space.word(0x34)), first);
        assert_eq!(usize::from(space.word(first) >> 8), second);
        assert_eq!(space.word(second), 0x11);
        space.write(0, &[0xFF; 256]);
        assert_eq!(space.word(0), 0x1AF4, "an identity cannot be written");
        assert_eq!(space.word(first) >> 8, second as u16);
    }

    #[test]
    fn a_list_of_capabilities_ends_within_the_space() {
        let mut space = space();
        for _ in 0..100 {
            space.add_capability(9, &[0; 14]);
        }
        let (mut at, mut seen) = (usize::from(space.word(0x34) & 0xFF), 0);
        while at != 0 {
            seen += 1;
            assert!(at + 16 <= BYTES && seen < 100);
            at = usize::from(space.word(at) >> 8);
        }
        assert_eq!(seen, 12);
    }
}
