//! A virtio device as a function on PCI (VIRTIO 1.2, 4.1).
//!
//! Machine: it decides, and asks [`Wires`] and the device to do. One base address holds everything:
//!
//! ```text
//!   0x0000  common configuration (4.1.4.3)      0x1000  ISR status (4.1.4.5)
//!   0x2000  the device's configuration (4.1.4.6) 0x3000  doorbells, 4 bytes a queue (4.1.4.4)
//!   0x8000  MSI-X table                          0xC000  MSI-X pending bits
//! ```
//!
//! A reset may take long: what a held disk has taken ends when it goes on. So no access waits for it, and
//! the driver reads the status from before until the device has let go, as it has to expect (4.1.4.3.2).
//!
//! There is no `INTx`: a source without a vector is never delivered. Must never panic on what a guest does.

mod saved;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockserver::virtio::{GuestMemory, QueueSetup, QueueState};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::transport::{Effect, NO_VECTOR, REGISTERS, Transport};
use super::{Activation, Source, VirtioDevice, Wires};
use crate::pci::{Change, ConfigSpace, Function, Identity, Msix};

/// Vendor of virtio devices, and the first number of those that are not transitional (4.1.2).
const VENDOR: u16 = 0x1AF4;
const FIRST_DEVICE: u16 = 0x1040;

/// Bytes behind the base address.
pub(crate) const BAR_BYTES: u64 = 0x1_0000;
const BAR: u8 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const DOORBELLS: u64 = 0x3000;
const TABLE: u64 = 0x8000;
const PENDING: u64 = 0xC000;
const PAGE: u64 = 0x1000;
/// Bytes between the doorbells of two queues: `notify_off_multiplier`.
const STRIDE: u32 = 4;

/// Capability ids: vendor specific, MSI-X.
const VENDOR_CAPABILITY: u8 = 9;
const MSIX_CAPABILITY: u8 = 0x11;
/// Kinds of structures (4.1.4).
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// A virtio device on PCI.
#[derive(Debug)]
pub(crate) struct VirtioFunction {
    config: ConfigSpace,
    msix: Msix,
    transport: Transport,
    device: Box<dyn VirtioDevice>,
    wires: Box<dyn Wires>,
    memory: GuestMemory,
    /// Where the capabilities are whose bytes are registers: MSI-X, and access by configuration space.
    capabilities: (usize, usize),
    /// Whether the device may have queues: it was activated, and has not stopped since.
    active: bool,
    /// Queues of a device that was stopped by the host and shall go on.
    stopped: Option<Vec<(u16, QueueState)>>,
    alarms: Alarms,
    /// Whether the driver has asked for a reset that has not ended.
    resetting: bool,
    /// Whether it has been taken off the bus: whoever comes late finds nothing.
    gone: bool,
}

/// What a device has told of itself and the registers do not show yet.
#[derive(Debug, Default)]
struct Alarms {
    /// It cannot go on.
    raised: Arc<AtomicBool>,
    /// Its configuration is another one.
    changed: Arc<AtomicBool>,
}

/// The bytes of a `virtio_pci_cap` behind id and pointer (4.1.4).
fn capability(kind: u8, offset: u64, length: u64, more: Option<u32>) -> Vec<u8> {
    let length_of_all = 16 + if more.is_some() { 4 } else { 0 };
    let mut body = vec![length_of_all, kind, BAR, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body.extend(more.into_iter().flat_map(u32::to_le_bytes));
    body
}

fn class(kind: u16) -> u32 {
    match kind {
        1 => 0x02_0000,
        2 => 0x01_8000,
        3 => 0x07_8000,
        _ => 0x00_FF00,
    }
}

impl VirtioFunction {
    /// `device` with its registers at `address`, but switched off: as one that firmware has not seen.
    pub(crate) fn new(
        device: Box<dyn VirtioDevice>,
        wires: Box<dyn Wires>,
        memory: GuestMemory,
        address: u64,
    ) -> Self {
        let queues = device.queues();
        let msix = Msix::new(queues.len() as u16 + 1);
        let kind = device.kind();
        let mut config = ConfigSpace::new(Identity {
            id: (VENDOR, FIRST_DEVICE + kind),
            subsystem: (VENDOR, FIRST_DEVICE),
            class: class(kind),
            revision: 1,
        });
        config.add_memory(BAR, BAR_BYTES, address);
        let mut add = |kind, offset, length, more| {
            config.add_capability(VENDOR_CAPABILITY, &capability(kind, offset, length, more))
        };
        add(COMMON_CFG, 0, REGISTERS, None);
        add(ISR_CFG, ISR, 1, None);
        add(DEVICE_CFG, DEVICE, PAGE, None);
        add(NOTIFY_CFG, DOORBELLS, PAGE, Some(STRIDE));
        let access = add(PCI_CFG, 0, 0, Some(0));
        config.allow(access + 4, &[0xFF]);
        config.allow(access + 8, &[0xFF; 12]);
        let table = msix.capability(BAR, TABLE as u32, PENDING as u32);
        let msix_at = config.add_capability(MSIX_CAPABILITY, &table);
        config.allow(msix_at + 3, &[0xC0]);
        let transport = Transport::new(device.features(), &queues, msix.vectors());
        Self {
            config,
            msix,
            transport,
            device,
            wires,
            memory,
            capabilities: (msix_at, access),
            active: false,
            stopped: None,
            alarms: Alarms::default(),
            resetting: false,
            gone: false,
        }
    }

    /// It is decoded from now on, as firmware leaves it.
    pub(crate) fn switch_on(&mut self) {
        self.config.switch_on();
        self.place_doorbells();
    }

    fn place_doorbells(&mut self) {
        let mut decoded = self.config.decoded().into_iter();
        let at = decoded.next().map(|(_, range)| range.start + DOORBELLS);
        let placed = self.wires.place_doorbells(at, u64::from(STRIDE));
        self.or_needs_reset(placed);
    }

    /// What the host refuses, the driver is told of: a device that cannot go on says so (2.1.2).
    fn or_needs_reset(&mut self, done: std::io::Result<()>) {
        if let Err(error) = done {
            tracing::error!(device = self.device.kind(), %error, "a virtio device cannot go on");
            if self.transport.needs_reset() {
                self.wires.signal(Source::Config);
            }
        }
    }

    /// See whether the device has raised an alarm, which has signalled the driver already.
    fn heed_alarm(&mut self) {
        if self.alarms.changed.swap(false, Ordering::SeqCst) {
            self.transport.config_changed();
        }
        if self.alarms.raised.swap(false, Ordering::SeqCst) {
            self.transport.needs_reset();
        }
    }

    /// The device's configuration is another one: the driver is told.
    pub(crate) fn config_changed(&mut self) {
        if self.transport.config_changed() {
            self.wires.signal(Source::Config);
        }
    }

    /// Take it off the bus for good: accesses find nothing, and its device begins to stop, which
    /// [`Self::try_stop`] says the end of.
    pub(crate) fn unplug(&mut self) {
        self.gone = true;
        let removed = self.wires.place_doorbells(None, u64::from(STRIDE));
        if let Err(error) = removed {
            tracing::warn!(%error, "doorbells of a device that is gone stay");
        }
        let _ = self.try_stop();
    }

    /// Stop the device as it is, to go on with [`Self::go_on`]; processors of the guest must not run, or it
    /// must be off the bus. Says how far its queues are; nothing as long as it has not stopped, and is to be
    /// asked again then.
    pub(crate) fn try_stop(&mut self) -> Option<Vec<(u16, QueueState)>> {
        if self.active {
            self.device.hurry();
        }
        self.settle();
        if self.resetting {
            return None;
        }
        if self.active {
            // Also a device that needs a reset may have queues that work.
            let queues = self.device.try_reset()?;
            self.active = false;
            self.heed_alarm();
            self.stopped = self.transport.is_live().then_some(queues);
        }
        Some(self.stopped.clone().unwrap_or_default())
    }

    /// The device goes on where it was stopped, unless it is off the bus.
    pub(crate) fn go_on(&mut self) {
        if self.gone {
            return;
        }
        if let Some(queues) = self.stopped.take() {
            let numbers: Vec<u16> = queues.iter().map(|(number, _)| *number).collect();
            let activated = self.activate(queues);
            self.or_needs_reset(activated);
            // What the driver rang for while nobody listened.
            for queue in numbers {
                self.wires.ring(queue);
            }
        }
    }

    fn activate(&mut self, queues: Vec<(u16, QueueState)>) -> std::io::Result<()> {
        let queues: std::io::Result<Vec<_>> = queues
            .into_iter()
            .map(|(number, state)| {
                let (kick, call) = self.wires.queue_fds(number)?;
                Ok((number, QueueSetup { state, kick, call }))
            })
            .collect();
        let activation = Activation {
            features: self.transport.features(),
            memory: self.memory.clone(),
            queues: queues?,
            alarm: self.wires.alarm(Arc::clone(&self.alarms.raised))?,
            changed: self.wires.alarm(Arc::clone(&self.alarms.changed))?,
        };
        self.active = true;
        self.device.activate(activation)
    }

    fn apply(&mut self, effect: Effect) {
        let done = match effect {
            Effect::Nothing => Ok(()),
            Effect::ConfigVector(vector) => self.connect(Source::Config, vector),
            Effect::QueueVector(queue, vector) => self.connect(Source::Queue(queue), vector),
            Effect::Activate => self.go_live(),
            Effect::Reset => {
                self.stopped = None;
                self.resetting = true;
                return self.settle();
            }
        };
        self.or_needs_reset(done);
    }

    /// See whether a reset has ended that the driver asked for.
    fn settle(&mut self) {
        if self.resetting && self.device.try_reset().is_some() {
            self.resetting = false;
            self.active = false;
            let reset = self.reset();
            self.or_needs_reset(reset);
        }
    }

    fn connect(&mut self, source: Source, vector: u16) -> std::io::Result<()> {
        self.wires
            .connect(source, (vector != NO_VECTOR).then_some(vector))
    }

    fn go_live(&mut self) -> std::io::Result<()> {
        let memory = &self.memory;
        let in_memory = |at, bytes| memory.check_range(GuestAddress(at), bytes as usize);
        let states = self.transport.queue_states(in_memory);
        let states = states
            .map_err(|fault| std::io::Error::other(format!("the driver's fault: {fault:?}")))?;
        self.activate(states)
    }

    /// 2.4: the device touches nothing any more when the driver reads status 0.
    fn reset(&mut self) -> std::io::Result<()> {
        self.alarms.raised.store(false, Ordering::SeqCst);
        self.alarms.changed.store(false, Ordering::SeqCst);
        let (_, queues) = self.transport.vectors();
        self.transport.reset();
        for queue in 0..queues.len() as u16 {
            self.wires.connect(Source::Queue(queue), None)?;
        }
        self.wires.connect(Source::Config, None)
    }

    fn change(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            let done = self.wires.set_vector(change.vector, change.message);
            self.or_needs_reset(done);
        }
    }

    /// What a driver asks for by the capability for access through configuration space (4.1.4.9): offset and
    /// width, if they can be.
    fn asked(&self) -> Option<(u64, usize)> {
        let (_, at) = self.capabilities;
        let bar = self.config.word(at + 4) as u8;
        let (offset, length) = (
            self.config.double_word(at + 8),
            self.config.double_word(at + 12),
        );
        let fits = u64::from(offset) + u64::from(length) <= BAR_BYTES;
        // 4.1.4.9.1: widths of 1, 2 or 4, and the offset a multiple of it.
        let good =
            bar == BAR && fits && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        good.then_some((u64::from(offset), length as usize))
    }

    /// Whether an access to configuration space touches the data of that capability.
    fn touches_data(&self, offset: usize, bytes: usize) -> bool {
        let data = self.capabilities.1 + 16;
        offset < data + 4 && data < offset + bytes
    }
}

impl Function for VirtioFunction {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        if self.gone {
            return data.fill(0xFF);
        }
        if self.touches_data(offset, data.len())
            && let Some((at, width)) = self.asked()
        {
            let mut value = [0; 4];
            if let Some(value) = value.get_mut(..width) {
                self.memory_read(BAR, at, value);
            }
            self.config.set(self.capabilities.1 + 16, &value);
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        if self.gone {
            return;
        }
        let decoded = self.config.decoded();
        self.config.write(offset, data);
        if decoded != self.config.decoded() {
            self.place_doorbells();
        }
        let control = self.capabilities.0 + 2;
        if offset < control + 2 && control < offset + data.len() {
            let changes = self.msix.set_control(self.config.word(control));
            self.change(changes);
        }
        if self.touches_data(offset, data.len())
            && let Some((at, width)) = self.asked()
        {
            let value = self
                .config
                .double_word(self.capabilities.1 + 16)
                .to_le_bytes();
            if let Some(value) = value.get(..width) {
                self.memory_write(BAR, at, value);
            }
        }
    }

    fn decoded(&self) -> Vec<(u8, Range<u64>)> {
        if self.gone {
            return Vec::new();
        }
        self.config.decoded()
    }

    fn memory_read(&mut self, _: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if self.gone {
            return;
        }
        self.settle();
        self.heed_alarm();
        match offset {
            0..ISR => self.transport.read(offset, data),
            ISR => {
                if let Some(first) = data.first_mut() {
                    *first = self.transport.take_isr();
                }
            }
            DEVICE..DOORBELLS => self.device.read_config(offset - DEVICE, data),
            TABLE..PENDING => self.msix.read(offset - TABLE, data),
            PENDING..BAR_BYTES => {
                let wires = &self.wires;
                let pending = |vector| wires.is_pending(vector);
                self.msix.read_pending(offset - PENDING, data, pending);
            }
            _ => {}
        }
    }

    fn memory_write(&mut self, _: u8, offset: u64, data: &[u8]) {
        if self.gone {
            return;
        }
        self.settle();
        self.heed_alarm();
        match offset {
            // 2.4.2: a driver waits for the end of a reset before it sets the device up anew.
            0..TABLE if self.resetting => {}
            0..ISR => {
                let effect = self.transport.write(offset, data);
                self.apply(effect);
            }
            DEVICE..DOORBELLS => self.device.write_config(offset - DEVICE, data),
            DOORBELLS..TABLE => {
                let queue = (offset - DOORBELLS) / u64::from(STRIDE);
                let there = queue < self.transport.vectors().1.len() as u64;
                if there && offset.is_multiple_of(u64::from(STRIDE)) {
                    self.wires.ring(queue as u16);
                }
            }
            TABLE..PENDING => {
                let change = self.msix.write(offset - TABLE, data);
                self.change(change);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "pci_tests.rs"]
mod tests;
