//! Moving a served disk to another path of the same host: both ends of a session in one process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockserver::export::ExportHandle;
use blockserver::nbd::uri::Endpoint;
use blockserver::server::Server;
use bytes::Bytes;
use mirror::files::{load_record, sidecar_path};
use mirror::net::{DiskPort, Done, ReadDone, ServedDisk, Signal, StatusDone};
use mirror::net::{TargetDriver, TargetHandle, TargetHost};
use mirror::record::State;
use mirror::wire::DiskDescription;
use vdisk::engine::Mark;
use vdisk::tap::WriteTap;

use super::Reachable;
use super::port::ExportPort;
use super::target::Folder;
use crate::failure::{Exit, Failure, Result};

/// The receiving end of a move to another path of this host.
pub(crate) struct Beside {
    target: TargetHandle,
    arriving: Arriving,
}

/// The disk at its new path.
#[derive(Clone)]
pub(crate) struct Arriving {
    folder: Arc<Folder>,
    name: String,
}

impl Beside {
    /// Receive, and only the disk at `to`. One that has arrived, or that waits for the source's last
    /// word, is taken up again.
    pub(crate) fn start(server: &Arc<Server>, to: &Path) -> Result<Self> {
        let name = to.file_name().and_then(|name| name.to_str());
        let (Some(parent), Some(name)) = (to.parent(), name) else {
            return Err(Failure::usage(format!("`{}` names no file", to.display())));
        };
        // Nobody is sent there: the clients stay where they are, and get the other disk.
        let reachable = Reachable(Endpoint::Unix(to.to_owned()));
        let arriving = Arriving {
            folder: Arc::new(Folder::new(parent, server, reachable).hidden()),
            name: name.to_owned(),
        };
        let host = Arc::new(OneDisk(arriving.clone()));
        let target = TargetDriver::start("127.0.0.1:0", host);
        let target = target.map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
        Ok(Self { target, arriving })
    }

    /// The receiving end's address for migration sessions.
    pub(crate) fn address(&self) -> String {
        self.target.site()
    }

    /// The disk that arrives.
    pub(crate) fn arriving(&self) -> &Arriving {
        &self.arriving
    }

    /// End as it stands.
    pub(crate) fn stop(self) {
        self.target.stop();
    }

    /// End and let go of the file, as it stands.
    pub(crate) fn abandon(self) -> io::Result<()> {
        self.target.stop();
        self.arriving.folder.close(&self.arriving.name)
    }
}

impl Arriving {
    /// Its file's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Give it to the clients of `export`, which is held, and let them go on.
    pub(crate) fn take_place(&self, export: &ExportHandle) {
        let Some(arrived) = self.folder.export(&self.name) else {
            // Held requests stay held: nothing is lost, and the operator is told.
            tracing::error!(disk = self.name, "the moved disk is not open here");
            return;
        };
        let swapped = export.clone();
        if let Err(error) = export.swap(arrived.disk(), move || swapped.release()) {
            tracing::error!(disk = self.name, %error, "the moved disk cannot take the old one's place");
        }
    }
}

/// Whether a move may go to that path: nothing is there, or what a move left that did not end.
pub(crate) fn is_free(to: &Path) -> Result<bool> {
    let record = load_record(&sidecar_path(to));
    let record = record.map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
    Ok(match record.map(|record| record.state) {
        Some(State::Emptying { .. } | State::Receiving { .. } | State::Following { .. }) => true,
        Some(_) => false,
        None => !to.exists(),
    })
}

/// A receiving site for one disk only; other disks in the folder are none of its business.
struct OneDisk(Arriving);

impl TargetHost for OneDisk {
    fn disks(&self) -> io::Result<Vec<String>> {
        let record = sidecar_path(&self.0.folder.path(&self.0.name));
        Ok(record
            .exists()
            .then(|| self.0.name.clone())
            .into_iter()
            .collect())
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.0.folder.record_path(name)
    }

    fn image_exists(&self, name: &str) -> bool {
        self.0.folder.image_exists(name)
    }

    fn create(&self, description: &DiskDescription) -> io::Result<Arc<dyn DiskPort>> {
        if description.name != self.0.name {
            return Err(io::Error::other(
                "only the disk that is being moved is received here",
            ));
        }
        self.0.folder.create(description)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskPort>> {
        self.0.folder.open(name)
    }

    fn serve(&self, name: &str) -> io::Result<String> {
        self.0.folder.serve(name)
    }

    fn let_go(&self, name: &str) {
        self.0.folder.let_go(name);
    }

    fn served(&self, name: &str) -> Option<String> {
        self.0.folder.served(name)
    }
}

/// The disk that moves: where another host's clients would be forwarded, the export gets the new disk.
pub(crate) struct MovingBeside {
    pub(crate) port: ExportPort,
    pub(crate) arriving: Arriving,
}

impl DiskPort for MovingBeside {
    fn size(&self) -> u64 {
        self.port.size()
    }

    fn read(&self, offset: u64, len: u32, done: ReadDone) {
        self.port.read(offset, len, done);
    }

    fn write(&self, offset: u64, data: Bytes, done: Done) {
        self.port.write(offset, data, done);
    }

    fn zero(&self, offset: u64, len: u64, done: Done) {
        self.port.zero(offset, len, done);
    }

    fn flush(&self, done: Done) {
        self.port.flush(done);
    }

    fn status(&self, offset: u64, len: u64, done: StatusDone) {
        self.port.status(offset, len, done);
    }

    fn park(&self, mark: Option<Mark>, done: Done) {
        self.port.park(mark, done);
    }
}

impl ServedDisk for MovingBeside {
    fn attach_tap(&self, tap: Arc<dyn WriteTap>, attached: Signal) {
        self.port.attach_tap(tap, attached);
    }

    fn detach_tap(&self, detached: Signal) {
        self.port.detach_tap(detached);
    }

    fn hold(&self, held: Signal) {
        self.port.hold(held);
    }

    fn release(&self) {
        self.port.release();
    }

    fn forward(&self, _address: &str) {
        self.arriving.take_place(&self.port.0);
    }
}
