//! The serial line: a 16550 at the first PC's place, polled.
//!
//! A port costs an exit of the machine, so the line's state is asked once for as many bytes as its FIFO
//! holds.

use super::lock::Lock;
use super::ports;

const DATA: u16 = 0x3f8;
const FIFO_CONTROL: u16 = DATA + 2;
const LINE_STATUS: u16 = DATA + 5;
/// FIFOs on, both emptied.
const FIFO_ON: u8 = 7;
/// The transmitter's FIFO is empty.
const EMPTY: u8 = 1 << 5;
/// Bytes of the FIFO.
const FIFO: usize = 16;

/// Whether the FIFO is switched on.
static READY: Lock<bool> = Lock::new(false);

/// Sends a whole line; `beat` is called now and then meanwhile.
pub(crate) fn send(line: &[u8], beat: impl Fn()) {
    READY.with(&beat, |ready| {
        if !*ready {
            ports::write8(FIFO_CONTROL, FIFO_ON);
            *ready = true;
        }
        write(line, &beat);
    });
}

/// Sends what is said last, whoever else is about to say something.
#[cfg(freestanding)]
pub(super) fn send_at_once(line: &[u8]) {
    ports::write8(FIFO_CONTROL, FIFO_ON);
    write(b"\n", &|| ());
    write(line, &|| ());
}

fn write(line: &[u8], beat: &impl Fn()) {
    for bytes in line.chunks(FIFO) {
        while ports::read8(LINE_STATUS) & EMPTY == 0 {
            beat();
        }
        for byte in bytes {
            ports::write8(DATA, *byte);
            beat();
        }
    }
}
