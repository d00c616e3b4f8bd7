//! MSI-X: a table of messages, each of which can be masked (PCI 3.0, 6.8.2).
//!
//! Decides which vector delivers which message now; whoever owns it tells the host about each change. What
//! is signalled while a vector is masked stays pending with the host, see [`Msix::read_pending`].

use super::Message;

/// Bytes of an entry of the table.
pub(crate) const ENTRY: u64 = 16;
/// Message control: MSI-X is on.
const ENABLED: u16 = 1 << 15;
/// Message control: all vectors are masked.
const MASKED: u16 = 1 << 14;

/// A vector now delivers this message, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Which vector.
    pub(crate) vector: u16,
    /// What it delivers; none while it is masked or MSI-X is off.
    pub(crate) message: Option<Message>,
}

/// An entry of the table as it is in memory: address, data, vector control.
#[derive(Clone, Copy, Debug)]
struct Entry([u32; 4]);

impl Entry {
    /// Vector control: masked. So is every vector after a reset.
    const RESET: Self = Self([0, 0, 0, 1]);

    fn message(self) -> Option<Message> {
        let Self([low, high, data, control]) = self;
        let address = u64::from(high) << 32 | u64::from(low & !3);
        (control & 1 == 0).then_some(Message { address, data })
    }
}

/// A function's MSI-X.
#[derive(Clone, Debug)]
pub(crate) struct Msix {
    entries: Vec<Entry>,
    control: u16,
}

impl Msix {
    /// `vectors` of them, from 1 to 2048, all masked and off.
    pub(crate) fn new(vectors: u16) -> Self {
        let vectors = vectors.clamp(1, 2048);
        Self {
            entries: vec![Entry::RESET; usize::from(vectors)],
            control: 0,
        }
    }

    /// How many vectors there are.
    pub(crate) fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    /// The capability behind id and pointer (6.8.2.3, 6.8.2.4): table and pending bits in base address `bar`.
    pub(crate) fn capability(&self, bar: u8, table: u32, pending: u32) -> [u8; 10] {
        let mut body = [0; 10];
        let words = [(table | u32::from(bar)), (pending | u32::from(bar))];
        let control = self.vectors() - 1;
        let bytes = control
            .to_le_bytes()
            .into_iter()
            .chain(words.into_iter().flat_map(u32::to_le_bytes));
        for (to, byte) in body.iter_mut().zip(bytes) {
            *to = byte;
        }
        body
    }

    /// What a vector delivers now.
    pub(crate) fn message(&self, vector: u16) -> Option<Message> {
        if self.control & (ENABLED | MASKED) != ENABLED {
            return None;
        }
        self.entries.get(usize::from(vector))?.message()
    }

    /// Message control was written; says what changed by it.
    pub(crate) fn set_control(&mut self, control: u16) -> Vec<Change> {
        let vectors = 0..self.vectors();
        let before: Vec<_> = vectors.clone().map(|vector| self.message(vector)).collect();
        self.control = control & (ENABLED | MASKED);
        vectors
            .zip(before)
            .filter_map(|(vector, before)| {
                let message = self.message(vector);
                (message != before).then_some(Change { vector, message })
            })
            .collect()
    }

    /// The table, by double words.
    pub(crate) fn entries(&self) -> Vec<[u32; 4]> {
        self.entries.iter().map(|Entry(words)| *words).collect()
    }

    /// Fill the table, as far as there are entries for it. For one that is off.
    pub(crate) fn fill(&mut self, entries: &[[u32; 4]]) {
        for (entry, words) in self.entries.iter_mut().zip(entries) {
            *entry = Entry(*words);
        }
    }

    /// Read the table.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        for (index, to) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(index as u64);
            let entry = self.entries.get((at / ENTRY) as usize);
            let word = entry.and_then(|Entry(words)| words.get((at % ENTRY / 4) as usize));
            let bytes = word.copied().unwrap_or(0).to_le_bytes();
            *to = bytes.get((at % 4) as usize).copied().unwrap_or(0);
        }
    }

    /// Write the table: a double word or an aligned pair of them, all else is not defined and ignored (6.8.2).
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Option<Change> {
        let aligned = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64);
        let vector = u16::try_from(offset / ENTRY).ok()?;
        if !aligned || vector >= self.vectors() {
            return None;
        }
        let before = self.message(vector);
        let Entry(words) = self.entries.get_mut(usize::from(vector))?;
        let from = (offset % ENTRY / 4) as usize;
        for (word, bytes) in words.iter_mut().skip(from).zip(data.chunks_exact(4)) {
            *word = u32::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        let message = self.message(vector);
        (message != before).then_some(Change { vector, message })
    }

    /// Read the pending bits: of each vector that delivers nothing and has been signalled.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8], pending: impl Fn(u16) -> bool) {
        for (index, to) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(index as u64);
            *to = 0;
            for bit in 0..8_u64 {
                let Ok(vector) = u16::try_from(at.saturating_mul(8).saturating_add(bit)) else {
                    continue;
                };
                let masked = vector < self.vectors() && self.message(vector).is_none();
                if masked && pending(vector) {
                    *to |= 1 << bit;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: Message = Message {
        address: 0xFEE0_1000,
        data: 0x4031,
    };

    fn filled() -> Msix {
        let mut msix = Msix::new(3);
        assert_eq!(msix.write(16, &MESSAGE.address.to_le_bytes()), None);
        assert_eq!(msix.write(24, &u64::from(MESSAGE.data).to_le_bytes()), None);
        msix
    }

    #[test]
    fn a_vector_delivers_only_when_nothing_masks_it() {
        let mut msix = filled();
        let on = Change {
            vector: 1,
            message: Some(MESSAGE),
        };
        let off = Change {
            vector: 1,
            message: None,
        };
        assert_eq!(msix.set_control(ENABLED), [on]);
        assert_eq!(msix.set_control(ENABLED | MASKED), [off]);
        assert_eq!(msix.set_control(ENABLED), [on]);
        assert_eq!(msix.write(28, &1_u32.to_le_bytes()), Some(off));
        assert_eq!(msix.write(28, &0_u32.to_le_bytes()), Some(on));
        assert_eq!(msix.set_control(0), [off]);
        assert_eq!(msix.message(3), None);
    }

    #[test]
    fn a_message_that_changes_is_told() {
        let mut msix = filled();
        msix.set_control(ENABLED);
        let data = 0x4032;
        let message = Some(Message { data, ..MESSAGE });
        assert_eq!(
            msix.write(24, &data.to_le_bytes()),
            Some(Change { vector: 1, message })
        );
        assert_eq!(msix.write(24, &data.to_le_bytes()), None);
    }

    #[test]
    fn odd_accesses_read_bytes_and_write_nothing() {
        let mut msix = filled();
        let mut data = [0; 7];
        msix.read(17, &mut data);
        assert_eq!(data, [0x10, 0xE0, 0xFE, 0, 0, 0, 0]);
        for (at, bytes) in [
            (16, 1),
            (17, 4),
            (20, 8),
            (16, 2),
            (48, 4),
            (u64::MAX - 7, 8),
        ] {
            assert_eq!(msix.write(at, &vec![0xFF; bytes]), None);
        }
        msix.read(17, &mut data);
        assert_eq!(data, [0x10, 0xE0, 0xFE, 0, 0, 0, 0]);
        msix.read(u64::MAX - 2, &mut [0; 2]);
        msix.read(46, &mut data);
        assert_eq!(data, [0; 7], "behind the table there is nothing");
    }

    #[test]
    fn what_is_signalled_while_masked_is_pending() {
        let mut msix = filled();
        msix.set_control(ENABLED);
        let mut bits = [0; 8];
        msix.read_pending(0, &mut bits, |_| true);
        assert_eq!(bits, [0b101, 0, 0, 0, 0, 0, 0, 0]);
        msix.read_pending(u64::MAX - 8, &mut bits, |_| true);
        assert_eq!(bits, [0; 8]);
    }
}
