//! A machine's console: its first serial port on a terminal, in a file, on a pseudoterminal or on sockets.
//!
//! What the guest prints is kept, the last 64 KiB of it. A file gets it at once, on the processor that printed it;
//! stdout, stderr, FIFOs and devices by a thread and a queue of 4 MiB. Everybody else is served from what is kept, by one thread: those that attach to a socket and who
//! opens the pseudoterminal. They see what is kept first, and each of them may type. One that does not read misses
//! what falls out; the guest never waits for anybody.

mod kept;
mod pty;
mod pump;
mod slow;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use vmm::confine::{self, Kind};
use vmm::description;

use self::kept::Kept;
use self::pty::Pty;
use self::pump::Pump;
use self::slow::Slow;
use crate::control::service;
use crate::failure::{Failure, Result};

/// Typed before an `x`, it ends the machine or leaves it; typed twice, the guest gets it once (Ctrl-A, as in QEMU).
const ESCAPE: u8 = 0x01;

/// What the guest printed, and where it goes at once.
struct Printed {
    kept: Kept,
    sink: Sink,
    /// Whether the thread is to be told that there is more: somebody is attached, and it was not told yet.
    tell: bool,
    /// Whether the machine prints no more.
    closed: bool,
}

/// Where the output goes besides to those who attach.
enum Sink {
    Nowhere,
    /// Has every byte, at once: a file takes what it gets.
    File(File),
    Slow(Slow),
}

/// Where the output goes besides to those who attach, open before the process is confined. Nothing is changed there
/// yet: another process may run this machine.
pub(crate) enum Place {
    Nowhere,
    Standard,
    File(PathBuf, File),
    Pty(Pty),
}

impl Place {
    /// The place that is asked for.
    pub(crate) fn open(to: &description::Console) -> Result<Self> {
        use description::Console;
        Ok(match to {
            Console::Nowhere | Console::Socket(_) => Self::Nowhere,
            Console::Stdio => Self::Standard,
            Console::File(path) => {
                let opened = opened(path).map_err(|e| unwritable(path, &e))?;
                Self::File(path.clone(), opened)
            }
            Console::Pty => {
                let pty = Pty::open();
                Self::Pty(pty.map_err(|e| Failure::io("no pseudoterminal for the console", &e))?)
            }
        })
    }
}

impl Sink {
    /// A place that is open: only a file is never stuck.
    fn to(place: File) -> io::Result<Self> {
        Ok(if place.metadata()?.is_file() {
            Self::File(place)
        } else {
            Self::Slow(Slow::start(place)?)
        })
    }

    /// Where this process prints.
    fn standard(json: bool) -> Result<Self> {
        let place = if json {
            io::stderr().as_fd().try_clone_to_owned()
        } else {
            io::stdout().as_fd().try_clone_to_owned()
        };
        let sink = place.and_then(|place| Self::to(place.into()));
        sink.map_err(|e| Failure::io("the console cannot be on stdout", &e))
    }
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
        match &mut printed.sink {
            Sink::Nowhere => {}
            Sink::File(file) => file.write_all(bytes)?,
            Sink::Slow(slow) => slow.push(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A console that is open.
pub(crate) struct Console {
    shared: Arc<Shared>,
    /// What the thread gets when it starts.
    ready: Mutex<Option<Ready>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    sockets: Mutex<Vec<Bound>>,
    terminal: Option<String>,
}

/// A socket that is listened on; its file goes with this.
struct Bound(PathBuf);

impl Drop for Bound {
    fn drop(&mut self) {
        // It may have been removed by hand; nothing depends on it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What people and programs attach to.
struct Ready {
    listeners: Vec<UnixListener>,
    pty: Option<Pty>,
    /// Whether what is typed into this process is the guest's.
    stdin: bool,
}

impl Console {
    /// The console that is asked for, whose place is open, to which one attaches at `attach` too. A file is emptied,
    /// once it is certain that no other process runs the machine. Where stdout is for JSON the console is on stderr.
    pub(crate) fn open(
        (to, place): (&description::Console, Place),
        attach: &Path,
        json: bool,
    ) -> Result<Self> {
        let mut paths = vec![attach.to_owned()];
        if let description::Console::Socket(path) = to {
            paths.push(path.clone());
        }
        let (mut sockets, mut listeners) = (Vec::new(), Vec::new());
        for path in paths {
            listeners.push(service::listener(&path)?);
            sockets.push(Bound(path));
        }
        let mut pty = None;
        let sink = match place {
            Place::Standard => Sink::standard(json)?,
            Place::File(path, file) => emptied(file).map_err(|e| unwritable(&path, &e))?,
            Place::Nowhere => Sink::Nowhere,
            Place::Pty(opened) => {
                pty = Some(opened);
                Sink::Nowhere
            }
        };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = wake.map_err(|e| Failure::io("no eventfd for the console", &e.into()))?;
        let terminal = pty.as_ref().map(|pty| pty.name().to_owned());
        let ready = Ready {
            listeners,
            pty,
            stdin: *to == description::Console::Stdio,
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
            sockets: Mutex::new(sockets),
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
            .spawn(move || {
                confine::thread(Kind::Console);
                pump.run();
            });
        let started = started.map_err(|e| Failure::io("no thread for the console", &e))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        Ok(raw)
    }

    /// The machine has ended. Who is attached gets what is left, and so does what is printed to; says whether
    /// that is not stuck.
    pub(crate) fn close(&self) -> bool {
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
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.clear();
        let sink = std::mem::replace(&mut self.shared.printed().sink, Sink::Nowhere);
        match sink {
            Sink::Slow(slow) => slow.close(),
            Sink::Nowhere | Sink::File(_) => true,
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.close();
    }
}

/// A file that is there or made, or a FIFO or device.
fn opened(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        // A FIFO that can be read here too is open at once, and waits for nobody to read it.
        options.read(true).write(true).open(path)
    } else {
        options.create(true).append(true).open(path)
    }
}

/// A file with nothing in it, or a FIFO or device as it is.
fn emptied(place: File) -> io::Result<Sink> {
    if place.metadata()?.is_file() {
        place.set_len(0)?;
    }
    Sink::to(place)
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::io(format!("{}: cannot be written", path.display()), error)
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
