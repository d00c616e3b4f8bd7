//! A machine's console: its first serial port on a terminal, in a file, on a pseudoterminal or on sockets.
//!
//! What the guest prints is kept, the last 64 KiB of it, and goes to one place at once, on the processor that
//! printed it. Everybody else is served from what is kept, by one thread: those that attach to a socket and who
//! opens the pseudoterminal. They see what is kept first, and each of them may type. One that does not read misses
//! what falls out; the guest never waits for anybody.

mod kept;
mod pty;
mod pump;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use vmm::description;

use self::kept::Kept;
use self::pty::Pty;
use self::pump::Pump;
use crate::control::service;
use crate::failure::{Failure, Result};

/// Typed before an `x`, it ends the machine or leaves it; typed twice, the guest gets it once (Ctrl-A, as in QEMU).
const ESCAPE: u8 = 0x01;

/// What the guest printed, and where it goes at once.
struct Printed {
    kept: Kept,
    sink: Box<dyn Write + Send>,
    /// Whether the thread is to be told that there is more: somebody is attached, and it was not told yet.
    tell: bool,
    /// Whether the machine prints no more.
    closed: bool,
}

/// What the guest's processors and the console's thread share.
struct Shared {
    printed: Mutex<Printed>,
    /// Rung when there is more.
    wake: OwnedFd,
}

impl Shared {
    fn printed(&self) -> MutexGuard<'_, Printed> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // Nothing is lost if it was rung often enough already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// What a serial port prints to.
struct Output(Arc<Shared>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut printed = self.0.printed();
        printed.kept.push(bytes);
        if std::mem::take(&mut printed.tell) {
            self.0.ring();
        }
        printed.sink.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.printed().sink.flush()
    }
}

/// A console that is open.
pub(crate) struct Console {
    shared: Arc<Shared>,
    /// What the thread gets when it starts.
    ready: Mutex<Option<Ready>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    sockets: Vec<PathBuf>,
    terminal: Option<String>,
}

/// What people and programs attach to.
struct Ready {
    listeners: Vec<UnixListener>,
    pty: Option<Pty>,
    /// Whether what is typed into this process is the guest's.
    stdin: bool,
}

impl Console {
    /// The console that is asked for, to which one attaches at `attach` too. A file is emptied. Where stdout is for
    /// JSON the console is on stderr.
    pub(crate) fn open(to: &description::Console, attach: &Path, json: bool) -> Result<Self> {
        use description::Console::{File, Nowhere, Pty as OnPty, Socket, Stdio};
        let mut sockets = vec![attach.to_owned()];
        let mut pty = None;
        let sink: Box<dyn Write + Send> = match to {
            Stdio if json => Box::new(io::stderr()),
            Stdio => Box::new(io::stdout()),
            File(path) => Box::new(emptied(path)?),
            Nowhere => Box::new(io::sink()),
            Socket(path) => {
                sockets.push(path.clone());
                Box::new(io::sink())
            }
            OnPty => {
                let failed = |e| Failure::io("no pseudoterminal for the console", &e);
                pty = Some(Pty::open().map_err(failed)?);
                Box::new(io::sink())
            }
        };
        let listeners = sockets.iter().map(|path| service::listener(path));
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = wake.map_err(|e| Failure::io("no eventfd for the console", &e.into()))?;
        let terminal = pty.as_ref().map(|pty| pty.name().to_owned());
        let ready = Ready {
            listeners: listeners.collect::<Result<_>>()?,
            pty,
            stdin: *to == Stdio,
        };
        let printed = Printed {
            kept: Kept::default(),
            sink,
            tell: false,
            closed: false,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                printed: Mutex::new(printed),
                wake,
            }),
            ready: Mutex::new(Some(ready)),
            thread: Mutex::default(),
            sockets,
            terminal,
        })
    }

    /// What a serial port prints to.
    pub(crate) fn output(&self) -> vmm::Output {
        Box::new(Output(Arc::clone(&self.shared)))
    }

    /// The name of the pseudoterminal, if it is on one.
    pub(crate) fn terminal(&self) -> Option<&str> {
        self.terminal.as_deref()
    }

    /// Give what is typed to `guest` from now on, which says how much it took; `None` ends the machine. The terminal
    /// is as it was when the result is dropped.
    pub(crate) fn feed(
        &self,
        guest: impl Fn(Option<&[u8]>) -> usize + Send + 'static,
    ) -> Result<Raw> {
        let ready = self
            .ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(ready) = ready else {
            return Ok(Raw(None));
        };
        let raw = if ready.stdin { raw()? } else { Raw(None) };
        let pump = Pump::new(Arc::clone(&self.shared), ready, Box::new(guest));
        let started = thread::Builder::new()
            .name("console".into())
            .spawn(move || pump.run());
        let started = started.map_err(|e| Failure::io("no thread for the console", &e))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        Ok(raw)
    }

    /// The machine has ended. Who is attached gets what is left.
    pub(crate) fn close(&self) {
        self.shared.printed().closed = true;
        self.shared.ring();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread of the console has panicked");
        }
        for path in &self.sockets {
            // It may have been removed by hand; nothing depends on it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A file with nothing in it.
fn emptied(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let opened = options.create(true).append(true).open(path);
    let opened = opened.and_then(|file| file.set_len(0).map(|()| file));
    opened.map_err(|e| Failure::io(format!("{}: cannot be written", path.display()), &e))
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

/// Has the terminal, if that is what stdin is, give every key as it is typed.
pub(crate) fn raw() -> Result<Raw> {
    if !io::stdin().is_terminal() {
        return Ok(Raw(None));
    }
    let failed = |e: rustix::io::Errno| Failure::io("the terminal cannot be set up", &e.into());
    let before = tcgetattr(io::stdin()).map_err(failed)?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
    Ok(Raw(Some(before)))
}

/// What has been typed of an escape.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    escaped: bool,
    pub(crate) ended: bool,
}

impl Keys {
    /// What of `typed` is the guest's; nothing behind the end is.
    pub(crate) fn take(&mut self, typed: &[u8]) -> Vec<u8> {
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
