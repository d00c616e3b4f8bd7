//! A serial port (16550A) on COM1.
//!
//! The registers are `vm-superio`'s. Bytes from the guest go to a writer at once; bytes for the guest wait
//! in its queue of 64. An output that fails loses what was written to it: a guest must not hang because
//! nobody reads its console.

use std::convert::Infallible;
use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, SerialState, Trigger};

use crate::bus::BusDevice;
use crate::snapshot;

/// Where what the guest prints goes.
pub type Output = Box<dyn Write + Send>;

/// Raises the port's interrupt.
#[derive(Clone)]
pub(crate) struct Line(Arc<dyn Fn() + Send + Sync>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        (self.0)();
        Ok(())
    }
}

/// The port.
pub(crate) struct SerialPort(Mutex<Serial<Line, NoEvents, Output>>);

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SerialPort")
    }
}

impl SerialPort {
    /// A port that prints to `output` and calls `interrupt` for each interrupt.
    pub(crate) fn new(output: Output, interrupt: Box<dyn Fn() + Send + Sync>) -> Self {
        Self(Mutex::new(Serial::new(Line(interrupt.into()), output)))
    }

    /// Give the guest bytes; says how many there was room for.
    pub(crate) fn input(&self, bytes: &[u8]) -> usize {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        port.enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    /// Its registers, and what the guest has not read.
    pub(crate) fn save(&self) -> snapshot::Serial {
        let port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = port.state();
        snapshot::Serial {
            divisor_low: state.baud_divisor_low,
            divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }

    /// Be as it was saved. May raise the interrupt. More input than there is room for is refused.
    pub(crate) fn restore(&self, saved: &snapshot::Serial) -> Result<(), &'static str> {
        let state = SerialState {
            baud_divisor_low: saved.divisor_low,
            baud_divisor_high: saved.divisor_high,
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.input.clone(),
        };
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = port.interrupt_evt().clone();
        // The output is only given away with the port that it belongs to.
        let none: Output = Box::new(std::io::sink());
        let before = std::mem::replace(&mut *port, Serial::new(line.clone(), none));
        let after = Serial::from_state(&state, line, NoEvents, before.into_writer());
        *port = after.map_err(|_| "there is more input than the port has room for")?;
        Ok(())
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        data.fill(0);
        if let [byte] = data {
            *byte = port.read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let [byte] = data
            && let Err(error) = port.write(offset as u8, *byte)
        {
            tracing::trace!(?error, "a byte of the console was lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn input_raises_the_interrupt_and_is_read_in_order() {
        let raised = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&raised);
        let port = SerialPort::new(
            Box::new(io::sink()),
            Box::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            }),
        );
        port.write(1, &[1]);
        assert_eq!(port.input(b"ab"), 2);
        assert!(raised.load(Ordering::SeqCst) > 0);
        let mut byte = [0];
        for expected in *b"ab" {
            port.read(5, &mut byte);
            assert_eq!(byte[0] & 1, 1, "data ready");
            port.read(0, &mut byte);
            assert_eq!(byte[0], expected);
        }
        assert_eq!(port.input(&[0; 100]), 64, "the queue is bounded");
    }

    #[test]
    fn a_guest_goes_on_when_nobody_takes_its_output() {
        let port = SerialPort::new(Box::new(Full), Box::new(|| {}));
        for _ in 0..100 {
            port.write(0, b"x");
        }
        let mut status = [0];
        port.read(5, &mut status);
        assert_eq!(status[0] & 0x20, 0x20, "ready for the next byte");
        port.write(0, b"wide");
        port.read(0, &mut [0; 4]);
    }
}
