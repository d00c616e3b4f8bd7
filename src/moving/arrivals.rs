//! A machine that arrives: its disks at the places that its description names, its state beside that.
//!
//! Each is received as any disk is. When all of them belong to this host, the machine may run, and only then. Until it
//! does, the source is not told that it does. Must never make an image over one that no move brought.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blockserver::nbd::uri::Endpoint;
use blockserver::server::{Server, ServerConfig};
use mirror::files::sidecar_path;
use mirror::net::{DiskPort, TargetDriver, TargetHandle, TargetHost, TargetListener};
use mirror::wire::DiskDescription;
use vmm::description::Description;

use super::arrived::{self, Receiving};
use super::passport::Passport;
use super::{STATE, disk_name, disk_of, reached, volume};
use crate::commands::confinement;
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::site::Reachable;
use crate::site::target::Folder;

/// How often a signal is looked for.
const LOOK: Duration = Duration::from_millis(100);
/// What sources are told instead of an address of a disk.
const ADDRESS: &str = "machine";

/// Where a disk arrives.
struct Place {
    folder: Folder,
    /// The file's name.
    file: String,
}

/// The receiving side of a machine.
struct Arrivals {
    vm: Description,
    /// Where its state arrives, and its record lies.
    state: PathBuf,
    record: PathBuf,
    disks: BTreeMap<String, Place>,
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Default)]
struct Now {
    /// What belongs to this host.
    owned: BTreeSet<String>,
    /// No more disks are taken: those that are here are used.
    closed: bool,
    runs: bool,
    /// Nobody waits any more.
    over: bool,
}

/// Listens until it is dropped.
pub(crate) struct Reception {
    arrivals: Arc<Arrivals>,
    target: Option<TargetHandle>,
}

impl Reception {
    /// Answer at `listen` for the machine that the file `described` describes as `vm`.
    pub(crate) fn start(
        listen: TargetListener,
        described: &Path,
        vm: &Description,
    ) -> Result<Self> {
        let config = ServerConfig {
            before_work: Some(confinement::worker),
            ..ServerConfig::default()
        };
        let server = Server::start(config);
        let server = server.map_err(|e| Failure::io("the disks' workers cannot be started", &e))?;
        let server = Arc::new(server);
        let mut disks = BTreeMap::new();
        for disk in vm.disks.iter().filter(|disk| !disk.read_only) {
            disks.insert(disk_name(&disk.name), place(&disk.path, &server)?);
        }
        let arrivals = Arc::new(Arrivals {
            vm: vm.clone(),
            state: arrived::place(described),
            record: sidecar_path(described),
            disks,
            now: Mutex::default(),
            changed: Condvar::new(),
        });
        let target = TargetDriver::start_at(listen, arrivals.clone());
        let target = target.map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
        Ok(Self {
            arrivals,
            target: Some(target),
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        let address = self.target.as_ref().map(TargetHandle::site);
        address.unwrap_or_default()
    }

    /// Wait until all of the machine belongs to this host. Afterwards nobody here has its disks open.
    pub(crate) fn wait(&self) -> Result<()> {
        let arrivals = &self.arrivals;
        let mut now = arrivals.now();
        while now.owned.len() < arrivals.disks.len() + 1 {
            if interrupt::requested() {
                drop(now);
                self.close()?;
                return Err(Failure::interrupted(
                    "no machine has arrived; the same command goes on with what has",
                ));
            }
            let waited = arrivals.changed.wait_timeout(now, LOOK);
            now = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(now);
        reached("own");
        self.close()
    }

    /// Let go of the disks.
    fn close(&self) -> Result<()> {
        let arrivals = &self.arrivals;
        arrivals.now().closed = true;
        for place in arrivals.disks.values() {
            let closed = place.folder.close(&place.file);
            closed.map_err(|e| Failure::io(format!("{}: cannot be closed", place.file), &e))?;
        }
        Ok(())
    }

    /// The machine runs: sources hear of it.
    pub(crate) fn runs(&self) {
        reached("runs");
        self.arrivals.now().runs = true;
        self.arrivals.changed.notify_all();
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        self.arrivals.now().over = true;
        self.arrivals.changed.notify_all();
        if let Some(target) = self.target.take() {
            target.stop();
        }
    }
}

fn place(path: &Path, server: &Arc<Server>) -> Result<Place> {
    let nameless = || Failure::usage(format!("{}: is no file's name", path.display()));
    let file = path.file_name().and_then(|name| name.to_str());
    let file = file.ok_or_else(nameless)?.to_owned();
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    // Nobody is sent there.
    let reachable = Reachable(Endpoint::Unix(path.to_owned()));
    let folder = Folder::new(folder.unwrap_or(Path::new(".")), server, reachable).hidden();
    Ok(Place { folder, file })
}

impl Arrivals {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, name: &str) -> io::Result<&Place> {
        let unknown = || io::Error::other(format!("this machine has no {name}"));
        self.disks.get(name).ok_or_else(unknown)
    }

    fn open_still(&self) -> io::Result<()> {
        if self.now().closed {
            return Err(io::Error::other("the machine is here already"));
        }
        Ok(())
    }
}

impl TargetHost for Arrivals {
    fn offered(&self, offer: &[u8]) -> std::result::Result<(), String> {
        self.open_still().map_err(|error| error.to_string())?;
        Passport::parse(offer)?.fits(&self.vm)
    }

    fn disks(&self) -> io::Result<Vec<String>> {
        let names = self.disks.keys().cloned().chain([STATE.to_owned()]);
        Ok(names
            .filter(|name| self.record_path(name).exists())
            .collect())
    }

    fn record_path(&self, name: &str) -> PathBuf {
        match self.disks.get(name) {
            Some(place) => place.folder.record_path(&place.file),
            None => self.record.clone(),
        }
    }

    fn image_exists(&self, name: &str) -> bool {
        match self.disks.get(name) {
            Some(place) => place.folder.image_exists(&place.file),
            None => self.state.exists(),
        }
    }

    fn create(&self, description: &DiskDescription) -> io::Result<Arc<dyn DiskPort>> {
        self.open_still()?;
        if description.name == STATE {
            reached("create");
            if description.size != volume::size(self.vm.memory) {
                return Err(io::Error::other("the machine has another size of memory"));
            }
            let port = Receiving::create(&self.state, description.size)?;
            return Ok(port);
        }
        let place = self.place(&description.name)?;
        place.folder.create(&DiskDescription {
            name: place.file.clone(),
            ..description.clone()
        })
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskPort>> {
        self.open_still()?;
        if name == STATE {
            let port = Receiving::open(&self.state)?;
            return Ok(port);
        }
        let place = self.place(name)?;
        place.folder.open(&place.file)
    }

    /// It belongs to this host. The word that the machine runs waits until it does.
    fn serve(&self, name: &str) -> io::Result<String> {
        let known = name == STATE || disk_of(name).is_some_and(|_| self.disks.contains_key(name));
        if !known {
            return Err(io::Error::other(format!("this machine has no {name}")));
        }
        reached(if name == STATE {
            "own-state"
        } else {
            "own-disk"
        });
        let mut now = self.now();
        now.owned.insert(name.to_owned());
        self.changed.notify_all();
        if name == STATE {
            let waits = |now: &mut Now| !now.runs && !now.over;
            let waited = self.changed.wait_while(now, waits);
            now = waited.unwrap_or_else(PoisonError::into_inner);
            if !now.runs {
                return Err(io::Error::other("the machine does not run"));
            }
        }
        Ok(ADDRESS.to_owned())
    }

    fn let_go(&self, name: &str) {
        if let Some(place) = self.disks.get(name) {
            place.folder.let_go(&place.file);
        }
    }

    fn served(&self, name: &str) -> Option<String> {
        let now = self.now();
        let served = now.owned.contains(name) && (name != STATE || now.runs);
        served.then(|| ADDRESS.to_owned())
    }
}
