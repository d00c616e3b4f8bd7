//! The devices on a machine's PCI bus: put in, asked back, and taken out while it runs.
//!
//! Driver. A device leaves in three steps. The guest lets go of it, or nobody asks the guest; then it is off the
//! bus and every access finds nothing; then its queues end, and what it had of KVM is given back. Nobody
//! holds the lock of a function while it waits: a disk that is held may keep its requests for long.
//!
//! ```text
//!   in place --wanted--> asked for --the guest ejects--> off the bus --its queues have ended--> free
//!      ^                    |                                ^
//!      +---- out of patience+     in place, asked for --pulled+
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use blockserver::virtio::{GuestMemory, QueueState};

use crate::bus::Bus;
use crate::devices::Events;
use crate::kvm::Vm;
use crate::layout::{self, PCI_WINDOW};
use crate::pci::{ConfigPorts, Ecam, HostBridge, PciBus, SLOTS, Window};
use crate::virtio::VirtioDevice;
use crate::virtio::pci::{BAR_BYTES, VirtioFunction};
use crate::wiring::KvmWires;
use crate::{Error, ErrorKind, Result};

/// Queues of a device: doorbells and vectors of so many have room behind its base address.
const MOST_QUEUES: usize = 255;
/// How long a device that stops is left alone before it is asked again, at first and at most.
const SOON: Duration = Duration::from_micros(20);
const LATER: Duration = Duration::from_millis(1);

/// A device's function on the bus.
pub(crate) type SharedFunction = Arc<Mutex<VirtioFunction>>;

/// The function, for as long as the guard lives. Nobody may wait for a guest or a disk meanwhile.
pub(crate) fn lock(function: &SharedFunction) -> MutexGuard<'_, VirtioFunction> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Have a device finish what it took, and say how far its queues are.
pub(crate) fn stopped(function: &SharedFunction) -> Vec<(u16, QueueState)> {
    let mut pause = SOON;
    loop {
        if let Some(queues) = lock(function).try_stop() {
            return queues;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LATER);
    }
}

/// How a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is the guest's.
    InPlace,
    /// The guest was asked to let go of it.
    Wanted,
    /// It is off the bus.
    Gone,
}

/// Where a device is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Into the first free slot, before the guest starts.
    Cold,
    /// Into the first free slot, while it may run.
    Hot,
    /// Into this slot, before it goes on.
    Slot(usize),
}

struct Plugged {
    function: SharedFunction,
    standing: Standing,
}

#[derive(Default)]
struct Inside {
    plugged: BTreeMap<usize, Plugged>,
    /// Whether the machine has ended: no guest answers any more.
    ended: bool,
}

/// The slots of bus 0.
pub(crate) struct Slots {
    vm: Arc<Vm>,
    memory: GuestMemory,
    pci: Arc<PciBus>,
    events: Arc<Events>,
    inside: Mutex<Inside>,
    changed: Condvar,
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slots: Vec<usize> = self.inside().plugged.keys().copied().collect();
        f.debug_struct("Slots")
            .field("slots", &slots)
            .finish_non_exhaustive()
    }
}

impl Slots {
    /// A bus with the host bridge, reached by `bus`, whose devices work in `memory`; `interrupt` tells the guest
    /// of events.
    pub(crate) fn new(
        bus: &mut Bus,
        vm: &Arc<Vm>,
        memory: &GuestMemory,
        interrupt: Box<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        let pci = Arc::new(PciBus::new(PCI_WINDOW));
        pci.insert(0, &(Arc::new(Mutex::new(HostBridge::new())) as _));
        let slots = Arc::new_cyclic(|slots: &std::sync::Weak<Self>| {
            let slots = slots.clone();
            let eject = move |mask| {
                if let Some(slots) = slots.upgrade() {
                    slots.let_go(mask);
                }
            };
            Self {
                vm: Arc::clone(vm),
                memory: Arc::clone(memory),
                pci: Arc::clone(&pci),
                events: Arc::new(Events::new(interrupt, Box::new(eject))),
                inside: Mutex::default(),
                changed: Condvar::new(),
            }
        });
        bus.ports.add(layout::EVENTS, slots.events.clone());
        let ports = Arc::new(ConfigPorts::new(Arc::clone(&pci)));
        bus.ports.add(layout::PCI_PORTS, ports);
        let ecam = Arc::new(Ecam(Arc::clone(&pci)));
        bus.memory.add(layout::ECAM, ecam);
        bus.memory.add(PCI_WINDOW, Arc::new(Window(pci)));
        slots
    }

    /// What tells the guest of what happens.
    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Put a device into the first free slot before the guest starts; its registers are decoded already.
    pub(crate) fn fit(&self, device: Box<dyn VirtioDevice>) -> Result<usize> {
        self.put(device, Place::Cold)
    }

    /// Put a device into this slot, before the guest goes on.
    pub(crate) fn fit_into(&self, slot: u8, device: Box<dyn VirtioDevice>) -> Result<()> {
        self.put(device, Place::Slot(slot.into())).map(drop)
    }

    /// Put a device into the first free slot of a machine that may run, and tell the guest.
    pub(crate) fn add(&self, device: Box<dyn VirtioDevice>) -> Result<usize> {
        let slot = self.put(device, Place::Hot)?;
        self.events.slot_filled(slot);
        Ok(slot)
    }

    fn put(&self, device: Box<dyn VirtioDevice>, place: Place) -> Result<usize> {
        if device.queues().len() > MOST_QUEUES {
            let what = format!("a virtio device has at most {MOST_QUEUES} queues");
            return Err(Error::invalid(what));
        }
        let mut inside = self.inside();
        if inside.ended {
            return Err(Error::invalid("this machine has ended"));
        }
        let is_free = |slot: &usize| !inside.plugged.contains_key(slot);
        let slot = match place {
            Place::Slot(slot) => (1..SLOTS).find(|free| *free == slot && is_free(free)),
            // Where the guest has still to see that a device is gone, it would take another for that one.
            Place::Cold | Place::Hot => (1..SLOTS)
                .find(|slot| is_free(slot) && !self.events.is_changed(*slot))
                .or_else(|| (1..SLOTS).find(is_free)),
        };
        let slot = slot.ok_or_else(|| {
            let what = format!(
                "no slot is free; a machine has at most {} virtio devices",
                SLOTS - 1
            );
            Error::invalid(what)
        })?;
        let wires = KvmWires::new(Arc::clone(&self.vm), device.queues().len(), PCI_WINDOW)
            .map_err(|error| Error::host("no eventfds for a virtio device", error))?;
        let address = PCI_WINDOW.start + slot as u64 * BAR_BYTES;
        let memory = Arc::clone(&self.memory);
        let mut function = VirtioFunction::new(device, Box::new(wires), memory, address);
        // Where the guest has put other functions once it has run, only it knows.
        if place == Place::Cold {
            function.switch_on();
        }
        let function = Arc::new(Mutex::new(function));
        self.pci.insert(slot, &(function.clone() as _));
        let standing = Standing::InPlace;
        inside.plugged.insert(slot, Plugged { function, standing });
        Ok(slot)
    }

    /// All functions, in the order of their slots.
    pub(crate) fn functions(&self) -> Vec<SharedFunction> {
        let inside = self.inside();
        let all = inside.plugged.values();
        all.map(|plugged| Arc::clone(&plugged.function)).collect()
    }

    /// All functions with their slots, as long as none is being removed.
    pub(crate) fn placed(&self) -> Result<Vec<(u8, SharedFunction)>> {
        let inside = self.inside();
        let placed = inside.plugged.iter().map(|(slot, plugged)| {
            if plugged.standing == Standing::InPlace {
                return Ok((*slot as u8, Arc::clone(&plugged.function)));
            }
            let what = format!("the device in slot {slot} is being removed; try again afterwards");
            Err(Error::invalid(what))
        });
        placed.collect()
    }

    /// The bus.
    pub(crate) fn pci(&self) -> &PciBus {
        &self.pci
    }

    /// The function in a slot.
    pub(crate) fn function(&self, slot: usize) -> Option<SharedFunction> {
        let inside = self.inside();
        let plugged = inside.plugged.get(&slot)?;
        Some(Arc::clone(&plugged.function))
    }

    /// Off the bus at once.
    fn take_off(&self, slot: usize, plugged: &mut Plugged) {
        plugged.standing = Standing::Gone;
        // First the function: a processor that is at it cannot put it on the bus again afterwards.
        lock(&plugged.function).unplug();
        self.pci.remove(slot);
    }

    /// The guest lets go of slots. What the host does not want, or no more, stays, and the guest is told to look at
    /// it again.
    fn let_go(&self, mask: u32) {
        let mut inside = self.inside();
        for (slot, plugged) in &mut inside.plugged {
            let named = mask.checked_shr(*slot as u32).unwrap_or(0) & 1 == 1;
            if !named {
                continue;
            }
            match plugged.standing {
                Standing::Wanted => {
                    self.take_off(*slot, plugged);
                    self.changed.notify_all();
                }
                Standing::InPlace => {
                    tracing::debug!(slot, "the guest lets go of a device that stays");
                    self.events.slot_filled(*slot);
                }
                Standing::Gone => {}
            }
        }
    }

    /// Ask the guest to let go of the device in `slot`, and wait so long for that.
    pub(crate) fn want_back(
        self: &Arc<Self>,
        slot: usize,
        patience: Duration,
    ) -> Result<DeviceLeaving> {
        let leaving = self.stand(slot, Standing::Wanted)?;
        self.events.removal_wanted(slot);
        let standing = |inside: &Inside| inside.plugged.get(&slot).map(|plugged| plugged.standing);
        let waits =
            |inside: &mut Inside| !inside.ended && standing(inside) == Some(Standing::Wanted);
        let waited = self
            .changed
            .wait_timeout_while(self.inside(), patience, waits);
        let (mut inside, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if let Some(plugged) = inside.plugged.get_mut(&slot)
            && plugged.standing == Standing::Wanted
        {
            plugged.standing = Standing::InPlace;
            self.events.removal_given_up(slot);
            let what = if inside.ended {
                "the machine has ended"
            } else {
                "the guest did not let go of the device; it stays where it is"
            };
            return Err(Error::new(ErrorKind::Guest, what));
        }
        drop(inside);
        Ok(leaving)
    }

    /// Pull the device in `slot` out. The guest is told when it is gone.
    pub(crate) fn pull(self: &Arc<Self>, slot: usize) -> Result<DeviceLeaving> {
        let leaving = self.stand(slot, Standing::Gone)?;
        self.events.slot_filled(slot);
        Ok(leaving)
    }

    /// Begin to remove what is in `slot`. Who pulls does not wait for who asks.
    fn stand(self: &Arc<Self>, slot: usize, standing: Standing) -> Result<DeviceLeaving> {
        let mut inside = self.inside();
        let none = || Error::invalid(format!("there is no device in slot {slot}"));
        let plugged = inside.plugged.get_mut(&slot).ok_or_else(none)?;
        match (plugged.standing, standing) {
            (Standing::InPlace, Standing::Wanted) => plugged.standing = Standing::Wanted,
            (Standing::InPlace | Standing::Wanted, Standing::Gone) => {
                self.take_off(slot, plugged);
                self.changed.notify_all();
            }
            _ => {
                let what = format!("the device in slot {slot} is being removed already");
                return Err(Error::invalid(what));
            }
        }
        Ok(DeviceLeaving {
            slots: Arc::clone(self),
            slot,
            function: Arc::clone(&plugged.function),
        })
    }

    /// Have all devices finish what they took, all at once, and say how far their queues are.
    pub(crate) fn stop(&self) -> Vec<Vec<(u16, QueueState)>> {
        let functions = self.functions();
        for function in &functions {
            let _ = lock(function).try_stop();
        }
        functions.iter().map(stopped).collect()
    }

    /// Devices go on that were stopped; none does once the machine has ended.
    pub(crate) fn go_on(&self) {
        let inside = self.inside();
        if !inside.ended {
            for plugged in inside.plugged.values() {
                lock(&plugged.function).go_on();
            }
        }
    }

    /// The machine has ended: nobody waits for its guest, and no device works any more.
    pub(crate) fn end(&self) {
        self.inside().ended = true;
        self.changed.notify_all();
        self.stop();
    }
}

/// A device that is off the bus.
#[derive(Debug)]
#[must_use = "its slot is free when it has been waited for"]
pub struct DeviceLeaving {
    slots: Arc<Slots>,
    slot: usize,
    function: SharedFunction,
}

impl DeviceLeaving {
    /// Return when what the device had taken has ended and all that it had of the host is given back: its
    /// doorbells, interrupts and eventfds, and the memory of the guest.
    pub fn wait(self) {
        stopped(&self.function);
        let mut inside = self.slots.inside();
        let plugged = inside.plugged.get(&self.slot);
        // Two may have waited for it, and another device be there by now.
        if plugged.is_some_and(|plugged| Arc::ptr_eq(&plugged.function, &self.function)) {
            let plugged = inside.plugged.remove(&self.slot);
            drop(inside);
            // With the last hold on the function go its wires and its device.
            drop(plugged);
        }
    }
}
