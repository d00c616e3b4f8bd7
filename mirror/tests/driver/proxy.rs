//! A TCP link that can be cut, and that can fall silent.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

struct Pair {
    ends: [TcpStream; 2],
    silent: Arc<AtomicBool>,
}

pub(crate) struct Proxy {
    address: SocketAddr,
    to: Mutex<SocketAddr>,
    pairs: Mutex<Vec<Pair>>,
    pub(crate) carried: AtomicU64,
}

impl Proxy {
    pub(crate) fn start(to: SocketAddr) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            to: Mutex::new(to),
            pairs: Mutex::default(),
            carried: AtomicU64::new(0),
        });
        let accepting = Arc::downgrade(&proxy);
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (Some(proxy), Ok(near)) = (accepting.upgrade(), near) else {
                    return;
                };
                proxy.join(near);
            }
        });
        proxy
    }

    pub(crate) fn address(&self) -> String {
        format!("tcp:{}", self.address)
    }

    /// New connections go there.
    pub(crate) fn lead_to(&self, to: SocketAddr) {
        *self.to.lock().unwrap() = to;
    }

    fn join(self: &Arc<Self>, near: TcpStream) {
        let to = *self.to.lock().unwrap();
        let Ok(far) = TcpStream::connect(to) else {
            return;
        };
        let silent = Arc::new(AtomicBool::new(false));
        for (from, into) in [(&near, &far), (&far, &near)] {
            let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
            let (silent, proxy) = (Arc::clone(&silent), Arc::clone(self));
            std::thread::spawn(move || proxy.carry(from, into, &silent));
        }
        let mut pairs = self.pairs.lock().unwrap();
        pairs.push(Pair {
            ends: [near, far],
            silent,
        });
    }

    fn carry(&self, mut from: TcpStream, mut into: TcpStream, silent: &AtomicBool) {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if silent.load(Ordering::Relaxed) {
                continue;
            }
            self.carried.fetch_add(count as u64, Ordering::Relaxed);
            if into.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        if !silent.load(Ordering::Relaxed) {
            let _ = into.shutdown(Shutdown::Write);
        }
    }

    /// End every connection; what is on the way is lost.
    pub(crate) fn cut(&self) {
        for pair in self.pairs.lock().unwrap().drain(..) {
            pair.silent.store(true, Ordering::Relaxed);
            for end in pair.ends {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }

    /// Every connection of now carries nothing any more, and nobody is told.
    pub(crate) fn fall_silent(&self) {
        for pair in self.pairs.lock().unwrap().iter() {
            pair.silent.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        // Wakes the thread that accepts, so that it ends.
        let _ = TcpStream::connect(self.address);
    }
}
