//! A machine's console on this process's terminal, or in a file.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Read as _};
use std::thread;
use std::time::Duration;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use vmm::description::Console;

use crate::failure::{Failure, Result};

/// Typed before an `x`, it ends the machine; typed twice, the guest gets it once (Ctrl-A, as in QEMU).
const ESCAPE: u8 = 0x01;
/// How long a guest that takes no input is left alone before it is offered again.
const BUSY: Duration = Duration::from_millis(10);

/// Where what the guest prints goes; a file is emptied at the `first` start of a machine. Where stdout is for
/// JSON the console is on stderr.
pub(crate) fn output(console: &Console, json: bool, first: bool) -> Result<vmm::Output> {
    Ok(match console {
        Console::Stdio if json => Box::new(io::stderr()),
        Console::Stdio => Box::new(io::stdout()),
        Console::Nowhere => Box::new(io::sink()),
        Console::File(path) => {
            let mut options = OpenOptions::new();
            let options = options.create(true).append(true);
            let opened = options.open(path).and_then(|file: File| {
                if first {
                    file.set_len(0)?;
                }
                Ok(file)
            });
            let failed = |e| Failure::io(format!("{}: cannot be written", path.display()), &e);
            Box::new(opened.map_err(failed)?)
        }
    })
}

/// The terminal as it was; put back when this is dropped.
pub(crate) struct Raw(Option<Termios>);

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Nothing more can be done for a terminal that has gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Gives what is typed to `guest`, which says how much it took; `None` ends the machine. Only where the
/// console is on the terminal.
pub(crate) fn feed(
    console: &Console,
    guest: impl Fn(Option<&[u8]>) -> usize + Send + 'static,
) -> Result<Raw> {
    if *console != Console::Stdio {
        return Ok(Raw(None));
    }
    let raw = Raw(raw()?);
    let started = thread::Builder::new()
        .name("console".into())
        .spawn(move || {
            vmm::confine::thread(vmm::confine::Kind::Console);
            let mut typed = [0; 256];
            let mut keys = Keys::default();
            while let Ok(len @ 1..) = io::stdin().read(&mut typed) {
                let bytes = keys.take(&typed[..len]);
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let taken = guest(Some(rest)).min(rest.len());
                    rest = &rest[taken..];
                    if taken == 0 {
                        thread::sleep(BUSY);
                    }
                }
                if keys.ended {
                    guest(None);
                    return;
                }
            }
        });
    started.map_err(|e| Failure::io("no thread that reads the console", &e))?;
    Ok(raw)
}

/// Has the terminal, if that is what stdin is, give every key as it is typed.
fn raw() -> Result<Option<Termios>> {
    if !io::stdin().is_terminal() {
        return Ok(None);
    }
    let failed = |e: rustix::io::Errno| Failure::io("the terminal cannot be set up", &e.into());
    let before = tcgetattr(io::stdin()).map_err(failed)?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
    Ok(Some(before))
}

/// What has been typed of an escape.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
    ended: bool,
}

impl Keys {
    /// What of `typed` is the guest's; nothing behind the end is.
    fn take(&mut self, typed: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(typed.len());
        for byte in typed {
            match (std::mem::take(&mut self.escaped), *byte) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x') => {
                    self.ended = true;
                    break;
                }
                (_, byte) => bytes.push(byte),
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escape_and_an_x_end_the_machine_and_two_escapes_are_one() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"a\x01\x01b\x01"), b"a\x01b");
        assert!(!keys.ended);
        assert_eq!(keys.take(b"cd"), b"cd");
        assert_eq!(keys.take(b"e\x01"), b"e");
        assert_eq!(keys.take(b"xf"), b"");
        assert!(keys.ended);
    }
}
