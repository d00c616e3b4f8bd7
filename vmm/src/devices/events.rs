//! What a machine tells its guest while it runs: the power button, and slots of PCI whose device comes or goes.
//!
//! Machine: registers in, decisions out. Four registers of 32 bits, little endian, and one interrupt line by
//! edge; ACPI describes them to a stock kernel as a Generic Event Device (ACPI 6.5, 5.6.9) with slots that can
//! be ejected (6.3), a program may poll them. A mask has bit n for PCI device n of bus 0.
//!
//! ```text
//!   +0  read    what happened since the last read: bit 0 the power button, bit 1 slots changed
//!   +4  read    slots in which a device came, or was pulled out: look again
//!   +8  read    slots whose device the host wants back
//!   +C  write   slots whose device the guest lets go of
//! ```
//!
//! A read clears what it returns. An access of another width, or at another place, reads as zero and does
//! nothing. Must never panic on what a guest does.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bus::BusDevice;
use crate::snapshot;

/// What happened, at +0.
const POWER_BUTTON: u32 = 1;
const SLOTS_CHANGED: u32 = 2;

/// Where the registers are.
const HAPPENED: u64 = 0;
const CHANGED: u64 = 4;
const WANTED: u64 = 8;
const EJECT: u64 = 12;

/// Called with the slots that a guest lets go of, on its processor and with no lock of this device held.
pub(crate) type Eject = Box<dyn Fn(u32) + Send + Sync>;

/// The device.
pub(crate) struct Events {
    state: Mutex<snapshot::Events>,
    interrupt: Box<dyn Fn() + Send + Sync>,
    eject: Eject,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// The bit of a slot; none for what is no slot.
fn bit(slot: usize) -> u32 {
    u32::try_from(slot).map_or(0, |slot| 1_u32.checked_shl(slot).unwrap_or(0))
}

impl Events {
    /// A device at which nothing happened, that calls `interrupt` when something does.
    pub(crate) fn new(interrupt: Box<dyn Fn() + Send + Sync>, eject: Eject) -> Self {
        Self {
            state: Mutex::new(snapshot::Events {
                happened: 0,
                changed: 0,
                wanted: 0,
            }),
            interrupt,
            eject,
        }
    }

    fn state(&self) -> MutexGuard<'_, snapshot::Events> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Change the registers, then raise the interrupt: whoever takes it finds what it is about.
    fn tell(&self, change: impl FnOnce(&mut snapshot::Events)) {
        change(&mut self.state());
        (self.interrupt)();
    }

    /// Somebody presses the power button: the guest shall shut down.
    pub(crate) fn power_button(&self) {
        self.tell(|state| state.happened |= POWER_BUTTON);
    }

    /// A device was put into `slot`, or pulled out of it: the guest shall look again. What was asked of the
    /// slot before is about a device that is gone.
    pub(crate) fn slot_filled(&self, slot: usize) {
        self.tell(|state| {
            state.happened |= SLOTS_CHANGED;
            state.changed |= bit(slot);
            state.wanted &= !bit(slot);
        });
    }

    /// The host wants the device in `slot` back: the guest shall let go of it.
    pub(crate) fn removal_wanted(&self, slot: usize) {
        self.tell(|state| {
            state.happened |= SLOTS_CHANGED;
            state.wanted |= bit(slot);
        });
    }

    /// The host does not want the device in `slot` back any more. A guest that has read of it may let go all the same.
    pub(crate) fn removal_given_up(&self, slot: usize) {
        self.state().wanted &= !bit(slot);
    }

    /// Whether the guest has still to look at `slot` again.
    pub(crate) fn is_changed(&self, slot: usize) -> bool {
        self.state().changed & bit(slot) != 0
    }

    /// What the registers would read as, which stays.
    pub(crate) fn save(&self) -> snapshot::Events {
        self.state().clone()
    }

    /// Go on from what [`Self::save`] returned. Raises no interrupt: one that was raised is with the
    /// interrupt controllers.
    pub(crate) fn restore(&self, saved: &snapshot::Events) {
        *self.state() = saved.clone();
    }
}

impl BusDevice for Events {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        let mut state = self.state();
        let register = match offset {
            HAPPENED => &mut state.happened,
            CHANGED => &mut state.changed,
            WANTED => &mut state.wanted,
            _ => return,
        };
        *data = std::mem::take(register).to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Ok(slots) = data.try_into()
            && offset == EJECT
        {
            (self.eject)(u32::from_le_bytes(slots));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A device, how often it raised its interrupt, and what was ejected.
    fn device() -> (Events, Arc<AtomicU32>, Arc<Mutex<Vec<u32>>>) {
        let raised = Arc::new(AtomicU32::new(0));
        let ejected: Arc<Mutex<Vec<u32>>> = Arc::default();
        let (count, slots) = (Arc::clone(&raised), Arc::clone(&ejected));
        let interrupt = Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let eject = Box::new(move |mask| slots.lock().unwrap().push(mask));
        (Events::new(interrupt, eject), raised, ejected)
    }

    fn register(events: &Events, offset: u64) -> u32 {
        let mut data = [0xAA; 4];
        events.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn what_happened_is_told_once_and_raises_the_interrupt_each_time() {
        let (events, raised, _) = device();
        assert_eq!(register(&events, HAPPENED), 0);
        events.power_button();
        events.power_button();
        events.slot_filled(3);
        assert_eq!(raised.load(Ordering::SeqCst), 3);
        assert_eq!(register(&events, HAPPENED), POWER_BUTTON | SLOTS_CHANGED);
        assert_eq!(register(&events, HAPPENED), 0);
        events.removal_wanted(31);
        assert_eq!(register(&events, HAPPENED), SLOTS_CHANGED);
    }

    #[test]
    fn slots_are_told_apart_and_none_is_forgotten() {
        let (events, ..) = device();
        events.slot_filled(1);
        events.slot_filled(31);
        events.removal_wanted(2);
        assert_eq!(register(&events, CHANGED), 1 << 31 | 1 << 1);
        assert_eq!(register(&events, CHANGED), 0);
        assert_eq!(register(&events, WANTED), 1 << 2);
        assert_eq!(register(&events, WANTED), 0);
        events.slot_filled(32);
        assert_eq!(register(&events, CHANGED), 0, "there are 32 slots");
    }

    #[test]
    fn a_device_that_was_pulled_out_is_not_wanted_back() {
        let (events, ..) = device();
        events.removal_wanted(2);
        events.slot_filled(2);
        assert_eq!(register(&events, WANTED), 0);
        assert_eq!(register(&events, CHANGED), 1 << 2);
    }

    #[test]
    fn what_the_guest_lets_go_of_is_passed_on_as_it_is() {
        let (events, _, ejected) = device();
        events.write(EJECT, &0x8000_0006_u32.to_le_bytes());
        assert_eq!(*ejected.lock().unwrap(), [0x8000_0006]);
    }

    #[test]
    fn no_access_of_another_kind_clears_or_ejects_anything() {
        let (events, raised, ejected) = device();
        events.power_button();
        events.removal_wanted(1);
        let before = events.save();
        for offset in 0..16 {
            for bytes in [0, 1, 2, 3, 4, 8] {
                if bytes == 4 && offset % 4 == 0 {
                    continue;
                }
                let mut data = vec![0xAA; bytes];
                events.read(offset, &mut data);
                assert_eq!(data, vec![0; bytes]);
                events.write(offset, &data);
            }
        }
        assert_eq!(register(&events, EJECT), 0);
        for offset in [HAPPENED, CHANGED, WANTED] {
            events.write(offset, &[0xFF; 4]);
        }
        assert_eq!(events.save(), before);
        assert_eq!(raised.load(Ordering::SeqCst), 2);
        assert!(ejected.lock().unwrap().is_empty());
    }

    #[test]
    fn a_device_goes_on_with_what_was_not_read() {
        let (events, ..) = device();
        events.power_button();
        events.removal_wanted(4);
        let (other, raised, _) = device();
        other.restore(&events.save());
        assert_eq!(raised.load(Ordering::SeqCst), 0);
        assert_eq!(register(&other, HAPPENED), POWER_BUTTON | SLOTS_CHANGED);
        assert_eq!(register(&other, WANTED), 1 << 4);
    }
}
