//! A raw disk behind a virtio-blk, which a machine after the other has.

use blockserver::export::{Disk, ExportHandle, ExportOptions};
use blockserver::server::{Server, ServerConfig};
use tempfile::NamedTempFile;
use vdisk::disk::OpenOptions;
use vmm::virtio::VirtioDevice;
use vmm::virtio::block::Block;

/// A disk that is served as long as this is there.
pub(crate) struct Served {
    export: ExportHandle,
    _server: Server,
    _file: NamedTempFile,
}

impl Served {
    /// An empty disk of so many bytes, by its name.
    pub(crate) fn new(name: &str, bytes: u64) -> Self {
        Self::with(name, bytes, false)
    }

    /// The same, to be read only if asked so.
    pub(crate) fn with(name: &str, bytes: u64, read_only: bool) -> Self {
        let file = tempfile::Builder::new().suffix(".raw").tempfile();
        let file = file.expect("a file");
        file.as_file().set_len(bytes).expect("room");
        let server = Server::start(ServerConfig {
            workers: 2,
            ..ServerConfig::default()
        });
        let server = server.expect("workers");
        let opening = OpenOptions {
            read_only,
            ..OpenOptions::default()
        };
        let disk = Disk::open(file.path(), &opening).expect("a raw disk");
        let options = ExportOptions {
            read_only,
            ..ExportOptions::default()
        };
        let export = server.add_export(name, disk, options);
        Self {
            export: export.expect("a name that is free"),
            _server: server,
            _file: file,
        }
    }

    /// It as a device with so many queues.
    pub(crate) fn device(&self, queues: u8) -> Box<dyn VirtioDevice> {
        Box::new(Block::new(self.export.clone(), queues))
    }
}
