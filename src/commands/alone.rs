//! A disk that nobody serves, opened by a command that changes what it is to this host.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;

use blockserver::nbd::uri::Endpoint;
use blockserver::server::{Server, ServerConfig};
use mirror::ErrorKind;
use mirror::net::{DiskPort, TargetHost as _};
use vdisk::engine::Mark;

use crate::failure::{Exit, Failure, Result};
use crate::site::Reachable;
use crate::site::target::Folder;

/// The file itself: its record lies beside it, not beside a link to it.
pub(super) fn found(disk: &Path) -> Result<PathBuf> {
    let found = std::fs::canonicalize(disk);
    found.map_err(|e| Failure::io(format!("{}: cannot be found", disk.display()), &e))
}

/// A disk that only this process has open.
pub(super) struct Found {
    pub(super) port: Arc<dyn DiskPort>,
    /// Where its ownership record lies.
    pub(super) record: PathBuf,
    /// Its name for people.
    pub(super) shown: String,
}

impl Found {
    /// Close the image cleanly with that mark in it.
    pub(super) fn park(&self, mark: Option<Mark>) -> Result<()> {
        let (tell, told) = channel();
        let done = move |parked| {
            let _ = tell.send(parked);
        };
        self.port.park(mark, Box::new(done));
        let parked = told.recv().unwrap_or_else(|e| Err(io::Error::other(e)));
        parked.map_err(|e| Failure::new(Exit::Failed, format!("{}: {e}", self.shown)))
    }
}

/// Do something with a disk that nobody serves.
pub(super) fn alone<T>(disk: &Path, act: impl FnOnce(&Found) -> Result<T>) -> Result<T> {
    let shown = disk.display().to_string();
    let name = disk.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Failure::usage(format!("{shown}: is no disk's name")))?;
    let config = ServerConfig {
        workers: 1,
        ..ServerConfig::default()
    };
    let server = Server::start(config);
    let server = Arc::new(server.map_err(|e| Failure::io("the server cannot be started", &e))?);
    let folder = disk
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    // Clients see nothing of it.
    let nowhere = Reachable(Endpoint::Unix(disk.to_owned()));
    let folder = Folder::new(folder.unwrap_or(Path::new(".")), &server, nowhere).hidden();
    let opened = folder.open(name);
    let done = match opened {
        Ok(port) => act(&Found {
            port,
            record: folder.record_path(name),
            shown,
        }),
        Err(e) => Err(Failure::new(Exit::Failed, format!("{shown}: {e}"))),
    };
    let closed = server.stop();
    folder.unlock();
    let done = done?;
    closed.map_err(|e| Failure::io("the disk could not be closed cleanly", &e))?;
    Ok(done)
}

/// What the mirror refused or could not do with `disk`.
pub(super) fn of_mirror(disk: &str, e: &mirror::Error) -> Failure {
    let exit = match e.kind() {
        ErrorKind::NotOwned | ErrorKind::Record => Exit::InUse,
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("{disk}: {e}"))
}
