//! What the server does with clients that are slow, silent, rude or gone.

use std::io::{Read as _, Write as _};
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use blockserver::nbd::blocking_client::{BlockingClient, ConnectOptions, PipelinedClient};
use blockserver::nbd::client::ClientRequest;
use blockserver::server::ServerConfig;

use super::site::{Load, Random, Site, on_both, read_locally, read_remotely};

/// What a client says that takes the default export by name and asks for nothing better.
fn attaching() -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\0");
    bytes
}

/// How many bytes the server says to that: its greeting, and the size and flags of the export.
const ATTACHED: usize = 18 + 10;

/// The head of a request at the beginning of the disk.
fn request(command: u16, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(0_u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend([0; 16]);
    bytes.extend(len.to_be_bytes());
    bytes
}

/// Say all of it and then that nothing more comes; what the server says until it hangs up.
fn said_to(site: &Site, words: &[u8]) -> Vec<u8> {
    let mut client = UnixStream::connect(site.path("nbd.sock")).expect("the server listens");
    client.write_all(words).expect("sent");
    client.shutdown(Shutdown::Write).expect("ended");
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("replies");
    all
}

#[test]
fn a_client_that_does_not_end_its_handshake_is_dropped() {
    on_both(|config| {
        let config = ServerConfig {
            handshake_limit: Duration::from_millis(50),
            ..config
        };
        let (site, _export) = Site::with_raw_disk(config, 1 << 20);
        let mut patient = site.client("disk");
        let mut idle = UnixStream::connect(site.path("nbd.sock")).expect("the server listens");
        let mut greeting = Vec::new();
        idle.read_to_end(&mut greeting).expect("the server closes");
        assert_eq!(greeting.len(), 18);
        // One that drips bytes gains no time by it: here the data of an option nobody knows.
        let mut dripping = UnixStream::connect(site.path("nbd.sock")).expect("the server listens");
        let option = [
            &b"IHAVEOPT"[..],
            &99_u32.to_be_bytes(),
            &60_000_u32.to_be_bytes(),
        ];
        dripping.write_all(&3_u32.to_be_bytes()).expect("sent");
        dripping.write_all(&option.concat()).expect("sent");
        let dropped = (0..60_000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            dripping.write_all(&[0]).is_err()
        });
        assert!(dropped, "sixty thousand bytes were waited for");
        patient
            .write(0, &[1], false)
            .expect("who is attached may take its time");
    });
}

#[test]
fn a_flood_of_questions_is_answered_at_the_pace_at_which_answers_are_taken() {
    on_both(|config| {
        let config = ServerConfig {
            workers: 1,
            ..config
        };
        let (site, _export) = Site::with_raw_disk(config, 1 << 20);
        // A worker that goes round and round never ends: who fails here must not wait for it.
        let site = ManuallyDrop::new(site);
        let flood = UnixStream::connect(site.path("nbd.sock")).expect("the server listens");
        flood
            .set_read_timeout(Some(Duration::from_mins(1)))
            .expect("set");
        let option = |number: u32| [&b"IHAVEOPT"[..], &number.to_be_bytes(), &[0; 4]].concat();
        let (list, abort) = (option(3), option(2));
        let mut questions = [&1_u32.to_be_bytes()[..], &list.repeat(20_000)].concat();
        questions.extend(abort);
        let mut sending = flood.try_clone().expect("a second handle");
        let sender = std::thread::spawn(move || sending.write_all(&questions));
        // Nobody has taken an answer yet; the same worker serves others.
        let mut polite = site.client("disk");
        polite
            .write(0, &[7; 512], false)
            .expect("another client is served");
        let mut answers = Vec::new();
        (&flood)
            .read_to_end(&mut answers)
            .expect("the server closes after the last question");
        sender
            .join()
            .expect("no panic")
            .expect("all questions were taken");
        let acknowledged = 20 + 20_000 * (20 + 4 + 4 + 20) + 18;
        assert!(
            answers.len() >= acknowledged,
            "{} bytes of answers",
            answers.len()
        );
        drop(ManuallyDrop::into_inner(site));
    });
}

#[test]
fn nonsense_of_one_client_does_not_disturb_the_others() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, 1 << 20);
        let load = Load::start(&site, "disk", 2, 0xbad);
        let mut random = Random::new(0xbad_bad);
        for _ in 0..30 {
            let mut rude = UnixStream::connect(site.path("nbd.sock")).expect("the server listens");
            let nonsense: Vec<u8> = (0..random.below(3000))
                .map(|_| random.next() as u8)
                .collect();
            // The server may have closed already; that is its right.
            let _ = rude.write_all(&nonsense);
        }
        let model = load.stop(1 << 20);
        assert!(read_remotely(&mut site.client("disk")) == model);
    });
}

#[test]
fn clients_that_vanish_with_requests_in_flight_leave_a_server_that_serves() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, 9 << 20);
        for round in 0..10u64 {
            let options = ConnectOptions::default();
            let mut client =
                PipelinedClient::connect(&site.address("disk"), &options).expect("a client");
            let data = vec![round as u8; 1 << 20];
            for at in 0..8 {
                client
                    .submit(&ClientRequest::write(at << 20, &data))
                    .expect("room");
                client
                    .submit(&ClientRequest::read(at << 20, 1 << 20))
                    .expect("room");
            }
        }
        let mut client = site.client("disk");
        client
            .write(8 << 20, &[42; 4096], true)
            .expect("the server serves");
        // Where those that vanished did not write: theirs may still arrive.
        assert!(read_remotely(&mut client)[8 << 20..][..4096] == [42; 4096]);
    });
}

#[test]
fn one_client_too_many_is_turned_away_and_the_next_one_is_not() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(
            ServerConfig {
                max_connections: 2,
                ..config
            },
            1 << 20,
        );
        let (_first, second) = (site.client("disk"), site.client("disk"));
        assert!(BlockingClient::connect(&site.address("disk")).is_err());
        drop(second);
        // The server learns of the goodbye when it reads it.
        let free = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            BlockingClient::connect(&site.address("disk")).is_ok()
        });
        assert!(free, "a place became free");
    });
}

#[test]
fn a_write_cut_off_in_its_payload_changes_nothing() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 1 << 20);
        let words = [attaching(), request(1, 4096), vec![0xee; 2000]].concat();
        let said = said_to(&site, &words);
        assert_eq!(said.len(), ATTACHED, "it is not answered");
        assert!(read_locally(&export).iter().all(|byte| *byte == 0));
    });
}

#[test]
fn a_client_that_only_stops_sending_still_gets_its_replies() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, 8 << 20);
        let words = [attaching(), request(0, 1 << 20).repeat(3)].concat();
        let said = said_to(&site, &words);
        assert_eq!(said.len(), ATTACHED + 3 * (16 + (1 << 20)));
    });
}
