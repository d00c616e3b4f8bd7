//! Bus 0: how a guest reaches the functions on it.
//!
//! Two ways to configuration space, by ports (PCI 3.0, 3.2.2.3.2) and by addresses (PCI Express 5.0,
//! 7.2.2), and a window of addresses in which the functions' base addresses are looked up. What a guest
//! writes into base addresses moves functions within the window; outside of it nothing is decoded, so that
//! no function can come to lie over memory, the interrupt controllers or configuration space.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::Function;
use super::config::BYTES;
use crate::bus::BusDevice;
use crate::snapshot;

/// Devices on a bus; each has one function.
pub(crate) const SLOTS: usize = 32;
/// Bytes of a function's configuration space in ECAM.
const ECAM_FUNCTION: u64 = 4096;

/// A function, also its device's own.
pub(crate) type Shared = Arc<Mutex<dyn Function>>;

/// Where a function's base address is decoded.
#[derive(Clone, Debug)]
struct Place {
    range: Range<u64>,
    slot: usize,
    bar: u8,
}

/// The bus.
pub(crate) struct PciBus {
    functions: RwLock<Vec<Option<Shared>>>,
    places: RwLock<Vec<Place>>,
    window: Range<u64>,
    /// The address register at port 0xCF8.
    address: Mutex<u32>,
}

impl fmt::Debug for PciBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciBus")
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

fn lock(function: &Shared) -> MutexGuard<'_, dyn Function + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PciBus {
    /// An empty bus whose functions may be decoded in `window`.
    pub(crate) fn new(window: Range<u64>) -> Self {
        Self {
            functions: RwLock::new(vec![None; SLOTS]),
            places: RwLock::default(),
            window,
            address: Mutex::default(),
        }
    }

    /// Put a function into `slot`; `false` when something is there.
    pub(crate) fn insert(&self, slot: usize, function: &Shared) -> bool {
        {
            let mut functions = self
                .functions
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            match functions.get_mut(slot) {
                Some(place @ None) => *place = Some(Arc::clone(function)),
                _ => return false,
            }
        }
        self.replace(slot, &*lock(function));
        true
    }

    fn address(&self) -> MutexGuard<'_, u32> {
        self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the function in `slot` is decoded has changed otherwise than by a guest.
    pub(crate) fn moved(&self, slot: usize) {
        if let Some(function) = self.function(slot) {
            self.replace(slot, &*lock(&function));
        }
    }

    /// What it remembers beside its functions, but the host bridge.
    pub(crate) fn save(&self) -> snapshot::Pci {
        let mut host_bridge = [0; BYTES];
        self.config_read(0, 0, &mut host_bridge);
        snapshot::Pci {
            address: *self.address(),
            host_bridge,
        }
    }

    /// Remember what was saved, as far as a guest may have brought it about; `false` where it cannot.
    pub(crate) fn restore(&self, saved: &snapshot::Pci) -> bool {
        *self.address() = saved.address & !RESERVED;
        self.config_write(0, 0, &saved.host_bridge);
        self.save() == *saved
    }

    /// Take the function out of `slot`. An access that had found it before may still come to it.
    pub(crate) fn remove(&self, slot: usize) {
        {
            let mut functions = self
                .functions
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(place) = functions.get_mut(slot) {
                *place = None;
            }
        }
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        places.retain(|place| place.slot != slot);
    }

    fn function(&self, slot: usize) -> Option<Shared> {
        let functions = self
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        functions.get(slot)?.clone()
    }

    /// Look up anew where the function is decoded.
    fn replace(&self, slot: usize, function: &dyn Function) {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        places.retain(|place| place.slot != slot);
        for (bar, range) in function.decoded() {
            if self.window.start <= range.start && range.end <= self.window.end {
                places.push(Place { range, slot, bar });
            }
        }
    }

    fn config_read(&self, slot: usize, offset: usize, data: &mut [u8]) {
        let Some(function) = self.function(slot) else {
            data.fill(0xFF);
            return;
        };
        // Behind the 256 bytes of PCI there are no extended capabilities, which reads as zero.
        data.fill(0);
        if let Some(room) = BYTES.checked_sub(offset) {
            let bytes = data.len().min(room);
            if let Some(data) = data.get_mut(..bytes) {
                lock(&function).config_read(offset, data);
            }
        }
    }

    fn config_write(&self, slot: usize, offset: usize, data: &[u8]) {
        let Some(function) = self.function(slot) else {
            return;
        };
        if offset + data.len() <= BYTES {
            let mut function = lock(&function);
            function.config_write(offset, data);
            self.replace(slot, &*function);
        }
    }

    fn find(&self, address: u64, bytes: usize) -> Option<(Shared, u8, u64)> {
        let end = address.checked_add(bytes as u64)?;
        let place = {
            let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
            let mut places = places.iter();
            places
                .find(|place| place.range.start <= address && end <= place.range.end)?
                .clone()
        };
        let function = self.function(place.slot)?;
        Some((function, place.bar, address - place.range.start))
    }
}

/// The window of addresses.
#[derive(Debug)]
pub(crate) struct Window(pub(crate) Arc<PciBus>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.0.find(self.0.window.start + offset, data.len()) {
            Some((function, bar, at)) => lock(&function).memory_read(bar, at, data),
            // Not all ones, as on a bus of wires: a driver of virtio that resets a device which was pulled out waits
            // until its status is 0, and would wait for ever.
            None => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, bar, at)) = self.0.find(self.0.window.start + offset, data.len()) {
            lock(&function).memory_write(bar, at, data);
        }
    }
}

/// Configuration space by addresses.
#[derive(Debug)]
pub(crate) struct Ecam(pub(crate) Arc<PciBus>);

impl Ecam {
    /// Slot and offset; `None` for a function other than 0, and for what runs over the end of a function.
    fn place(offset: u64, bytes: usize) -> Option<(usize, usize)> {
        let (number, at) = (offset / ECAM_FUNCTION, offset % ECAM_FUNCTION);
        let fits = at + bytes as u64 <= ECAM_FUNCTION;
        (number % 8 == 0 && fits).then_some(((number / 8) as usize, at as usize))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match Self::place(offset, data.len()) {
            Some((slot, at)) => self.0.config_read(slot, at, data),
            None => data.fill(0xFF),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((slot, at)) = Self::place(offset, data.len()) {
            self.0.config_write(slot, at, data);
        }
    }
}

/// Configuration space by ports 0xCF8 (address) and 0xCFC (data).
#[derive(Debug)]
pub(crate) struct ConfigPorts(Arc<PciBus>);

/// The address register: accesses to the data port reach configuration space.
const ENABLED: u32 = 1 << 31;
/// Its bits that are always zero.
const RESERVED: u32 = 0x7F00_0003;
/// Where the data port begins.
const DATA: u64 = 4;

impl ConfigPorts {
    /// Ports to `bus`.
    pub(crate) fn new(bus: Arc<PciBus>) -> Self {
        Self(bus)
    }

    /// What the data port at `offset` stands for now.
    fn place(&self, offset: u64) -> Option<(usize, usize)> {
        let address = *self.0.address();
        // Bus 0, function 0: all other bits of the number are zero.
        let here = address & ENABLED != 0 && address & 0x7FFF_0700 == 0;
        let slot = (address >> 11 & 0x1F) as usize;
        here.then_some((slot, (address & 0xFC) as usize + (offset - DATA) as usize))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xFF);
        if offset >= DATA {
            if let Some((slot, at)) = self.place(offset) {
                self.0.config_read(slot, at, data);
            }
        } else if offset == 0 && data.len() == 4 {
            let address = *self.0.address();
            data.copy_from_slice(&address.to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= DATA {
            if let Some((slot, at)) = self.place(offset) {
                self.0.config_write(slot, at, data);
            }
        } else if offset == 0
            && let Ok(bytes) = data.try_into()
        {
            *self.0.address() = u32::from_le_bytes(bytes) & !RESERVED;
        }
    }
}
