//! `echo`: says what is typed on the console, line by line, until a line `end`.

use core::str;

use crate::machine::ports;
use crate::vcpu::Vcpu;

/// The first serial port, and its line status with a bit for a byte that came.
const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = 0x3fd;
const BYTE_CAME: u8 = 1;
/// Longest line; what does not fit is left out.
const LONGEST: usize = 80;

pub(super) fn echo(vcpu: &Vcpu) {
    if !vcpu.leads() {
        return;
    }
    vcpu.say(vcpu.event("listening"));
    let (mut line, mut len) = ([0; LONGEST], 0);
    loop {
        vcpu.beat();
        if ports::read8(LINE_STATUS) & BYTE_CAME == 0 {
            core::hint::spin_loop();
            continue;
        }
        let byte = ports::read8(DATA);
        if byte != b'\n' && byte != b'\r' {
            if let Some(place) = line.get_mut(len) {
                *place = byte;
                len += 1;
            }
            continue;
        }
        let text = line.get(..len).and_then(|line| str::from_utf8(line).ok());
        let text = text.unwrap_or("not UTF-8");
        vcpu.say(vcpu.event("typed").text("line", text));
        if text == "end" {
            return;
        }
        len = 0;
    }
}
