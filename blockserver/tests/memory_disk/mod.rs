//! A disk in memory for the blocking server: what is not written is a hole.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use blockserver::blocking::{BlockingDisk, BlockingExport, BlockingServer, Limits};
use blockserver::nbd::ExportInfo;
use blockserver::nbd::uri::{Address, Endpoint};
use blockserver::socket::Listener;
use vdisk::engine::Extent;

/// The unit of allocation.
const BLOCK: u64 = 64 << 10;

#[derive(Default)]
struct Contents {
    data: Vec<u8>,
    blocks: BTreeSet<u64>,
    /// What every operation fails with, if it is to fail.
    failure: Option<vdisk::ErrorKind>,
}

impl Contents {
    fn fail(&self) -> vdisk::Result<()> {
        match self.failure {
            Some(kind) => Err(vdisk::Error::new(kind, "made to fail")),
            None => Ok(()),
        }
    }
}

/// A disk in memory.
pub(crate) struct MemoryDisk(Mutex<Contents>);

impl MemoryDisk {
    pub(crate) fn new(size: usize) -> Self {
        Self(Mutex::new(Contents {
            data: vec![0; size],
            blocks: BTreeSet::new(),
            failure: None,
        }))
    }

    /// Let every operation fail from now on, or succeed again.
    pub(crate) fn fail_with(&self, failure: Option<vdisk::ErrorKind>) {
        self.0.lock().expect("no panic").failure = failure;
    }

    pub(crate) fn contents(&self) -> Vec<u8> {
        self.0.lock().expect("no panic").data.clone()
    }
}

fn range(offset: u64, len: u64) -> std::ops::Range<usize> {
    offset as usize..(offset + len) as usize
}

impl BlockingDisk for MemoryDisk {
    fn size(&self) -> u64 {
        self.0.lock().expect("no panic").data.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> vdisk::Result<()> {
        let contents = self.0.lock().expect("no panic");
        contents.fail()?;
        buffer.copy_from_slice(&contents.data[range(offset, buffer.len() as u64)]);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> vdisk::Result<()> {
        let mut contents = self.0.lock().expect("no panic");
        contents.fail()?;
        contents.data[range(offset, data.len() as u64)].copy_from_slice(data);
        let last = (offset + data.len() as u64 - 1) / BLOCK;
        contents.blocks.extend(offset / BLOCK..=last);
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, keep: bool) -> vdisk::Result<()> {
        let mut contents = self.0.lock().expect("no panic");
        contents.fail()?;
        contents.data[range(offset, len)].fill(0);
        if keep {
            let last = (offset + len - 1) / BLOCK;
            contents.blocks.extend(offset / BLOCK..=last);
        } else {
            for block in offset.div_ceil(BLOCK)..(offset + len) / BLOCK {
                contents.blocks.remove(&block);
            }
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> vdisk::Result<()> {
        self.zero(offset, len, false)
    }

    fn flush(&self) -> vdisk::Result<()> {
        self.0.lock().expect("no panic").fail()
    }

    fn status(&self, offset: u64, len: u64) -> vdisk::Result<Vec<Extent>> {
        let contents = self.0.lock().expect("no panic");
        contents.fail()?;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < offset + len {
            let end = (at / BLOCK * BLOCK + BLOCK).min(offset + len);
            let allocated = contents.blocks.contains(&(at / BLOCK));
            extents.push(Extent {
                len: end - at,
                allocated,
                zero: !allocated,
            });
            at = end;
        }
        Ok(extents)
    }
}

/// A server of disks in memory on its own thread; stops when dropped.
pub(crate) struct Served {
    server: Arc<BlockingServer>,
    thread: Option<JoinHandle<()>>,
    pub(crate) endpoint: Endpoint,
}

impl Served {
    /// Serve `disks` on `endpoint` under their names; the names in `read_only` cannot be written.
    pub(crate) fn new(
        endpoint: &Endpoint,
        disks: &[(&str, &Arc<MemoryDisk>)],
        read_only: &[&str],
        limits: Limits,
    ) -> Self {
        let exports = disks
            .iter()
            .map(|(name, disk)| BlockingExport {
                name: (*name).to_owned(),
                info: ExportInfo {
                    id: 0,
                    size: 0,
                    read_only: read_only.contains(name),
                    min_block: 1,
                    preferred_block: 4096,
                    max_payload: 32 << 20,
                    can_multi_conn: true,
                    rotational: false,
                    description: format!("memory of {} bytes", disk.size()),
                },
                disk: Arc::clone(disk) as Arc<dyn BlockingDisk>,
            })
            .collect();
        let listener = Listener::bind(endpoint).expect("a free endpoint");
        let endpoint = listener.endpoint().expect("bound");
        let server = Arc::new(BlockingServer::new(exports, limits).expect("an eventfd"));
        let serving = Arc::clone(&server);
        let thread = std::thread::spawn(move || serving.serve(&listener).expect("served"));
        Self {
            server,
            thread: Some(thread),
            endpoint,
        }
    }

    pub(crate) fn address(&self, export: &str) -> Address {
        Address {
            endpoint: self.endpoint.clone(),
            export: export.to_owned(),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ended well");
        }
    }
}
