//! Disks that are exports of another server, which may break every rule.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use blockserver::export::{Disk, Elsewhere, ExportHandle, ExportOptions};
use blockserver::nbd::CommandFlags;
use blockserver::nbd::blocking_client::BlockingClient;
use blockserver::nbd::uri::{Address, Endpoint};
use blockserver::nbd::wire::transmission;
use blockserver::server::ServerConfig;
use vdisk::tap::{Change, WriteTap};
use vdisk::units::GuestOffset;

use super::site::{Site, on_both};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const SIZE: usize = 1 << 20;

/// What it does about the next request that changes or reads something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trick {
    /// Do it, say nothing and go away.
    Vanish,
    /// Do half of it and say that it failed.
    Fail,
    /// Answer something that was not asked.
    WrongName,
    /// Send a part of the answer and go away.
    Short,
    /// Do nothing, say that it is being shut down, and go away.
    Leave,
}

struct State {
    disk: Vec<u8>,
    /// What it says its size is.
    size: u64,
    flags: u16,
    tricks: VecDeque<Trick>,
    /// What was asked: when, the command, the first byte of what is written.
    asked: Vec<(Instant, u16, u8)>,
}

/// A server on a unix socket that plays tricks. It knows simple replies only.
struct Tricky {
    state: Arc<Mutex<State>>,
    address: Address,
}

impl Tricky {
    fn start(site: &Site) -> Self {
        let path = site.path("tricky");
        let listener = UnixListener::bind(&path).expect("a free path");
        let state = Arc::new(Mutex::new(State {
            disk: vec![0; SIZE],
            size: SIZE as u64,
            flags: transmission::HAS_FLAGS | transmission::SEND_FLUSH,
            tricks: VecDeque::new(),
            asked: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(client, &shared));
            }
        });
        let address = Address {
            endpoint: Endpoint::Unix(path),
            export: String::new(),
        };
        Self { state, address }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    fn will(&self, trick: Trick) {
        self.lock().tricks.push_back(trick);
    }

    /// What was written, by first bytes.
    fn written(&self) -> Vec<u8> {
        let state = self.lock();
        let written = state
            .asked
            .iter()
            .filter(|(_, command, _)| *command == WRITE);
        written.map(|(_, _, first)| *first).collect()
    }
}

fn serve(mut client: UnixStream, state: &Mutex<State>) -> io::Result<()> {
    client.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let _flags: [u8; 4] = take(&mut client)?;
    loop {
        let _magic: [u8; 8] = take(&mut client)?;
        let option = u32::from_be_bytes(take(&mut client)?);
        let len = u32::from_be_bytes(take(&mut client)?);
        client.read_exact(&mut vec![0; len as usize])?;
        let mut reply = |kind: u32, payload: &[u8]| {
            let mut out = 0x3_e889_0455_65a9_u64.to_be_bytes().to_vec();
            out.extend(option.to_be_bytes());
            out.extend(kind.to_be_bytes());
            out.extend((payload.len() as u32).to_be_bytes());
            out.extend(payload);
            client.write_all(&out)
        };
        if option != 7 {
            reply(0x8000_0001, &[])?;
            continue;
        }
        let (size, flags) = {
            let state = state.lock().expect("no panic");
            (state.size, state.flags)
        };
        let mut info = vec![0, 0];
        info.extend(size.to_be_bytes());
        info.extend(flags.to_be_bytes());
        reply(3, &info)?;
        reply(1, &[])?;
        break;
    }
    while answer(&mut client, state)? {}
    Ok(())
}

fn take<const N: usize>(client: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Answer one request, in its way; whether it stays.
fn answer(client: &mut UnixStream, state: &Mutex<State>) -> io::Result<bool> {
    let head: [u8; 28] = take(client)?;
    let word = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().expect("8 bytes"));
    let command = u16::from_be_bytes([head[6], head[7]]);
    let len = u32::from_be_bytes(head[24..].try_into().expect("4 bytes")) as usize;
    let (mut cookie, offset) = (word(8), word(16) as usize);
    let mut data = vec![0; if command == WRITE { len } else { 0 }];
    client.read_exact(&mut data)?;
    if command == DISCONNECT {
        return Ok(false);
    }
    let mut state = state.lock().expect("no panic");
    let first = data.first().copied().unwrap_or_default();
    state.asked.push((Instant::now(), command, first));
    let trick = match command {
        FLUSH => None,
        _ => state.tricks.pop_front(),
    };
    let done = match trick {
        Some(Trick::Fail) => len / 2,
        Some(Trick::Leave) => 0,
        _ => len,
    };
    match command {
        WRITE => state.disk[offset..offset + done].copy_from_slice(&data[..done]),
        READ => data = state.disk[offset..offset + len].to_vec(),
        _ => {}
    }
    drop(state);
    let mut out = 0x6744_6698_u32.to_be_bytes().to_vec();
    let errno: u32 = match trick {
        Some(Trick::Fail) => 5,
        Some(Trick::Leave) => 108,
        _ => 0,
    };
    out.extend(errno.to_be_bytes());
    if trick == Some(Trick::WrongName) {
        cookie ^= 1 << 40;
    }
    out.extend(cookie.to_be_bytes());
    if command == READ && errno == 0 {
        out.extend(&data);
    }
    match trick {
        Some(Trick::Vanish) => return Ok(false),
        Some(Trick::Short) => out.truncate(out.len() / 2),
        _ => {}
    }
    client.write_all(&out)?;
    Ok(!matches!(trick, Some(Trick::Short | Trick::Leave)))
}

/// A server of ours with the other one's export as its disk.
fn in_front(config: ServerConfig) -> (Site, Tricky, ExportHandle) {
    let site = Site::new(config);
    let tricky = Tricky::start(&site);
    let found = Elsewhere::look(&tricky.address, false).expect("it can be a disk");
    let stands_for_it = File::create(site.path("disk.nbd")).expect("a file");
    let disk = Disk::elsewhere(found, stands_for_it, false);
    let export = site
        .server
        .add_export("disk", disk, ExportOptions::default());
    (site, tricky, export.expect("a free name"))
}

#[test]
fn a_write_without_an_answer_is_done_again_after_a_rest_and_before_what_is_newer() {
    on_both(|config| {
        let (site, tricky, _) = in_front(config);
        let since = Instant::now();
        tricky.will(Trick::Vanish);
        let mut client = site.client("disk");
        let older = thread::spawn(move || client.write(0, &[1; 4096], false));
        thread::sleep(Duration::from_millis(200));
        let mut client = site.client("disk");
        let newer = thread::spawn(move || client.write(2048, &[2; 4096], false));
        thread::sleep(Duration::from_millis(200));
        let beside = site.client("disk").write(65536, &[3; 512], false);
        older.join().expect("no panic").expect("it is done");
        newer.join().expect("no panic").expect("it is done");
        beside.expect("it is done");
        assert!(since.elapsed() >= Duration::from_secs(2), "no rest");
        let written = tricky.written();
        let place = |first: u8| written.iter().rposition(|one| *one == first);
        assert!(place(1) < place(2), "{written:?}");
        let older: Vec<_> = written.iter().filter(|one| **one == 1).collect();
        assert_eq!(older.len(), 2);
        let state = tricky.lock();
        assert!(state.disk[..2048].iter().all(|byte| *byte == 1));
        assert!(state.disk[2048..6144].iter().all(|byte| *byte == 2));
    });
}

#[test]
fn what_was_answered_and_not_flushed_is_written_again_to_a_server_that_lost_it() {
    let (site, tricky, _) = in_front(ServerConfig::default());
    let mut client = site.client("disk");
    client.write(0, &[1; 512], false).expect("a write");
    client.flush().expect("a flush");
    client.write(512, &[2; 512], false).expect("a write");
    tricky.lock().disk[512..1024].fill(0);
    tricky.will(Trick::Vanish);
    client.write(4096, &[3; 512], false).expect("a write");
    assert_eq!(tricky.written(), [1, 2, 3, 2, 3]);
    assert_eq!(tricky.lock().disk[512], 2);
}

#[test]
fn a_server_that_is_shut_down_while_a_change_is_done_again_is_asked_once_more_and_flushes_go_on() {
    let (site, tricky, _) = in_front(ServerConfig::default());
    let mut client = site.client("disk");
    client.write(512, &[2; 512], false).expect("a write");
    tricky.lock().disk[512..1024].fill(0);
    tricky.will(Trick::Vanish);
    tricky.will(Trick::Leave);
    client.write(4096, &[3; 512], false).expect("a write");
    assert_eq!(tricky.written(), [2, 3, 2, 2, 3]);
    client.flush().expect("a flush");
    assert_eq!(tricky.lock().disk[512], 2);
}

#[test]
fn another_export_at_the_same_address_gets_nothing() {
    let (site, tricky, _) = in_front(ServerConfig::default());
    let mut client = site.client("disk");
    client.write(0, &[1; 512], false).expect("a write");
    for change in [
        &(|state: &mut State| state.size += 512) as &dyn Fn(&mut State),
        &|state| state.flags |= transmission::READ_ONLY,
        &|state| state.flags = transmission::HAS_FLAGS,
    ] {
        let asked = {
            let mut state = tricky.lock();
            state.tricks.push_back(Trick::Vanish);
            change(&mut state);
            state.asked.len()
        };
        let writer = thread::spawn(move || {
            client.write(512, &[2; 512], false).expect("in the end");
            client
        });
        thread::sleep(Duration::from_millis(3500));
        let mut state = tricky.lock();
        assert_eq!(
            state.asked.len(),
            asked + 1,
            "only what came before the end"
        );
        assert!(!writer.is_finished());
        state.size = SIZE as u64;
        state.flags = transmission::HAS_FLAGS | transmission::SEND_FLUSH;
        drop(state);
        client = writer.join().expect("it is done");
    }
}

#[test]
fn answers_that_make_no_sense_end_the_connection_and_harm_nobody() {
    let (site, tricky, _) = in_front(ServerConfig::default());
    let mut client = site.client("disk");
    client.write(0, &[7; 8192], false).expect("a write");
    for trick in [Trick::WrongName, Trick::Short] {
        tricky.will(trick);
        let mut found = vec![0; 8192];
        client.read(0, &mut found).expect("in the end");
        assert!(found.iter().all(|byte| *byte == 7), "{trick:?}");
        tricky.will(trick);
        client.write(8192, &[8; 512], true).expect("in the end");
    }
    assert_eq!(tricky.lock().disk[8192], 8);
}

/// What was seen of changes.
#[derive(Default)]
struct Seen(Mutex<Vec<(u64, Change)>>);

impl WriteTap for Seen {
    fn changed(&self, offset: GuestOffset, change: Change) {
        self.0.lock().expect("no panic").push((offset.0, change));
    }
}

#[test]
fn a_tap_sees_what_was_written_elsewhere_and_that_a_failed_write_may_have_changed_something() {
    on_both(|config| {
        let (site, tricky, export) = in_front(config);
        let seen = Arc::new(Seen::default());
        let (say, heard) = std::sync::mpsc::channel();
        export.attach_tap(seen.clone(), move || say.send(()).expect("it is heard"));
        heard.recv().expect("it is attached");
        let mut client = site.client("disk");
        client.write(512, &[1; 1024], false).expect("a write");
        tricky.will(Trick::Fail);
        client.write(4096, &[2; 4096], false).expect_err("it fails");
        client
            .zeroes(0, 512, CommandFlags::default())
            .expect("zeroes");
        let seen = seen.0.lock().expect("no panic");
        let expected = [
            (512, Change::Data(vec![1; 1024].into())),
            (4096, Change::Unknown(4096)),
            (0, Change::Zeroes(512)),
        ];
        assert_eq!(*seen, expected);
    });
}

#[test]
fn a_trim_that_would_cost_as_much_as_a_write_does_nothing() {
    let (site, tricky, _) = in_front(ServerConfig::default());
    let mut client = site.client("disk");
    client.write(0, &[1; 4096], false).expect("a write");
    client.trim(0, 4096).expect("a trim");
    client
        .zeroes(0, 512, CommandFlags::default())
        .expect("zeroes");
    assert_eq!(tricky.written(), [1, 0]);
    let state = tricky.lock();
    assert_eq!((state.disk[0], state.disk[512]), (0, 1));
}

#[test]
fn a_server_ends_although_that_of_its_disk_is_gone() {
    let (site, tricky, _) = in_front(ServerConfig {
        drain_limit: Duration::from_millis(100),
        ..ServerConfig::default()
    });
    let mut client: BlockingClient = site.client("disk");
    client.write(0, &[1; 512], false).expect("a write");
    // It takes clients and never gets on with them.
    let state = Arc::clone(&tricky.state);
    let held = state.lock().expect("no panic");
    let since = Instant::now();
    let Site { server, dir, .. } = site;
    server
        .shutdown()
        .expect_err("nothing is known of its flush");
    assert!(since.elapsed() < Duration::from_secs(20));
    drop((held, dir));
}
