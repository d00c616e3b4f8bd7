//! What clients still ask of a disk that has moved, on its way to the other site.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use super::ledger::{Ledger, Promise};
use super::load::{Area, Load, verify};
use super::pairing::{acquainted, receive_as, serve_as};
use super::process::Running;

/// A line on which somebody listens.
struct Line {
    at: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Line {
    /// One that leads where `to` will say.
    fn start(to: &Arc<OnceLock<String>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let line = Self {
            at: listener.local_addr().expect("it has one"),
            heard: Arc::default(),
            ends: Arc::default(),
        };
        let (heard, ends) = (Arc::clone(&line.heard), Arc::clone(&line.ends));
        let to = Arc::clone(to);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(to.wait()) else {
                    continue;
                };
                for (from, into) in [(&near, &far), (&far, &near)] {
                    let from = from.try_clone().expect("a handle");
                    let into = into.try_clone().expect("a handle");
                    ends.lock()
                        .unwrap()
                        .push(into.try_clone().expect("a handle"));
                    let heard = Arc::clone(&heard);
                    thread::spawn(move || carry(from, into, &heard));
                }
            }
        });
        line
    }

    /// Ends the connections that there are.
    fn cut(&self) {
        for end in self.ends.lock().unwrap().drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// How often the client chose an export so that all could read it, or asked for encryption.
    fn options(&self, number: u32) -> usize {
        let option = [&b"IHAVEOPT"[..], &number.to_be_bytes()].concat();
        let heard = self.heard.lock().unwrap();
        heard
            .windows(option.len())
            .filter(|at| *at == option)
            .count()
    }
}

fn carry(mut from: TcpStream, mut into: TcpStream, heard: &Mutex<Vec<u8>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        heard.lock().unwrap().extend_from_slice(&buffer[..count]);
        if into.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Both);
}

/// Moves a disk while it is written, with its clients passed on over `scheme`; how often they began there encrypted, and how
/// often not.
fn moved_over(scheme: &str) -> (usize, usize) {
    const GO: u32 = 7;
    const STARTTLS: u32 = 5;
    let mut sites = acquainted();
    let area = Area {
        seed: 5,
        disk: 1 << 30,
        regions: 4,
        length: 4 << 20,
        rate: 1000,
    };
    sites.source = Some(serve_as(&sites, "here"));
    let load = Load::start(&sites.at_source(), area, Ledger::default());
    load.goes_on(200);
    let to = Arc::default();
    let line = Line::start(&to);
    let serve = format!("{scheme}:127.0.0.1:0");
    let advertise = format!("{scheme}:{}", line.at);
    let words = [
        "receive",
        "--listen",
        "tls:127.0.0.1:0",
        "--into",
        "in",
        "--serve",
        &serve,
        "--serve",
        "unix:t",
        "--advertise",
        &advertise,
        "--identity",
        "there",
    ];
    let mut receive = Running::start(sites.here(), &words);
    let said = receive.says("receiving");
    let at = said["listen"].as_str().expect("an address");
    let serves = said["serve"][0].as_str().expect("an address");
    to.set(serves[4..].to_owned())
        .expect("it leads nowhere yet");
    sites
        .run(&["mirror", "start", "a.vhdx", "--to", at])
        .ends(0);
    sites.moved();
    load.goes_on(300);
    // What was answered and not flushed is done again over the next connection.
    line.cut();
    load.goes_on(300);
    let ledger = load.well();
    verify(&sites.at_target(), &ledger, Promise::Flushed);
    sites.source.take().expect("it runs").end();
    receive.end();
    (line.options(STARTTLS), line.options(GO))
}

#[test]
fn what_clients_ask_of_a_disk_that_has_moved_is_encrypted() {
    let (encrypted, open) = moved_over("tls");
    assert!(encrypted >= 2, "{encrypted} connections were encrypted");
    assert_eq!(open, 0);
}

#[test]
fn what_is_not_to_be_encrypted_can_be_read_on_the_way_also_afterwards() {
    let (encrypted, open) = moved_over("tcp");
    assert_eq!(encrypted, 0);
    assert!(open >= 2, "{open} connections");
}

#[test]
fn a_site_that_is_trusted_later_is_let_in_without_a_restart() {
    let mut sites = acquainted();
    sites.source = Some(serve_as(&sites, "stranger"));
    let (receive, at) = receive_as(&sites, "there", "tls:127.0.0.1:0");
    sites
        .run(&["mirror", "start", "a.vhdx", "--to", &at])
        .ends(0);
    sites.until("refused", |status| {
        status["trouble"]
            .as_str()
            .is_some_and(|text| text.contains("pair trust"))
    });
    let trust = ["pair", "trust", "stranger/cert.pem", "--as", "stranger"];
    sites
        .run(&[&trust[..], &["--identity", "there"]].concat())
        .ends(0);
    sites.moved();
    sites.source.take().expect("it runs").end();
    receive.end();
}

#[test]
fn clients_are_not_passed_on_unencrypted_where_the_move_is_encrypted_unless_that_is_asked_for() {
    let sites = acquainted();
    let receive = [
        "receive",
        "--listen",
        "tls:127.0.0.1:0",
        "--into",
        "in",
        "--identity",
        "there",
        "--serve",
        "tcp:127.0.0.1:0",
        "--advertise",
    ];
    let far = [&receive[..], &["tcp:192.0.2.1:10809"]].concat();
    let ran = sites.run(&far).ends(2);
    assert!(ran.stderr.contains("--plain"), "{}", ran.stderr);
    for words in [
        [&far[..], &["--plain"]].concat(),
        [&receive[..], &["tls:192.0.2.1:10809"]].concat(),
    ] {
        let mut receive = Running::start(sites.here(), &words);
        receive.says("receiving");
        receive.end();
    }
    // The same for those who are sent to a disk that comes home.
    let words = [
        "serve",
        "a.vhdx",
        "--listen",
        "tcp:0.0.0.0:0",
        "--identity",
        "here",
    ];
    let mut serve = Running::start(sites.here(), &words);
    serve.says("serving");
    let start = ["mirror", "start", "a.vhdx", "--to", "tls:192.0.2.1:9"];
    let back = ["--way-back", "tls:192.0.2.7:9"];
    let ran = sites.run(&[&start[..], &back].concat()).ends(2);
    assert!(ran.stderr.contains("tcp:192.0.2.7"), "{}", ran.stderr);
    assert!(ran.stderr.contains("--plain"), "{}", ran.stderr);
    serve.end();
}
