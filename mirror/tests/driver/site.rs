//! A site that receives disks in memory, with its records on real files.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use mirror::files::{RecordStore, sidecar_path};
use mirror::net::{DiskPort, TargetHost};
use mirror::wire::DiskDescription;
use tempfile::TempDir;
use vdisk::engine::Mark;

use crate::disk::{Front, MemoryDisk, Owners, refuse};

pub(crate) struct Site {
    name: &'static str,
    directory: TempDir,
    owners: Arc<Owners>,
    disks: Mutex<BTreeMap<String, Arc<MemoryDisk>>>,
    served: Mutex<BTreeMap<String, String>>,
    /// Whether serving fails.
    pub(crate) stuck: AtomicBool,
    pub(crate) created: AtomicU64,
    pub(crate) opened: AtomicU64,
}

impl Site {
    pub(crate) fn new(name: &'static str, owners: &Arc<Owners>) -> Arc<Self> {
        Arc::new(Self {
            name,
            directory: tempfile::tempdir().unwrap(),
            owners: Arc::clone(owners),
            disks: Mutex::default(),
            served: Mutex::default(),
            stuck: AtomicBool::new(false),
            created: AtomicU64::new(0),
            opened: AtomicU64::new(0),
        })
    }

    pub(crate) fn put(&self, name: &str, disk: Arc<MemoryDisk>) {
        self.disks.lock().unwrap().insert(name.to_owned(), disk);
    }

    pub(crate) fn disk(&self, name: &str) -> Arc<MemoryDisk> {
        Arc::clone(&self.disks.lock().unwrap()[name])
    }

    pub(crate) fn store(&self, name: &str) -> RecordStore {
        RecordStore::open(self.record_path(name))
    }

    /// The process that serves ends.
    pub(crate) fn stop_serving(&self) {
        self.served.lock().unwrap().clear();
        self.owners.rests(self.name);
    }
}

impl TargetHost for Site {
    fn disks(&self) -> io::Result<Vec<String>> {
        Ok(self.disks.lock().unwrap().keys().cloned().collect())
    }

    fn record_path(&self, name: &str) -> PathBuf {
        sidecar_path(&self.directory.path().join(name))
    }

    fn image_exists(&self, name: &str) -> bool {
        self.disks.lock().unwrap().contains_key(name)
    }

    fn create(&self, description: &DiskDescription) -> io::Result<Arc<dyn DiskPort>> {
        self.created.fetch_add(1, Ordering::Relaxed);
        let size = description.size as usize;
        let disk = MemoryDisk::new(self.name, size, Front::Closed, &self.owners);
        disk.set_mark(Some(Mark::Incomplete));
        self.put(&description.name, Arc::clone(&disk));
        Ok(disk)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskPort>> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let disks = self.disks.lock().unwrap();
        let disk = disks.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::<MemoryDisk>::clone(disk))
    }

    fn serve(&self, name: &str) -> io::Result<String> {
        if self.stuck.load(Ordering::Relaxed) {
            return Err(refuse("stuck"));
        }
        let disk = self.disk(name);
        assert_eq!(disk.mark(), None, "a marked image is served");
        disk.open_for_clients();
        let address = format!("nbd://{}/{name}", self.name);
        self.served
            .lock()
            .unwrap()
            .insert(name.to_owned(), address.clone());
        Ok(address)
    }

    fn address(&self, name: &str) -> Option<String> {
        Some(format!("nbd://{}/{name}", self.name))
    }

    fn let_go(&self, _name: &str) {}

    fn served(&self, name: &str) -> Option<String> {
        self.served.lock().unwrap().get(name).cloned()
    }
}
