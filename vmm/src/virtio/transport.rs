//! The registers by which a driver finds out what a device is and sets it up (VIRTIO 1.2, 2.1, 3.1, 4.1.4.3).
//!
//! Machine. A write says what has to happen by an [`Effect`]; whoever owns the device does it. States, by
//! the bits of the device status:
//!
//! ```text
//!   0 --ACKNOWLEDGE, DRIVER--> features are negotiated --FEATURES_OK, if they can be--> queues are set up
//!   queues are set up --DRIVER_OK--> Activate --> live        any --0 written--> Reset --> 0
//!   live, but the queues cannot be --> DEVICE_NEEDS_RESET     live --FAILED--> the driver gave up
//! ```

mod saved;

use blockserver::virtio::QueueState;

use super::VERSION_1;

/// Device status (2.1). `ACKNOWLEDGE` (1) and `DRIVER` (2) are only remembered.
pub(crate) mod status {
    /// The driver is ready.
    pub(crate) const DRIVER_OK: u8 = 4;
    /// Features are agreed upon.
    pub(crate) const FEATURES_OK: u8 = 8;
    /// The device cannot go on without a reset.
    pub(crate) const NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub(crate) const FAILED: u8 = 128;
}

/// Bytes of the common configuration structure (4.1.4.3), with the fields of version 1.2.
pub(crate) const REGISTERS: u64 = 0x40;
/// No vector (4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xFFFF;
/// Bit of the ISR status: the configuration has changed (4.1.4.5).
const ISR_CONFIG: u8 = 2;

/// What a write has to lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing outside of the registers.
    Nothing,
    /// The device gets its queues.
    Activate,
    /// The device is to be stopped; then [`Transport::reset`].
    Reset,
    /// The configuration signals by another vector.
    ConfigVector(u16),
    /// A queue signals by another vector.
    QueueVector(u16, u16),
}

/// Why a device cannot go live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A queue's part is not where it may be: not aligned, or not all of it in memory (2.7).
    Placement {
        /// Which queue.
        queue: u16,
    },
}

/// A queue as the driver has set it up so far.
#[derive(Clone, Copy, Debug)]
struct Queue {
    max: u16,
    size: u16,
    vector: u16,
    enabled: bool,
    /// Descriptor table, driver area, device area.
    areas: [u64; 3],
}

impl Queue {
    const fn new(max: u16) -> Self {
        Self {
            max,
            size: max,
            vector: NO_VECTOR,
            enabled: false,
            areas: [0; 3],
        }
    }

    /// 4.1.4.3.2: the driver must not write a size that is not a power of two.
    fn takes(&self, size: u16) -> bool {
        size.is_power_of_two() && size <= self.max
    }
}

/// A device's registers.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    offered: u64,
    accepted: u64,
    /// Which half of the features is read, and written.
    halves: [u32; 2],
    status: u8,
    generation: u8,
    isr: u8,
    config_vector: u16,
    vectors: u16,
    selected: u16,
    queues: Vec<Queue>,
}

impl Transport {
    /// A device that offers `features`, with queues of these greatest sizes and `vectors` of MSI-X.
    pub(crate) fn new(features: u64, queues: &[u16], vectors: u16) -> Self {
        Self {
            offered: features | VERSION_1,
            accepted: 0,
            halves: [0; 2],
            status: 0,
            generation: 0,
            isr: 0,
            config_vector: NO_VECTOR,
            vectors,
            selected: 0,
            queues: queues.iter().copied().map(Queue::new).collect(),
        }
    }

    /// Features that the driver has accepted.
    pub(crate) fn features(&self) -> u64 {
        self.accepted
    }

    /// Whether the device has its queues.
    pub(crate) fn is_live(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// All is as at first (2.4), but the generation, which only has to differ.
    pub(crate) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max).collect();
        let generation = self.generation;
        *self = Self::new(self.offered, &sizes, self.vectors);
        self.generation = generation;
    }

    /// The device's configuration is another one (2.5.1, 4.1.4.3.1). Says whether the driver is to be told.
    pub(crate) fn config_changed(&mut self) -> bool {
        self.generation = self.generation.wrapping_add(1);
        self.isr |= ISR_CONFIG;
        self.status & status::DRIVER_OK != 0
    }

    /// The device cannot go on (2.1.2). Says whether the driver is to be told.
    pub(crate) fn needs_reset(&mut self) -> bool {
        self.status |= status::NEEDS_RESET;
        self.isr |= ISR_CONFIG;
        self.status & status::DRIVER_OK != 0
    }

    /// Read the ISR status, which clears it (4.1.4.5.1).
    pub(crate) fn take_isr(&mut self) -> u8 {
        std::mem::take(&mut self.isr)
    }

    /// The vectors that sources signal by now: of the configuration, and of each queue.
    pub(crate) fn vectors(&self) -> (u16, Vec<u16>) {
        let queues = self.queues.iter();
        (
            self.config_vector,
            queues.map(|queue| queue.vector).collect(),
        )
    }

    fn half(features: u64, which: u32) -> u32 {
        match which {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        }
    }

    /// The structure as it reads now.
    fn image(&self) -> [u8; REGISTERS as usize] {
        let none = Queue::new(0);
        let queue = self.queues.get(usize::from(self.selected)).unwrap_or(&none);
        let [for_device, for_driver] = self.halves;
        let mut image = [0; REGISTERS as usize];
        let mut put = |at: usize, bytes: &[u8]| {
            for (place, byte) in image.iter_mut().skip(at).zip(bytes) {
                *place = *byte;
            }
        };
        put(0x00, &for_device.to_le_bytes());
        put(0x04, &Self::half(self.offered, for_device).to_le_bytes());
        put(0x08, &for_driver.to_le_bytes());
        put(0x0C, &Self::half(self.accepted, for_driver).to_le_bytes());
        put(0x10, &self.config_vector.to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[self.status, self.generation]);
        put(0x16, &self.selected.to_le_bytes());
        put(0x18, &queue.size.to_le_bytes());
        put(0x1A, &queue.vector.to_le_bytes());
        put(0x1C, &u16::from(queue.enabled).to_le_bytes());
        put(0x1E, &self.selected.to_le_bytes());
        for (area, at) in queue.areas.iter().zip([0x20, 0x28, 0x30]) {
            put(at, &area.to_le_bytes());
        }
        image
    }

    /// Read the structure, at any offset and width; what lies behind it reads as zero.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let image = self.image();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, byte) in data.iter_mut().zip(image.iter().skip(from)) {
            *to = *byte;
        }
    }

    /// Write a field. A driver accesses a field by its own width, one of 64 bits by halves (4.1.3.1); all
    /// else is ignored.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if let [value] = *data
            && offset == 0x14
        {
            return self.set_status(value);
        }
        if let Ok(value) = data.try_into() {
            return self.write_word(offset, u16::from_le_bytes(value));
        }
        if let Ok(value) = data.try_into() {
            self.write_double(offset, u32::from_le_bytes(value));
        }
        if let Ok(value) = data.try_into()
            && offset.is_multiple_of(8)
            && offset >= 0x20
        {
            let value = u64::from_le_bytes(value);
            self.write_double(offset, value as u32);
            self.write_double(offset + 4, (value >> 32) as u32);
        }
        Effect::Nothing
    }

    fn write_word(&mut self, offset: u64, value: u16) -> Effect {
        let queue = self.selected;
        let vector = if value < self.vectors {
            value
        } else {
            NO_VECTOR
        };
        let configurable = self.status & status::DRIVER_OK == 0;
        match (offset, self.queues.get_mut(usize::from(queue))) {
            (0x10, _) => {
                self.config_vector = vector;
                return Effect::ConfigVector(vector);
            }
            (0x16, _) => self.selected = value,
            (0x18, Some(chosen)) if configurable && !chosen.enabled && chosen.takes(value) => {
                chosen.size = value;
            }
            (0x1A, Some(chosen)) => {
                chosen.vector = vector;
                return Effect::QueueVector(queue, vector);
            }
            (0x1C, Some(chosen)) if value == 1 && configurable => chosen.enabled = chosen.max > 0,
            _ => {}
        }
        Effect::Nothing
    }

    fn write_double(&mut self, offset: u64, value: u32) {
        let [for_device, for_driver] = &mut self.halves;
        match offset {
            0x00 => *for_device = value,
            0x08 => *for_driver = value,
            0x0C if self.status & status::FEATURES_OK == 0 => {
                let value = u64::from(value);
                match *for_driver {
                    0 => self.accepted = self.accepted & !0xFFFF_FFFF | value,
                    1 => self.accepted = self.accepted & 0xFFFF_FFFF | value << 32,
                    _ => {}
                }
            }
            0x20..0x38 => self.write_area(offset - 0x20, value),
            _ => {}
        }
    }

    fn write_area(&mut self, offset: u64, value: u32) {
        let live = self.status & status::DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.selected)) else {
            return;
        };
        // 4.1.4.3.2: addresses do not change once the queue is enabled.
        let area = queue.areas.get_mut((offset / 8) as usize);
        let Some(area) = area.filter(|_| !queue.enabled && !live) else {
            return;
        };
        match offset % 8 {
            0 => *area = *area & !0xFFFF_FFFF | u64::from(value),
            4 => *area = *area & 0xFFFF_FFFF | u64::from(value) << 32,
            _ => {}
        }
    }

    /// The driver writes the device status. It may add bits, or write zero (2.1.1).
    fn set_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let mut added = value & !self.status & !status::NEEDS_RESET;
        if added & status::FEATURES_OK != 0 && !self.features_agree() {
            added &= !status::FEATURES_OK;
        }
        // 3.1.1: the device is live only when features were agreed upon.
        let agreed = (self.status | added) & status::FEATURES_OK != 0;
        if !agreed || self.status & status::FAILED != 0 {
            added &= !status::DRIVER_OK;
        }
        self.status |= added;
        if added & status::DRIVER_OK != 0 {
            return Effect::Activate;
        }
        Effect::Nothing
    }

    /// 2.2.2: a subset of what is offered; and 6.2: with `VERSION_1`.
    fn features_agree(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0
    }

    /// The queues that the driver has enabled. `in_memory` says whether all of a range is memory.
    pub(crate) fn queue_states(
        &self,
        in_memory: impl Fn(u64, u64) -> bool,
    ) -> Result<Vec<(u16, QueueState)>, Fault> {
        let enabled = (0_u16..)
            .zip(&self.queues)
            .filter(|(_, queue)| queue.enabled);
        enabled
            .map(|(number, queue)| {
                let size = u64::from(queue.size);
                // 2.7: alignments and sizes of the three parts.
                let parts = [(16, 16 * size), (2, 6 + 2 * size), (4, 6 + 8 * size)];
                let mut placed = queue.areas.iter().zip(parts);
                let good = placed
                    .all(|(at, (align, bytes))| at.is_multiple_of(align) && in_memory(*at, bytes));
                if !good {
                    return Err(Fault::Placement { queue: number });
                }
                let [descriptors, available, used] = queue.areas;
                let state = QueueState {
                    size: queue.size,
                    descriptors,
                    available,
                    used,
                    next_available: 0,
                    next_used: 0,
                };
                Ok((number, state))
            })
            .collect()
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
