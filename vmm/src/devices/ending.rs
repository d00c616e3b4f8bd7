//! The two ports by which a guest ends its machine.
//!
//! Port 0x64 is the keyboard controller's command port, of which only "pulse the reset line" (0xFE) is
//! there; port 0xF4 is this machine's own and takes an exit code, where QEMU has its `isa-debug-exit`.

use std::fmt;

use crate::bus::BusDevice;
use crate::machine::Exit;

/// The keyboard controller's command that resets the machine.
const PULSE_RESET: u8 = 0xFE;

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
}
