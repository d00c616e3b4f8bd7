//! Moving a served disk to another path of the same host: both ends of a session in one process.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use mirror::net::{DiskPort, Done, ReadDone, ServedDisk, Signal, StatusDone, TargetHost};
use mirror::wire::DiskDescription;
use vdisk::engine::Mark;
use vdisk::tap::WriteTap;

use super::port::ExportPort;
use super::target::Folder;

/// A receiving site for one disk only; other disks in the folder are none of its business.
pub(crate) struct OneDisk {
    pub(crate) folder: Arc<Folder>,
    pub(crate) name: String,
}

impl TargetHost for OneDisk {
    fn disks(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.folder.record_path(name)
    }

    fn image_exists(&self, name: &str) -> bool {
        self.folder.image_exists(name)
    }

    fn create(&self, description: &DiskDescription) -> io::Result<Arc<dyn DiskPort>> {
        if description.name != self.name {
            return Err(io::Error::other(
                "only the disk that is being moved is received here",
            ));
        }
        self.folder.create(description)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskPort>> {
        self.folder.open(name)
    }

    fn serve(&self, name: &str) -> io::Result<String> {
        self.folder.serve(name)
    }

    fn served(&self, name: &str) -> Option<String> {
        self.folder.served(name)
    }
}

/// The disk that moves: where another host's clients would be forwarded, the export gets the new disk.
pub(crate) struct MovingBeside {
    pub(crate) port: ExportPort,
    pub(crate) folder: Arc<Folder>,
    pub(crate) name: String,
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
        let Some(arrived) = self.folder.export(&self.name) else {
            // Held requests stay held: nothing is lost, and the operator is told.
            tracing::error!(disk = self.name, "the moved disk is not open here");
            return;
        };
        let export = self.port.0.clone();
        let swapped = export.clone();
        if let Err(error) = export.swap(arrived.disk(), move || swapped.release()) {
            tracing::error!(disk = self.name, %error, "the moved disk cannot take the old one's place");
        }
    }
}
