//! What a tap is promised.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use blockserver::export::{ExportHandle, LocalReply, LocalRequest};
use blockserver::nbd::CommandFlags;
use vdisk::tap::{Change, WriteTap};
use vdisk::units::GuestOffset;

use super::site::{Load, Random, Site, on_both, read_locally, read_remotely};

/// Bytes of a chunk of a copy.
const CHUNK: usize = 256 << 10;

/// Remembers everything it sees.
#[derive(Default)]
struct Recorder(Mutex<Vec<(GuestOffset, Change)>>);

impl WriteTap for Recorder {
    fn changed(&self, offset: GuestOffset, change: Change) {
        self.0.lock().expect("no poison").push((offset, change));
    }
}

impl Recorder {
    fn len(&self) -> usize {
        self.0.lock().expect("no poison").len()
    }

    /// Do to the part of a disk that begins at `base` what was seen from the record `from` on.
    fn replay_chunk(&self, from: usize, base: usize, chunk: &mut [u8]) {
        for (offset, change) in &self.0.lock().expect("no poison")[from..] {
            let (start, end) = (offset.0 as usize, offset.0 as usize + change.len() as usize);
            for at in start.max(base)..end.min(base + chunk.len()) {
                chunk[at - base] = match change {
                    Change::Data(data) => data[at - start],
                    Change::Zeroes(_) => 0,
                    Change::Unknown(_) => panic!("nothing fails here"),
                };
            }
        }
    }

    /// Do to `disk` what was seen from the record `from` on.
    fn replay(&self, from: usize, disk: &mut [u8]) {
        self.replay_chunk(from, 0, disk);
    }
}

fn attach(export: &ExportHandle, tap: &Arc<Recorder>) {
    let (sender, receiver) = mpsc::channel();
    export.attach_tap(Arc::clone(tap) as Arc<dyn WriteTap>, move || {
        sender.send(()).expect("waiting");
    });
    receiver.recv().expect("attached");
}

fn detach(export: &ExportHandle) {
    let (sender, receiver) = mpsc::channel();
    export.detach_tap(move || sender.send(()).expect("waiting"));
    receiver.recv().expect("detached");
}

/// Clients that all write to the same few sectors, until told to stop.
fn quarrel(site: &Site, seed: u64, rounds: u64) {
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let mut client = site.client("disk");
            std::thread::spawn(move || {
                let mut random = Random::new(seed + number);
                for _ in 0..rounds {
                    let offset = random.below(60_000);
                    let len = 1 + random.below(65_536 - offset).min(9000);
                    match random.below(8) {
                        0 => client
                            .zeroes(offset, len, CommandFlags::default())
                            .expect("zeroes"),
                        1 => client.trim(offset, len).expect("a trim"),
                        _ => {
                            let (offset, len) = match random.below(2) {
                                0 => (offset, len),
                                _ => (offset & !511, (len & !511).max(512)),
                            };
                            let data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
                            client.write(offset, &data, false).expect("a write");
                        }
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no client saw an error");
    }
}

#[test]
fn a_tap_sees_overlapping_writes_in_the_order_in_which_the_disk_took_them() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 65_536);
        let tap = Arc::new(Recorder::default());
        attach(&export, &tap);
        quarrel(&site, 0x7a9, 300);
        let disk = read_remotely(&mut site.client("disk"));
        let mut replayed = vec![0; disk.len()];
        tap.replay(0, &mut replayed);
        assert_eq!(tap.len(), 4 * 300, "each acknowledged change was seen once");
        assert!(disk == replayed, "the records give the same disk");
    });
}

#[test]
fn a_copy_made_after_attaching_and_the_records_give_the_whole_disk() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 8 << 20);
        let load = Load::start(&site, "disk", 4, 0xc0b1);
        std::thread::sleep(Duration::from_millis(100));
        let tap = Arc::new(Recorder::default());
        attach(&export, &tap);
        let mut copy: Vec<u8> = Vec::new();
        let mut seen = Vec::new();
        while copy.len() < 8 << 20 {
            let offset = copy.len() as u64;
            seen.push(tap.len());
            let read = LocalRequest::Read {
                offset,
                len: CHUNK as u64,
            };
            let Ok(LocalReply::Data(data)) = export.call(read) else {
                panic!("a local read at {offset} failed");
            };
            copy.extend_from_slice(&data);
        }
        let model = load.stop(8 << 20);
        // A chunk holds the records that came before its read began, so only later ones are due.
        for (number, (chunk, seen)) in copy.chunks_mut(CHUNK).zip(seen).enumerate() {
            tap.replay_chunk(seen, number * CHUNK, chunk);
        }
        assert!(copy == model, "copy and records together are the disk");
        let before = tap.len();
        detach(&export);
        site.client("disk")
            .write(0, &[1; 512], false)
            .expect("a write");
        assert_eq!(tap.len(), before, "a tap that is off sees nothing");
    });
}

#[test]
fn what_this_process_writes_itself_is_seen_too() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(config, 1 << 20);
        let tap = Arc::new(Recorder::default());
        attach(&export, &tap);
        let data = bytes::Bytes::from_static(b"from within");
        export
            .call(LocalRequest::Write { offset: 7, data })
            .expect("a write");
        export
            .call(LocalRequest::Zero { offset: 0, len: 10 })
            .expect("zeroes");
        let mut replayed = vec![0; 1 << 20];
        tap.replay(0, &mut replayed);
        assert!(replayed == read_locally(&export) && &replayed[10..18] == b"m within");
    });
}
