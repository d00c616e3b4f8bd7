//! `diskferry receive --promote-at-last-epoch`: a disk that followed a lost one is this host's own.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use blockserver::nbd::uri::Endpoint;
use blockserver::server::{Server, ServerConfig};
use mirror::ErrorKind;
use mirror::files::{load_record, sidecar_path};
use mirror::net::TargetHost as _;
use mirror::record::State;
use serde::Serialize;

use crate::failure::{Exit, Failure, Result};
use crate::report::Report;
use crate::site::Reachable;
use crate::site::target::Folder;

#[derive(Serialize)]
struct Promoted {
    disk: String,
    /// The ownership epoch it has now.
    epoch: u64,
}

pub(crate) fn run(disk: &Path, report: Report) -> Result<()> {
    let shown = disk.display().to_string();
    let record = sidecar_path(disk);
    let known = load_record(&record).map_err(|e| of_mirror(&shown, &e))?;
    if !known.is_some_and(|known| matches!(known.state, State::Following { .. })) {
        let what =
            format!("{shown}: does not follow another disk, so it has no state to fall back to");
        return Err(Failure::new(Exit::InUse, what));
    }
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
    let promoted = promote(&folder, disk);
    let closed = server.stop();
    folder.unlock();
    let epoch = promoted?;
    closed.map_err(|e| Failure::io("the disk could not be closed cleanly", &e))?;
    let promoted = Promoted { disk: shown, epoch };
    report.result("promoted", &promoted, |promoted| {
        format!(
            "{} is this host's own, as its source's was at the last consistent marker; nothing may serve that one again",
            promoted.disk
        )
    })
}

/// Its epoch then.
fn promote(folder: &Folder, disk: &Path) -> Result<u64> {
    let shown = disk.display();
    let name = disk.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Failure::usage(format!("{shown}: is no disk's name")))?;
    let failed = |e: std::io::Error| Failure::new(Exit::Failed, format!("{shown}: {e}"));
    let port = folder.open(name).map_err(failed)?;
    let record = folder.record_path(name);
    let owned = mirror::net::promote(&record, port.as_ref());
    let owned = owned.map_err(|e| of_mirror(&shown.to_string(), &e))?;
    let (tell, told) = channel();
    port.park(
        None,
        Box::new(move |parked| {
            let _ = tell.send(parked);
        }),
    );
    // If the mark stays, `serve` takes it out: the record says whose the disk is.
    told.recv()
        .unwrap_or_else(|e| Err(std::io::Error::other(e)))
        .map_err(failed)?;
    Ok(owned.epoch())
}

fn of_mirror(disk: &str, e: &mirror::Error) -> Failure {
    let exit = match e.kind() {
        ErrorKind::NotOwned | ErrorKind::Record => Exit::InUse,
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("{disk}: {e}"))
}
