//! A link that can be cut: connections are carried on to another port, or not.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use mirror::wire::{Decoder, Message};

const OPEN: u8 = 0;
/// Nothing gets through, and nobody is told.
const SILENT: u8 = 1;
/// Connections are closed, new ones too.
const CLOSED: u8 = 2;

/// The link.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    state: Arc<AtomicU8>,
    /// Somebody greeted so that all could read it.
    greeted: Arc<AtomicBool>,
    /// It still waits for the message at which it ends.
    armed: Arc<AtomicBool>,
}

/// Where a link ends by itself: before that message.
type Until = fn(&Message) -> bool;

impl Relay {
    /// A link to `to`.
    pub(crate) fn start(to: String) -> Self {
        Self::start_until(to, |_| false)
    }

    /// The same; the first message of that kind does not get through, and nothing does from then on, until it is opened.
    pub(crate) fn start_until(to: String, until: Until) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it has one");
        let state = Arc::new(AtomicU8::new(OPEN));
        let link = Arc::clone(&state);
        let greeted: Arc<AtomicBool> = Arc::default();
        let heard = Arc::clone(&greeted);
        let armed = Arc::new(AtomicBool::new(true));
        let waits = Arc::clone(&armed);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if link.load(Ordering::Relaxed) == CLOSED {
                    continue;
                }
                let Ok(far) = TcpStream::connect(&to) else {
                    continue;
                };
                let ends = [
                    (near.try_clone(), far.try_clone()),
                    (far.try_clone(), near.try_clone()),
                ];
                for (from, into) in ends {
                    let (link, heard) = (Arc::clone(&link), Arc::clone(&heard));
                    let mut watch = Watch {
                        decoder: Decoder::default(),
                        until,
                        armed: Arc::clone(&waits),
                    };
                    let (from, into) = (from.expect("a handle"), into.expect("a handle"));
                    thread::spawn(move || carry(from, into, (&link, &heard), &mut watch));
                }
            }
        });
        Self {
            address,
            state,
            greeted,
            armed,
        }
    }

    /// Whether somebody greeted so that all could read it.
    pub(crate) fn was_greeted(&self) -> bool {
        self.greeted.load(Ordering::Relaxed)
    }

    /// Everything gets through from now on.
    pub(crate) fn open(&self) {
        self.armed.store(false, Ordering::Relaxed);
        self.state.store(OPEN, Ordering::Relaxed);
    }

    /// Nothing gets through for `span`; the ends are told or not.
    pub(crate) fn cut(&self, silent: bool, span: Duration) {
        let how = if silent { SILENT } else { CLOSED };
        self.state.store(how, Ordering::Relaxed);
        thread::sleep(span);
        self.state.store(OPEN, Ordering::Relaxed);
    }
}

/// Reads along.
struct Watch {
    decoder: Decoder,
    until: Until,
    armed: Arc<AtomicBool>,
}

impl Watch {
    /// Whether the link is to end before these bytes.
    fn ends(&mut self, bytes: &[u8]) -> bool {
        self.decoder.feed(bytes);
        let mut ends = false;
        while let Ok(Some(message)) = self.decoder.next() {
            ends |= (self.until)(&message);
        }
        ends && self.armed.swap(false, Ordering::Relaxed)
    }
}

fn carry(
    mut from: TcpStream,
    mut into: TcpStream,
    (link, greeted): (&AtomicU8, &AtomicBool),
    watch: &mut Watch,
) {
    let tick = Some(Duration::from_millis(10));
    from.set_read_timeout(tick).expect("it can be set");
    let mut buffer = vec![0; 64 << 10];
    loop {
        match link.load(Ordering::Relaxed) {
            CLOSED => break,
            SILENT => {
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            _ => {}
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => {
                // How the protocol's greetings begin.
                if buffer[..got].windows(4).any(|bytes| bytes == b"DFM1") {
                    greeted.store(true, Ordering::Relaxed);
                }
                if watch.ends(&buffer[..got]) {
                    link.store(SILENT, Ordering::Relaxed);
                    // What was cut off never arrives.
                    break;
                }
                if into.write_all(&buffer[..got]).is_err() {
                    break;
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = into.shutdown(Shutdown::Both);
}
