//! The ports by which a guest ends its machine.
//!
//! Port 0x64 is the keyboard controller's command port, of which only "pulse the reset line" (0xFE) is
//! there; port 0xF4 is this machine's own and takes an exit code, where QEMU has its `isa-debug-exit`. The
//! sleep registers are those of hardware-reduced ACPI (ACPI 6.5, 4.8.3.7), the port of panics is QEMU's
//! (`docs/specs/pvpanic.rst`); the tables in `acpi` tell a kernel where they are.

use std::fmt;

use crate::bus::BusDevice;
use crate::layout::SLEEP_OFF;
use crate::machine::Exit;

/// The keyboard controller's command that resets the machine.
pub(crate) const PULSE_RESET: u8 = 0xFE;

/// Sleep control: enter the type of sleep that the bits from 2 to 4 name.
const SLEEP_ENABLE: u8 = 1 << 5;
/// A kernel has panicked, and nothing of it handles that: the only event that is offered.
const PANICKED: u8 = 1;

/// Tells whoever runs the machine that it has ended.
pub(crate) type Ending = Box<dyn Fn(Exit) + Send + Sync>;

/// The keyboard controller's command and status port.
pub(crate) struct ResetPort(pub(crate) Ending);

impl fmt::Debug for ResetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetPort")
    }
}

impl BusDevice for ResetPort {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        if data.first() == Some(&PULSE_RESET) {
            (self.0)(Exit::Reset);
        }
    }
}

/// The port that takes an exit code.
pub(crate) struct PowerOffPort(pub(crate) Ending);

impl fmt::Debug for PowerOffPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PowerOffPort")
    }
}

impl BusDevice for PowerOffPort {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        if let Some(code) = data.first() {
            (self.0)(Exit::PowerOff(*code));
        }
    }
}

/// Sleep control and, behind it, sleep status, in which nothing ever happens: the only sleep is to be off.
pub(crate) struct SleepPorts(pub(crate) Ending);

impl fmt::Debug for SleepPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SleepPorts")
    }
}

impl BusDevice for SleepPorts {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, [value]) = (offset, data)
            && value & SLEEP_ENABLE != 0
            && value >> 2 & 7 == SLEEP_OFF
        {
            (self.0)(Exit::PowerOff(0));
        }
    }
}

/// The port at which a kernel says that it panicked. A crash kernel is its own affair: a machine that has one
/// goes on, since that event is not offered.
pub(crate) struct PanicPort(pub(crate) Ending);

impl fmt::Debug for PanicPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PanicPort")
    }
}

impl BusDevice for PanicPort {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
        if let [byte] = data {
            *byte = PANICKED;
        }
    }

    fn write(&self, _: u64, data: &[u8]) {
        if let [value] = data
            && value & PANICKED != 0
        {
            let why = "its kernel panicked; the console says of what";
            (self.0)(Exit::Crash(why.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn only_the_right_bytes_end_a_machine() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let ending = || -> Ending {
            let seen = Arc::clone(&seen);
            Box::new(move |exit| seen.lock().unwrap().push(exit))
        };
        let (reset, off) = (ResetPort(ending()), PowerOffPort(ending()));
        reset.write(0, &[0xD1]);
        reset.write(0, &[]);
        off.write(0, &[]);
        assert!(seen.lock().unwrap().is_empty());
        reset.write(0, &[0xFE]);
        off.write(0, &[7]);
        assert_eq!(*seen.lock().unwrap(), [Exit::Reset, Exit::PowerOff(7)]);
    }

    #[test]
    fn a_guest_that_sleeps_for_good_or_panics_ends_its_machine() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let ending = || -> Ending {
            let seen = Arc::clone(&seen);
            Box::new(move |exit| seen.lock().unwrap().push(exit))
        };
        let (sleep, panic) = (SleepPorts(ending()), PanicPort(ending()));
        for value in [0, SLEEP_OFF << 2, SLEEP_ENABLE, SLEEP_ENABLE | 3 << 2] {
            sleep.write(0, &[value]);
        }
        sleep.write(1, &[SLEEP_ENABLE | SLEEP_OFF << 2]);
        sleep.write(0, &[]);
        panic.write(0, &[2]);
        panic.write(0, &[1, 0]);
        assert!(seen.lock().unwrap().is_empty());
        let mut offered = [0xFF];
        panic.read(0, &mut offered);
        assert_eq!(offered, [PANICKED]);
        sleep.read(0, &mut offered);
        assert_eq!(offered, [0]);
        sleep.write(0, &[SLEEP_ENABLE | SLEEP_OFF << 2]);
        panic.write(0, &offered);
        panic.write(0, &[PANICKED]);
        let seen = seen.lock().unwrap();
        assert!(
            matches!(&seen[..], [Exit::PowerOff(0), Exit::Crash(why)] if why.contains("panicked"))
        );
    }
}
