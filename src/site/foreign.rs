//! An export of a server that is not ours, as the target of a move: connections, and what is asked over them.
//!
//! Must never do more than carry requests and answers: what is sent when is said by [`mirror::session::foreign`].

use std::collections::BTreeMap;
use std::io;
use std::path::absolute;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use blockserver::nbd::blocking_client::{
    ClientError, ConnectOptions, Ender, PipelinedClient, ReceiveHalf, SendHalf,
};
use blockserver::nbd::client::{Answer, ClientRequest, Completion, RemoteExport, RemoteExtent};
use blockserver::nbd::uri::{Address, Endpoint};
use blockserver::nbd::wire::{allocation, transmission};
use blockserver::nbd::{Command, Errno};
use mirror::net::{ForeignHeard, ForeignLines, ForeignServer, Hear};
use mirror::session::OpId;
use mirror::session::foreign::{ForeignAbilities, ForeignAnswer, ForeignExport, ForeignOrder};

use crate::failure::{Failure, Result};

/// Connections at most, to a server that allows more than one.
const LINES: usize = 4;
/// Without a sign of life of the server's host for so long the connection is lost.
const SILENCE: Duration = Duration::from_secs(30);

/// Whether a target is written as an NBD server is, with any scheme.
pub(crate) fn is_written(to: &str) -> bool {
    to.starts_with("nbd") && to.contains("://")
}

/// The address of an export as everybody on this host finds it.
///
/// Refuses what would cross a network for everybody to read and change, unless that is asked for.
pub(crate) fn address(to: &str, plain: bool) -> Result<Address> {
    let mut address: Address = to.parse().map_err(|e| Failure::usage(format!("{e}")))?;
    match &mut address.endpoint {
        Endpoint::Unix(path) => {
            let at = absolute(&*path);
            *path = at.map_err(|e| Failure::io(format!("{}: is no path", path.display()), &e))?;
        }
        Endpoint::Tcp { host, .. } if !plain && !is_near(host) => {
            let what = format!(
                "{to}: all of the disk would cross the network for everybody to read and change"
            );
            let hint = "say nbds: where that server has TLS and is trusted (`diskferry pair trust`), bring it there \
                        through a tunnel, or say --plain if nobody else is on that network";
            return Err(Failure::usage(what).hint(hint));
        }
        Endpoint::Tcp { .. } | Endpoint::Tls { .. } => {}
    }
    Ok(address)
}

/// Whether a server that listens at `ours` is reached at `there`, as far as that shows.
pub(crate) fn is_one_of(there: &Endpoint, ours: &[Endpoint]) -> bool {
    let same = |one: &Endpoint| match (there, one) {
        (Endpoint::Unix(there), Endpoint::Unix(one)) => {
            let (there, one) = (there.canonicalize(), one.canonicalize());
            there.is_ok_and(|there| one.is_ok_and(|one| one == there))
        }
        (Endpoint::Unix(_), _) | (_, Endpoint::Unix(_)) => false,
        (there, one) => {
            let (host, port) = over_tcp(there);
            let (one, at) = over_tcp(one);
            port == at && (host == one || is_near(host))
        }
    };
    ours.iter().any(same)
}

/// Whether both addresses may lead to one export, as far as that shows: a server has one that goes without a name.
pub(crate) fn may_be_same(one: &Address, other: &Address) -> bool {
    let named = one.export == other.export || one.export.is_empty() || other.export.is_empty();
    // Neither is known to be of this host.
    let hosts = |a: &str, b: &str| a == b || is_near(a) == is_near(b) && is_near(a);
    let server = match (&one.endpoint, &other.endpoint) {
        (Endpoint::Unix(_), _) | (_, Endpoint::Unix(_)) => {
            is_one_of(&one.endpoint, std::slice::from_ref(&other.endpoint))
        }
        (one, other) => {
            let ((a, at), (b, port)) = (over_tcp(one), over_tcp(other));
            at == port && hosts(a, b)
        }
    };
    named && server
}

/// Where TCP leads, encrypted or not; nowhere for a unix socket.
fn over_tcp(endpoint: &Endpoint) -> (&str, u16) {
    match endpoint {
        Endpoint::Tcp { host, port } | Endpoint::Tls { host, port } => (host, *port),
        Endpoint::Unix(_) => ("", 0),
    }
}

fn is_near(host: &str) -> bool {
    let ip: Option<std::net::IpAddr> = host.parse().ok();
    host == "localhost" || ip.is_some_and(|ip| ip.is_loopback())
}

/// The export.
#[derive(Debug)]
pub(crate) struct NbdServer(pub(crate) Address);

impl ForeignServer for NbdServer {
    fn open(&self, hear: Hear) -> io::Result<(ForeignExport, Box<dyn ForeignLines>)> {
        let options = ConnectOptions {
            silence: Some(SILENCE),
            ..ConnectOptions::default()
        };
        let connect = || PipelinedClient::connect(&self.0, &options).map_err(io::Error::other);
        let first = connect()?;
        let export = export(first.remote());
        let many = first.remote().has(transmission::CAN_MULTI_CONN);
        let mut clients = vec![first];
        // A server may take fewer than it would need for all.
        clients.extend(
            (1..LINES)
                .take_while(|_| many)
                .map_while(|_| connect().ok()),
        );
        let gone = Arc::new(AtomicBool::new(false));
        let mut lines = Lines {
            all: Vec::new(),
            next: Mutex::new(0),
            gone: Arc::clone(&gone),
        };
        for client in clients {
            lines.all.push(line(client, &hear, &gone)?);
        }
        Ok((export, Box::new(lines)))
    }
}

fn export(remote: &RemoteExport) -> ForeignExport {
    ForeignExport {
        size: remote.size,
        min_block: remote.min_block,
        max_payload: remote.max_payload,
        can: ForeignAbilities {
            write: !remote.is_read_only(),
            flush: remote.has(transmission::SEND_FLUSH),
            zero: remote.has(transmission::SEND_WRITE_ZEROES),
            tell: remote.allocation.is_some(),
        },
    }
}

/// Connections that are used in turn: what was answered over one of them a flush over another one covers, or there is
/// only one.
///
/// Must never leave anything behind that is sent once they are dropped: what is asked over new ones would be undone.
struct Lines {
    all: Vec<Line>,
    next: Mutex<usize>,
    gone: Arc<AtomicBool>,
}

struct Line {
    orders: Sender<(OpId, ForeignOrder)>,
    asked: Asked,
    ender: Ender,
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        for line in &self.all {
            // What is noted may be sent at this moment; nothing is noted any more. With nothing asked it says goodbye.
            if !locked(&line.asked).is_empty() {
                line.ender.abandon();
            }
        }
    }
}

impl ForeignLines for Lines {
    fn ask(&self, op: OpId, order: ForeignOrder) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = next.wrapping_add(1);
        if let Some(line) = self.all.get(*next % self.all.len().max(1)) {
            // One that has ended was heard of.
            let _ = line.orders.send((op, order));
        }
    }
}

/// What was asked over one connection, by cookie: a look with its length.
type Asked = Arc<Mutex<BTreeMap<u64, (OpId, Option<u64>)>>>;

fn locked(asked: &Asked) -> MutexGuard<'_, BTreeMap<u64, (OpId, Option<u64>)>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two threads for one connection.
fn line(client: PipelinedClient, hear: &Hear, gone: &Arc<AtomicBool>) -> io::Result<Line> {
    let (orders, coming) = channel();
    let (send, receive) = client.split();
    let (ender, gone) = (send.ender(), Arc::clone(gone));
    let asked = Asked::default();
    let asked_of = Arc::clone(&asked);
    let (hear_sender, hear_receiver) = (Arc::clone(hear), Arc::clone(hear));
    let asked_too = Arc::clone(&asked);
    thread::Builder::new()
        .name("nbd-receive".into())
        .spawn(move || {
            let why = receive_all(receive, &asked_too, &hear_receiver);
            hear_receiver(ForeignHeard::Lost(why));
        })?;
    thread::Builder::new()
        .name("nbd-send".into())
        .spawn(move || {
            if let Err(e) = send_all(send, &coming, (&asked_of, &hear_sender, &gone)) {
                hear_sender(ForeignHeard::Lost(e.to_string()));
            }
        })?;
    Ok(Line {
        orders,
        asked,
        ender,
    })
}

/// Until nobody asks any more; the server is told goodbye then.
fn send_all(
    mut send: SendHalf,
    coming: &Receiver<(OpId, ForeignOrder)>,
    (asked, hear, gone): (&Asked, &Hear, &AtomicBool),
) -> std::result::Result<(), ClientError> {
    while let Ok(first) = coming.recv() {
        for (op, order) in std::iter::once(first).chain(coming.try_iter()) {
            let look = match &order {
                ForeignOrder::Look(_, len) => Some(*len),
                _ => None,
            };
            let mut noted = locked(asked);
            if gone.load(Ordering::SeqCst) {
                return Ok(());
            }
            let refused = match send.submit(&request(&order)) {
                // Nothing of it has left yet, so it cannot be answered before it is noted.
                Ok(cookie) => {
                    noted.insert(cookie, (op, look));
                    continue;
                }
                Err(e) => e.to_string(),
            };
            drop(noted);
            hear(ForeignHeard::Answered(op, Err(refused)));
        }
        send.send()?;
    }
    Ok(())
}

fn request(order: &ForeignOrder) -> ClientRequest<'_> {
    match order {
        ForeignOrder::Look(offset, len) => {
            ClientRequest::plain(Command::BlockStatus, *offset, *len as u32)
        }
        ForeignOrder::Zero(offset, len) => {
            ClientRequest::plain(Command::WriteZeroes, *offset, *len as u32)
        }
        ForeignOrder::Write(offset, data) => ClientRequest::write(*offset, data),
        ForeignOrder::Flush => ClientRequest::flush(),
    }
}

/// Until the connection ends: why.
fn receive_all(mut receive: ReceiveHalf, asked: &Asked, hear: &Hear) -> String {
    loop {
        let completion = match receive.wait() {
            Ok(Some(completion)) => completion,
            Ok(None) => return "the server closed the connection".to_owned(),
            Err(e) => return e.to_string(),
        };
        let Some((op, look)) = locked(asked).remove(&completion.cookie) else {
            continue;
        };
        let refused = completion.result.as_ref().err();
        if refused.is_some_and(|refusal| refusal.errno == Errno::Shutdown) {
            return "the server is shutting down".to_owned();
        }
        hear(ForeignHeard::Answered(op, answer(completion, look)));
    }
}

fn answer(completion: Completion, look: Option<u64>) -> std::result::Result<ForeignAnswer, String> {
    match (completion.result, look) {
        (Ok(Answer::Extents(extents)), Some(len)) if all_zero(&extents, len) => {
            Ok(ForeignAnswer::IsZero)
        }
        (Err(refusal), None) => Err(format!(
            "{:?} of {} bytes at {}: {:?} {}",
            completion.command, completion.len, completion.offset, refusal.errno, refusal.message
        )),
        // Also a look that failed: not to know is no reason not to go on.
        _ => Ok(ForeignAnswer::Done),
    }
}

/// Whether they say that `len` bytes read as zero.
fn all_zero(extents: &[RemoteExtent], len: u64) -> bool {
    let zero = extents
        .iter()
        .take_while(|extent| extent.flags & allocation::ZERO != 0);
    zero.map(|extent| u64::from(extent.len)).sum::<u64>() >= len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_wholly_known_to_be_zero_is_not_taken_for_it() {
        let extent = |len, zero| RemoteExtent {
            len,
            flags: if zero { allocation::ZERO } else { 0 },
        };
        assert!(all_zero(&[extent(4096, true), extent(8192, true)], 12288));
        assert!(!all_zero(&[extent(4096, true)], 8192));
        assert!(!all_zero(&[extent(4096, true), extent(4096, false)], 8192));
        assert!(!all_zero(&[extent(4096, false), extent(8192, true)], 8192));
    }

    #[test]
    fn an_export_of_another_host_is_not_taken_for_the_one_that_a_disk_is_at() {
        let at = |text: &str| text.parse::<Address>().unwrap();
        let disk = at("nbd://storage:10809/x");
        assert!(may_be_same(&disk, &at("nbd://storage:10809/x")));
        assert!(may_be_same(&disk, &at("nbd://storage:10809")));
        for other in ["localhost:10809/x", "storage:10810/x", "storage:10809/y"] {
            assert!(
                !may_be_same(&disk, &at(&format!("nbd://{other}"))),
                "{other}"
            );
        }
        let near = (at("nbd://127.0.0.1:10809/x"), at("nbd://localhost:10809/x"));
        assert!(may_be_same(&near.0, &near.1));
        // Encrypted or not, it is at the same place.
        let sealed = at("nbds://127.0.0.1:10809/x");
        assert!(may_be_same(&near.0, &sealed));
        assert!(is_one_of(
            &sealed.endpoint,
            std::slice::from_ref(&near.1.endpoint)
        ));
        assert!(!is_one_of(&sealed.endpoint, &[Endpoint::Unix("/s".into())]));
    }

    #[test]
    fn a_disk_crosses_a_network_in_the_open_only_when_that_is_asked_for() {
        assert!(address("nbd://10.0.0.2/disk", false).is_err());
        assert!(address("nbd://10.0.0.2/disk", true).is_ok());
        assert!(address("nbd://127.0.0.1:9999/disk", false).is_ok());
        assert!(address("nbds://10.0.0.2/disk", false).is_ok());
        assert!(address("nbds+unix:///disk?socket=here", true).is_err());
        let near = address("nbd+unix:///disk?socket=here", false).unwrap();
        assert!(matches!(near.endpoint, Endpoint::Unix(path) if path.is_absolute()));
        assert!(is_written("nbds://x/") && !is_written("tls:x:1") && !is_written("/nbd"));
    }
}
