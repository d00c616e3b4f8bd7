//! The disks that a site receives.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use blockserver::export::{ExportHandle, ExportOptions};
use blockserver::server::Server;
use mirror::files::{load_record, sidecar_path};
use mirror::net::{DiskPort, TargetHost, Template};
use mirror::record::State;
use mirror::session::Admission;
use mirror::wire::{DiskDescription, DiskFormat, WayHome};
use vdisk::chain::ParentSearch;
use vdisk::create::CreateOptions;
use vdisk::disk::{ImageFormat, create_file, random_bits};
use vdisk::engine::Mark;
use vdisk::storage::{FileStorage, Storage as _};

use super::Reachable;
use super::disk::{Opened, Standing, open};
use super::port::ExportPort;
use super::source::Site;
use super::taking::{Quota, Taking};
use crate::commands::image;
use crate::control::place;
use crate::control::service::Sockets;
use crate::failure::{Exit, Failure};

/// A folder into which disks are received, and the server that has them.
pub(crate) struct Folder {
    root: PathBuf,
    server: Arc<Server>,
    reachable: Reachable,
    /// Whether a disk that is received appears to clients of the server once it is owned here.
    listed: bool,
    /// Who decides about disks that are offered.
    arbiter: Option<String>,
    taking: Taking,
    quota: Quota,
    templates: Vec<Arc<dyn Template>>,
    /// Who has the disks that are owned here, if they can be controlled.
    owned: Option<Owned>,
    /// Whether disks may cross the network unencrypted.
    plain: bool,
    disks: Mutex<BTreeMap<String, Received>>,
}

struct Received {
    opened: Arc<Opened>,
    export: ExportHandle,
    served: bool,
    /// A session has begun to bring it since this process has it open: if it is served next, it was granted just then.
    brought: bool,
}

/// The disks that are owned here, and the sockets through which they are controlled.
pub(crate) struct Owned {
    pub(crate) site: Arc<Site>,
    pub(crate) sockets: Weak<Sockets>,
}

impl Owned {
    /// Be found by the disk's file. Who cannot be is still reached at a socket that was named.
    fn listen_for(&self, path: &Path) {
        let listen = || {
            let Some(sockets) = self.sockets.upgrade() else {
                return Ok(());
            };
            let socket = place::socket_of(path)?;
            if sockets.has(&socket) {
                return Ok(());
            }
            sockets.listen(socket)
        };
        if let Err(failure) = listen() {
            tracing::warn!("{}: cannot be controlled: {}", path.display(), failure.what);
        }
    }

    fn close(&self, export: &str) -> io::Result<()> {
        let socket = self.site.path_of(export);
        let socket = socket.and_then(|path| place::socket_of(&path).ok());
        if let (Some(socket), Some(sockets)) = (socket, self.sockets.upgrade()) {
            sockets.forget(&socket);
        }
        self.site.close(export)
    }
}

impl Folder {
    /// Receive into `folder`; clients elsewhere reach what `server` serves at `reachable`.
    pub(crate) fn new(folder: &Path, server: &Arc<Server>, reachable: Reachable) -> Self {
        Self {
            root: folder.to_owned(),
            server: Arc::clone(server),
            reachable,
            listed: true,
            arbiter: None,
            taking: Taking::default(),
            quota: Quota::default(),
            templates: Vec::new(),
            owned: None,
            plain: false,
            disks: Mutex::default(),
        }
    }

    /// The same; what is owned here can be controlled from then on.
    pub(crate) fn controlled(mut self, owned: Owned, plain: bool) -> Self {
        self.owned = Some(owned);
        self.plain = plain;
        self
    }

    /// Go on with the disks that were handed on from here, for clients that still come to this host.
    pub(crate) fn forward(&self) -> io::Result<()> {
        for name in self.disks()? {
            if let Err(failure) = self.forward_one(&name) {
                tracing::error!("{name} is not forwarded: {}", failure.what);
            }
        }
        Ok(())
    }

    fn forward_one(&self, name: &str) -> Result<(), Failure> {
        let Some(owned) = &self.owned else {
            return Ok(());
        };
        let record = load_record(&self.record_path(name));
        let record = record.map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
        let state = record.map(|record| record.state);
        let gone = matches!(state, Some(State::Released { .. } | State::Offered { .. }));
        let way = super::way_back::kept_of(&self.path(name));
        if !gone && way.is_none() {
            return Ok(());
        }
        let opened = open(&self.path(name), None, false, &ParentSearch::default())?;
        let path = opened.path.clone();
        if let (Some(way), Some(_)) = (&way, opened.away(way.as_ref())) {
            let export = self.held_for(name, &opened)?;
            owned.site.adopt_away(opened, export, way);
            owned.listen_for(&path);
            return Ok(());
        }
        let standing = gone.then(|| opened.standing(false)).transpose()?;
        let Some(Standing::HandedOver(record)) = standing else {
            // It is this host's, or comes to it as any other, and is taken up as such.
            opened.unlock();
            return Ok(());
        };
        let export = self.held_for(name, &opened)?;
        owned.site.adopt_handed_on(opened, &record, export)?;
        owned.listen_for(&path);
        Ok(())
    }

    fn held_for(&self, name: &str, opened: &Opened) -> Result<ExportHandle, Failure> {
        let held = self.held(name, opened);
        held.map_err(|e| Failure::io(format!("{name}: cannot be served"), &e))
    }

    /// An export of the disk that lets nobody go on.
    fn held(&self, name: &str, opened: &Opened) -> io::Result<ExportHandle> {
        let options = ExportOptions {
            description: opened.path.display().to_string(),
            listed: self.listed,
            ..ExportOptions::default()
        };
        let disk = Arc::clone(&opened.disk);
        let export_name = self.export_name(name);
        self.server
            .add_held_export(&export_name, disk, options, None)
    }

    /// The same, for a disk that takes the place of another of this process: clients do not see it
    /// under a name of its own.
    pub(crate) fn hidden(mut self) -> Self {
        self.listed = false;
        self
    }

    /// The same, for disks that may be offered, about which that arbiter decides.
    pub(crate) fn decided_by(mut self, arbiter: Option<String>) -> Self {
        self.arbiter = arbiter;
        self
    }

    /// The same, for a site that does not take everything.
    pub(crate) fn taking(mut self, taking: Taking) -> Self {
        self.quota = Quota::new(taking.quota);
        self.taking = taking;
        self
    }

    /// The same; blocks that one of these has at the same place need not be sent.
    pub(crate) fn knowing(mut self, templates: Vec<Arc<dyn Template>>) -> Self {
        self.templates = templates;
        self
    }

    /// The disk of that name, as it is open here.
    pub(crate) fn export(&self, name: &str) -> Option<ExportHandle> {
        self.lock()
            .get(name)
            .map(|received| received.export.clone())
    }

    /// Lets others have the files; the server must have been stopped.
    pub(crate) fn unlock(&self) {
        self.lock()
            .values()
            .for_each(|received| received.opened.unlock());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Received>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the disk of that name lies.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn export_name(&self, name: &str) -> String {
        let stem = Path::new(name)
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or(name);
        if self.listed {
            stem.to_owned()
        } else {
            format!("{stem} (arriving)")
        }
    }

    /// Close what is open under that name.
    pub(crate) fn close(&self, name: &str) -> io::Result<()> {
        if let Some(owned) = &self.owned {
            owned.close(&self.export_name(name))?;
        }
        let Some(received) = self.lock().remove(name) else {
            return Ok(());
        };
        let closed = self.server.remove_export(&received.export);
        received.opened.unlock();
        closed
    }

    fn open_and_hold(&self, name: &str) -> io::Result<Arc<dyn DiskPort>> {
        if let Some(owned) = &self.owned
            && let Some(port) = owned.site.returning(&self.export_name(name))
        {
            return Ok(port);
        }
        self.close(name)?;
        let opened = open(&self.path(name), None, false, &ParentSearch::default())
            .map_err(|failure| plain(&failure))?;
        let export = self.held(name, &opened)?;
        let port = Arc::new(ExportPort(export.clone()));
        self.lock().insert(
            name.to_owned(),
            Received {
                opened: Arc::new(opened),
                export,
                served: false,
                brought: false,
            },
        );
        Ok(port)
    }
}

fn plain(failure: &Failure) -> io::Error {
    let kind = match failure.exit {
        Exit::Corrupt | Exit::Unsupported => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, failure.what.clone())
}

/// Nobody else has the image at `path`, if there is one, while what is returned lives.
fn nobody_has(path: &Path) -> io::Result<Option<FileStorage>> {
    if !path.exists() {
        return Ok(None);
    }
    let held = image::patiently(|| FileStorage::open(path, true));
    held.map(Some).map_err(|failure| plain(&failure))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn create_image(path: &Path, description: &DiskDescription) -> io::Result<()> {
    // After a restart only the name tells what it is.
    let by_name = ImageFormat::of_path(path);
    if (by_name == ImageFormat::Vhdx) != (description.format == DiskFormat::Vhdx) {
        let what = "the disk's name says another format than it has; a VHDX, and nothing else, ends with .vhdx";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let mut random = random_bits;
    let made = match description.format {
        DiskFormat::Vhdx => create_file(
            path,
            CreateOptions {
                block_size: Some(description.block_size),
                logical_sector: description.logical_sector,
                physical_sector: description.physical_sector,
                mark: Some(Mark::Incomplete),
                ..CreateOptions::new(description.size, &mut random)
            },
        ),
        DiskFormat::Raw => FileStorage::create(path).and_then(|mut storage| {
            let sized = storage
                .set_len(description.size)
                .and_then(|()| storage.flush());
            let sized = sized.and_then(|()| storage.sync_directory());
            sized.map_err(|error| vdisk::Error::io("cannot be given its size", error))
        }),
    };
    made.map_err(|error| io::Error::other(error.to_string()))
}

impl TargetHost for Folder {
    fn arbiter(&self) -> Option<String> {
        self.arbiter.clone()
    }

    fn admission(&self, name: &str) -> Admission {
        self.taking.admission(name)
    }

    fn templates(&self) -> &[Arc<dyn Template>] {
        &self.templates
    }

    fn make_room(&self, bytes: u64) -> io::Result<()> {
        self.quota.make_room(&self.root, bytes)
    }

    fn way_back(&self, name: &str, way_back: Option<WayHome>) {
        if self.owned.is_some() {
            if let Some(received) = self.lock().get_mut(name) {
                received.brought = true;
            }
            super::way_back::told_of(&self.path(name), way_back, self.plain);
        }
    }

    fn disks(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let has_record = sidecar_path(&self.path(name)).exists();
            // One that is waited for elsewhere is not taken up here as well.
            let awaited = (self.owned.as_ref())
                .is_some_and(|owned| owned.site.awaits(&self.export_name(name)));
            if has_record && !awaited {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn record_path(&self, name: &str) -> PathBuf {
        sidecar_path(&self.path(name))
    }

    fn image_exists(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    fn create(&self, description: &DiskDescription) -> io::Result<Arc<dyn DiskPort>> {
        self.close(&description.name)?;
        let path = self.path(&description.name);
        // It may be served by another process, whatever is known of it here.
        let _held = nobody_has(&path)?;
        remove_if_there(&path)?;
        create_image(&path, description)?;
        self.open_and_hold(&description.name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskPort>> {
        self.open_and_hold(name)
    }

    fn serve(&self, name: &str) -> io::Result<String> {
        if let Some(owned) = &self.owned
            && owned.site.comes_home(&self.export_name(name))?
        {
            return Ok(self.reachable.address(&self.export_name(name)));
        }
        let mut disks = self.lock();
        let Some(owned) = &self.owned else {
            let received = disks.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
            received.export.release();
            received.served = true;
            return Ok(self.reachable.address(received.export.name()));
        };
        let mut received = disks.remove(name).ok_or(io::ErrorKind::NotFound)?;
        drop(disks);
        let port = ExportPort(received.export.clone());
        // Nobody else has it yet.
        let session = Arc::get_mut(&mut received.opened)
            .and_then(|opened| super::kept::resume(port, opened, (None, owned.site.groups())));
        let path = received.opened.path.clone();
        let export = received.export.clone();
        owned.site.adopt(
            received.opened,
            received.export,
            (session, received.brought),
        );
        owned.listen_for(&path);
        export.release();
        Ok(self.reachable.address(export.name()))
    }

    fn let_go(&self, name: &str) {
        let export = self.export_name(name);
        let kept = |owned: &Owned| owned.site.returning(&export).is_some();
        // One that has left is still there for its clients.
        if self.served(name).is_some() || self.owned.as_ref().is_some_and(kept) {
            return;
        }
        if let Err(error) = self.close(name) {
            tracing::warn!("{name} could not be closed cleanly: {error}");
        }
    }

    fn address(&self, name: &str) -> Option<String> {
        let export = self.export_name(name);
        // Who comes before the disk does would be sent back to where it is, in a circle.
        let elsewhere = |owned: &Owned| owned.site.has(&export) && !owned.site.serves(&export);
        if self.owned.as_ref().is_some_and(elsewhere) {
            return None;
        }
        Some(self.reachable.address(&self.export_name(name)))
    }

    fn served(&self, name: &str) -> Option<String> {
        let export = self.export_name(name);
        if let Some(owned) = &self.owned {
            return owned
                .site
                .serves(&export)
                .then(|| self.reachable.address(&export));
        }
        let disks = self.lock();
        let received = disks.get(name).filter(|received| received.served)?;
        Some(self.reachable.address(received.export.name()))
    }
}
