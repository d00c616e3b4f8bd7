//! The thread of a console: what was printed to those who are attached, what they type to the guest.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::pty::Pty;
use super::{Keys, Ready, Shared};

/// How long a guest that takes no input is left alone before it is offered again.
const BUSY: Duration = Duration::from_millis(10);
/// How often it is looked whether somebody has opened the pseudoterminal.
const LOOK: Duration = Duration::from_millis(200);
/// How long all who are attached may take for the last bytes, together.
const LAST: Duration = Duration::from_secs(1);
/// Nothing more is read from those who type while so much waits for the guest.
const TYPED: usize = 4096;
/// More are turned away.
const MOST_VIEWERS: usize = 32;

/// Takes what is typed and says how much; `None` ends the machine.
type Guest = Box<dyn Fn(Option<&[u8]>) -> usize + Send>;

/// Somebody who is attached.
struct Viewer {
    stream: UnixStream,
    /// Number of the next byte for it.
    at: u64,
    /// It types nothing any more.
    silent: bool,
    gone: bool,
}

/// The pseudoterminal, and who has it open.
struct Terminal {
    pty: Pty,
    at: u64,
    open: bool,
}

/// See the file's head.
pub(super) struct Pump {
    shared: Arc<Shared>,
    listeners: Vec<UnixListener>,
    viewers: Vec<Viewer>,
    terminal: Option<Terminal>,
    stdin: bool,
    /// Nobody is let in until it has been waited once.
    deaf: bool,
    keys: Keys,
    typed: Vec<u8>,
    guest: Guest,
}

/// What a descriptor that is waited for belongs to.
#[derive(Clone, Copy)]
enum Source {
    Wake,
    Stdin,
    Terminal,
    Listener(usize),
    Viewer(usize),
}

impl Pump {
    pub(super) fn new(shared: Arc<Shared>, ready: Ready, guest: Guest) -> Self {
        let terminal = ready.pty.map(|pty| Terminal {
            pty,
            at: 0,
            open: false,
        });
        Self {
            shared,
            listeners: ready.listeners,
            viewers: Vec::new(),
            terminal,
            stdin: ready.stdin,
            deaf: false,
            keys: Keys::default(),
            typed: Vec::new(),
            guest,
        }
    }

    /// Until the machine prints no more.
    pub(super) fn run(mut self) {
        loop {
            self.look_at_terminal();
            let (end, closed) = {
                let mut printed = self.shared.printed();
                let open = self.terminal.as_ref().is_some_and(|terminal| terminal.open);
                printed.tell = open || !self.viewers.is_empty();
                (printed.kept.end(), printed.closed)
            };
            self.show();
            if closed {
                return self.say_good_bye();
            }
            self.give();
            let ready = match self.wait(end) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "the console cannot be served any more");
                    return;
                }
            };
            self.deaf = false;
            for (source, events) in ready {
                self.attend(source, events);
            }
            self.viewers.retain(|viewer| !viewer.gone);
        }
    }

    /// Whether somebody has opened the pseudoterminal, or closed it.
    fn look_at_terminal(&mut self) {
        let Some(terminal) = &mut self.terminal else {
            return;
        };
        let open = terminal.pty.is_open();
        if open && !terminal.open {
            terminal.at = self.shared.printed().kept.start();
        }
        terminal.open = open;
    }

    /// Wait until there is something to do; `end` is how much had been printed when everybody was served last.
    fn wait(&self, end: u64) -> io::Result<Vec<(Source, PollFlags)>> {
        let types = if self.typed.len() < TYPED {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let also = |behind: bool| {
            if behind {
                PollFlags::OUT
            } else {
                PollFlags::empty()
            }
        };
        let stdin = io::stdin();
        let mut sources = vec![Source::Wake];
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        if self.stdin && types.contains(PollFlags::IN) {
            sources.push(Source::Stdin);
            fds.push(PollFd::new(&stdin, types));
        }
        if let Some(terminal) = self.terminal.as_ref().filter(|terminal| terminal.open) {
            sources.push(Source::Terminal);
            fds.push(PollFd::new(&terminal.pty, types | also(terminal.at < end)));
        }
        let listeners = self.listeners.iter().enumerate();
        for (at, listener) in listeners.filter(|_| !self.deaf) {
            sources.push(Source::Listener(at));
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        for (at, viewer) in self.viewers.iter().enumerate() {
            let types = if viewer.silent {
                PollFlags::empty()
            } else {
                types
            };
            sources.push(Source::Viewer(at));
            fds.push(PollFd::new(&viewer.stream, types | also(viewer.at < end)));
        }
        let timeout = self.timeout().map(|timeout| Timespec {
            tv_sec: 0,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = sources.into_iter().zip(fds.iter().map(PollFd::revents));
        Ok(ready.filter(|(_, events)| !events.is_empty()).collect())
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.typed.is_empty() {
            return Some(BUSY);
        }
        let closed = self
            .terminal
            .as_ref()
            .is_some_and(|terminal| !terminal.open);
        (closed || self.deaf).then_some(LOOK)
    }

    fn attend(&mut self, source: Source, events: PollFlags) {
        let mut bytes = [0; 1024];
        match source {
            // An eventfd is read as a whole.
            Source::Wake => drop(rustix::io::read(&self.shared.wake, &mut bytes)),
            Source::Stdin => match rustix::io::read(io::stdin(), &mut bytes) {
                Ok(len @ 1..) => {
                    let typed = self.keys.take(bytes.get(..len).unwrap_or_default());
                    self.typed.extend(typed);
                    if self.keys.ended {
                        self.stdin = false;
                        (self.guest)(None);
                    }
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                _ => self.stdin = false,
            },
            Source::Terminal => {
                if let Some(terminal) = &mut self.terminal {
                    terminal.open &= !events.contains(PollFlags::HUP);
                }
                if let Some(terminal) = &self.terminal
                    && let Ok(len) = rustix::io::read(&terminal.pty, &mut bytes)
                {
                    self.typed.extend(bytes.get(..len).unwrap_or_default());
                }
            }
            Source::Listener(at) => self.welcome(at),
            Source::Viewer(at) => {
                if let Some(viewer) = self.viewers.get_mut(at) {
                    self.typed.extend(viewer.read(&mut bytes));
                    viewer.gone |= events.intersects(PollFlags::HUP | PollFlags::ERR);
                }
            }
        }
    }

    fn welcome(&mut self, listener: usize) {
        let accepted = self.listeners.get(listener).map(UnixListener::accept);
        let stream = match accepted {
            Some(Ok((stream, _))) => stream,
            Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                // As long as no more files can be open whoever comes waits, and would be reported at once again.
                self.deaf = true;
                return;
            }
            _ => return,
        };
        // One that is turned away, or that cannot be served, sees the end of the stream.
        if self.viewers.len() < MOST_VIEWERS && stream.set_nonblocking(true).is_ok() {
            self.viewers.push(Viewer {
                stream,
                at: self.shared.printed().kept.start(),
                silent: false,
                gone: false,
            });
        }
    }

    /// Show everybody what they have not seen, as far as they take it.
    fn show(&mut self) {
        for viewer in &mut self.viewers {
            let mut stream = &viewer.stream;
            let shown = show(&self.shared, &mut viewer.at, |bytes| stream.write(bytes));
            viewer.gone |= shown.is_err();
        }
        self.viewers.retain(|viewer| !viewer.gone);
        if let Some(terminal) = self.terminal.as_mut().filter(|terminal| terminal.open) {
            let pty = &terminal.pty;
            let write = |bytes: &[u8]| Ok(rustix::io::write(pty, bytes)?);
            // One that was closed meanwhile is seen to be so next time.
            let _ = show(&self.shared, &mut terminal.at, write);
        }
    }

    /// Give the guest what was typed, as far as it takes it.
    fn give(&mut self) {
        if !self.typed.is_empty() {
            let taken = (self.guest)(Some(&self.typed));
            self.typed.drain(..taken.min(self.typed.len()));
        }
    }

    /// Everybody gets the last bytes, and not much time for that.
    fn say_good_bye(&mut self) {
        let deadline = Instant::now() + LAST;
        let end = self.shared.printed().kept.end();
        loop {
            self.show();
            let terminal = self.terminal.as_ref().filter(|terminal| terminal.open);
            let terminal = terminal.filter(|terminal| terminal.at < end);
            let behind = self.viewers.iter().filter(|viewer| viewer.at < end);
            let mut fds: Vec<_> = behind
                .map(|viewer| PollFd::new(&viewer.stream, PollFlags::OUT))
                .chain(terminal.map(|terminal| PollFd::new(&terminal.pty, PollFlags::OUT)))
                .collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if fds.is_empty() || left.is_zero() {
                return;
            }
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: left.min(LOOK).subsec_nanos().into(),
            };
            // What cannot be waited for is tried again until the time is over.
            let _ = poll(&mut fds, Some(&timeout));
        }
    }
}

impl Viewer {
    /// What it typed.
    fn read<'a>(&mut self, bytes: &'a mut [u8]) -> &'a [u8] {
        if self.silent {
            return &[];
        }
        match self.stream.read(bytes) {
            Ok(0) => self.silent = true,
            Ok(len) => return bytes.get(..len).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.gone = true,
        }
        &[]
    }
}

/// Write from byte `at` on until all is written, or nothing more is taken.
fn show(
    shared: &Shared,
    at: &mut u64,
    mut write: impl FnMut(&[u8]) -> io::Result<usize>,
) -> io::Result<()> {
    loop {
        // A copy, so that no processor of the guest waits for a system call.
        let (from, bytes) = {
            let printed = shared.printed();
            let (from, bytes) = printed.kept.since(*at);
            (from, bytes.to_vec())
        };
        if bytes.is_empty() {
            *at = from;
            return Ok(());
        }
        match write(&bytes) {
            Ok(written) => *at = from + written as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                *at = from;
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
