//! A line to a server that fails now and then: it answers 500 or 503 itself, or cuts a connection in the middle of
//! what is sent or answered.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

/// What each connection does, one after another: of every seven, three fail.
const WAYS: [Way; 7] = [
    Way::Through,
    Way::Answers("503 Service Unavailable"),
    Way::CutAfter(300 << 10),
    Way::Through,
    Way::Answers("500 Internal Server Error"),
    Way::Through,
    Way::Through,
];
/// Bytes one way after which a connection that works ends all the same, so that there are many: a part of an upload
/// has to fit.
const MOST: u64 = 9 << 20;

#[derive(Clone, Copy)]
enum Way {
    /// Everything goes through.
    Through,
    /// A server that cannot.
    Answers(&'static str),
    /// Cut after so many bytes one way.
    CutAfter(u64),
}

/// A line that fails now and then, until it is dropped.
pub struct Line {
    address: SocketAddr,
    failures: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Line {
    /// A line to the server at `to`.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub fn start(to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let failures = Arc::new(AtomicU32::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (counted, stopped) = (Arc::clone(&failures), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            for way in WAYS.iter().cycle() {
                let Ok((client, _)) = listener.accept() else {
                    return;
                };
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                if !matches!(way, Way::Through) {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                let way = *way;
                thread::spawn(move || carry(&client, to, way));
            }
        });
        Ok(Self {
            address,
            failures,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has failed.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the one that waits for connections.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn carry(client: &TcpStream, to: SocketAddr, way: Way) {
    let most = match way {
        Way::Answers(status) => return answer(client, status),
        Way::Through => MOST,
        Way::CutAfter(bytes) => bytes,
    };
    let Ok(server) = TcpStream::connect(to) else {
        return;
    };
    thread::scope(|scope| {
        scope.spawn(|| pump(client, &server, most));
        pump(&server, client, most);
    });
}

/// Carries bytes one way; with the last of them the whole connection ends.
fn pump(mut from: &TcpStream, mut to: &TcpStream, most: u64) {
    // Its end, and how it ended, is all there is to it.
    let _ = io::copy(&mut (&mut from).take(most), &mut to);
    for end in [from, to] {
        let _ = end.shutdown(Shutdown::Both);
    }
}

/// Answers as a server that cannot, once the head of a request came.
fn answer(mut client: &TcpStream, status: &str) {
    let mut head = [0; 4096];
    if client.read(&mut head).is_err() {
        return;
    }
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    // The client may be gone.
    let _ = client.write_all(text.as_bytes());
    let _ = client.shutdown(Shutdown::Write);
    let _ = io::copy(&mut (&mut client).take(MOST), &mut io::sink());
}
