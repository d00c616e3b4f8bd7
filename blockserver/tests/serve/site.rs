//! A server with disks on files in a directory of their own, and clients of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use blockserver::export::{Disk, ExportHandle, ExportOptions, LocalReply, LocalRequest};
use blockserver::nbd::CommandFlags;
use blockserver::nbd::blocking_client::BlockingClient;
use blockserver::nbd::uri::{Address, Endpoint};
use blockserver::server::{Server, ServerConfig};
use vdisk::disk::{OpenOptions, create_file, random_bits};

/// Numbers that look random and come again with the same seed.
pub(crate) struct Random(u64);

impl Random {
    /// Begin with `seed`, which is printed so that a failure can be run again.
    pub(crate) fn new(seed: u64) -> Self {
        println!("seed {seed:#x}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A server on a unix socket.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) server: Server,
    endpoint: Endpoint,
}

/// Run a promise on both kinds of ring.
pub(crate) fn on_both(promise: impl Fn(ServerConfig)) {
    for force_blocking in [false, true] {
        println!("force_blocking: {force_blocking}");
        promise(ServerConfig {
            workers: 3,
            force_blocking,
            ..ServerConfig::default()
        });
    }
}

impl Site {
    /// A server without exports.
    pub(crate) fn new(config: ServerConfig) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self::in_directory(config, dir)
    }

    pub(crate) fn in_directory(config: ServerConfig, dir: tempfile::TempDir) -> Self {
        let server = Server::start(config).expect("a server");
        let endpoint = Endpoint::Unix(dir.path().join("nbd.sock"));
        let endpoint = server.listen(&endpoint).expect("a free path");
        Self {
            dir,
            server,
            endpoint,
        }
    }

    /// A server with one raw disk of zeros, named "disk".
    pub(crate) fn with_raw_disk(config: ServerConfig, size: u64) -> (Self, ExportHandle) {
        let made = Self::new(config);
        let disk = made.raw("disk.raw", size);
        let export = made
            .server
            .add_export("disk", disk, ExportOptions::default());
        (made, export.expect("a free name"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A raw disk of zeros in a new file.
    pub(crate) fn raw(&self, name: &str, size: u64) -> Arc<Disk> {
        raw_disk(&self.path(name), size)
    }

    /// A VHDX disk in a new file.
    pub(crate) fn vhdx(&self, name: &str, size: u64) -> Arc<Disk> {
        let mut random = random_bits;
        let options = vdisk::create::CreateOptions::new(size, &mut random);
        create_file(&self.path(name), options).expect("a new image");
        Disk::open(&self.path(name), &OpenOptions::default()).expect("an image just made")
    }

    /// Where an export is.
    pub(crate) fn address(&self, export: &str) -> Address {
        Address {
            endpoint: self.endpoint.clone(),
            export: export.to_owned(),
        }
    }

    pub(crate) fn client(&self, export: &str) -> BlockingClient {
        BlockingClient::connect(&self.address(export)).expect("the server takes clients")
    }
}

pub(crate) fn raw_disk(path: &Path, size: u64) -> Arc<Disk> {
    let file = std::fs::File::create_new(path).expect("a new file");
    file.set_len(size).expect("room");
    Disk::open(path, &OpenOptions::default()).expect("a raw disk")
}

/// All bytes of an export, read by the server's own process.
pub(crate) fn read_locally(export: &ExportHandle) -> Vec<u8> {
    let mut all = Vec::new();
    while (all.len() as u64) < export.size() {
        let offset = all.len() as u64;
        let len = (export.size() - offset).min(1 << 20);
        match export.call(LocalRequest::Read { offset, len }) {
            Ok(LocalReply::Data(data)) => all.extend_from_slice(&data),
            other => panic!("a local read at {offset} gave {other:?}"),
        }
    }
    all
}

/// All bytes of an export, read by a client.
pub(crate) fn read_remotely(client: &mut BlockingClient) -> Vec<u8> {
    let mut all = vec![0; client.size() as usize];
    client.read(0, &mut all).expect("a disk that can be read");
    all
}

/// Clients that write all the time, each to its own part of the disk, remembering what it wrote.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(u64, Vec<u8>)>>,
}

impl Load {
    /// Start so many clients on an export whose bytes are all zero.
    pub(crate) fn start(site: &Site, export: &str, clients: u64, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let part = site.client(export).size() / clients;
        let threads = (0..clients).map(|number| {
            let mut client = site.client(export);
            let mut random = Random::new(seed + number);
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let base = number * part;
                let mut model = vec![0; part as usize];
                while !stop.load(Ordering::Relaxed) {
                    step(&mut client, &mut random, base, &mut model);
                }
                client.flush().expect("the last flush");
                (base, model)
            })
        });
        Self {
            threads: threads.collect(),
            stop,
        }
    }

    /// Stop the clients; the disk as they wrote it.
    pub(crate) fn stop(self, size: u64) -> Vec<u8> {
        self.stop.store(true, Ordering::Relaxed);
        let mut disk = vec![0; size as usize];
        for thread in self.threads {
            let (base, model) = thread.join().expect("no client saw an error");
            disk[base as usize..base as usize + model.len()].copy_from_slice(&model);
        }
        disk
    }
}

/// One random operation of a client, and its effect on the model.
fn step(client: &mut BlockingClient, random: &mut Random, base: u64, model: &mut [u8]) {
    let len = 1 + random.below(20_000).min(model.len() as u64 - 1);
    let offset = random.below(model.len() as u64 - len + 1);
    // Most of it in whole sectors, some of it not.
    let (offset, len) = match random.below(4) {
        0 => (offset, len),
        _ => (offset & !4095, (len & !4095).max(4096)),
    };
    let range = offset as usize..(offset + len) as usize;
    let at = base + offset;
    match random.below(10) {
        0 => client.flush().expect("a flush"),
        1 => {
            client
                .zeroes(at, len, CommandFlags::default())
                .expect("a write of zeroes");
            model[range].fill(0);
        }
        2 | 3 => {
            let mut found = vec![0; range.len()];
            client.read(at, &mut found).expect("a read");
            assert!(
                found == model[range],
                "{len} bytes at {at} are not what was written last"
            );
        }
        _ => {
            let data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            client
                .write(at, &data, random.below(8) == 0)
                .expect("a write");
            model[range].copy_from_slice(&data);
        }
    }
}
