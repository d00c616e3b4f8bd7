//! `diskferry serve`: disks for NBD clients, in the foreground until a signal.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use blockserver::export::{Disk, ExportHandle, ExportOptions, Statistics, prepare_file};
use blockserver::nbd::uri::{Address, Endpoint};
use blockserver::server::{Server, ServerConfig};
use serde::Serialize;
use vdisk::disk::open_path;

use super::image;
use crate::args::{FormatName, ServeArgs};
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::plan::{self, Serve, Served};
use crate::report::Report;
use crate::size;

#[derive(Serialize)]
struct Serving {
    disk: PathBuf,
    export: String,
    virtual_size: u64,
    read_only: bool,
    uris: Vec<String>,
    io_uring: bool,
}

#[derive(Serialize)]
struct Ended {
    exports: Vec<EndedExport>,
}

#[derive(Serialize)]
struct EndedExport {
    export: String,
    #[serde(flatten)]
    statistics: Statistics,
}

pub(crate) fn run(args: &ServeArgs, report: Report) -> Result<()> {
    let plan = Serve::new(args)?;
    interrupt::listen();
    let config = ServerConfig {
        workers: plan.workers,
        ..ServerConfig::default()
    };
    let server =
        Server::start(config).map_err(|e| Failure::io("the server cannot be started", &e))?;
    let (mut exports, mut opened) = (Vec::new(), Vec::new());
    for served in &plan.disks {
        let disk = open(served, plan.read_only)?;
        exports.push(add(
            &server,
            served,
            Arc::clone(&disk.disk),
            plan.read_only,
        )?);
        opened.push(disk);
    }
    // Only now: a client that comes earlier would find nothing.
    let mut endpoints = Vec::new();
    for endpoint in &plan.listen {
        endpoints.push(listen(&server, endpoint)?);
    }
    for (disk, export) in plan.disks.iter().zip(&exports) {
        announce(report, disk, export, (&server, &endpoints))?;
    }
    interrupt::wait();
    let ended = Ended {
        exports: exports.iter().map(statistics).collect(),
    };
    drop(exports);
    let closed = server.shutdown();
    opened.iter().for_each(Opened::unlock);
    closed.map_err(|e| Failure::io("a disk could not be closed cleanly", &e))?;
    report.event("summary", &ended, &farewell(&ended))
}

/// Makes an open disk an export.
fn add(to: &Server, served: &Served, disk: Arc<Disk>, read_only: bool) -> Result<ExportHandle> {
    let options = ExportOptions {
        read_only,
        description: served.path.display().to_string(),
        ..ExportOptions::default()
    };
    let export = to.add_export(&served.name, disk, options);
    export.map_err(|e| {
        let what = format!("{}: cannot be served", served.path.display());
        Failure::io(what, &e).hint("give each disk a name of its own: NAME=DISK")
    })
}

/// Opens a disk the way a server wants it: past the page cache, where the file system allows that.
pub(crate) fn open(served: &Served, read_only: bool) -> Result<Opened> {
    let format = served
        .format
        .unwrap_or_else(|| plan::format_of(&served.path));
    let raw = format == FormatName::Raw;
    let mut options = image::options(served.format, read_only);
    // The engine has to know the alignment before it reads anything, and reads as it likes until the
    // file is switched over; so another opening of the file is asked first.
    let probe = image::open_storage_shared(&served.path)?;
    let alignment = prepare_file(&probe, raw);
    drop(probe);
    options.alignment = u64::from(alignment);
    let (storage, engine) = image::patiently(|| open_path(&served.path, &options))?;
    let file = storage.into_file();
    let alignment = prepare_file(&file, raw).max(alignment);
    let lock = file
        .try_clone()
        .map_err(|e| Failure::io(format!("{}: cannot be opened", served.path.display()), &e))?;
    let disk = Disk::new(file, engine, alignment);
    Ok(Opened { disk, lock })
}

/// A disk opened for serving.
pub(crate) struct Opened {
    pub(crate) disk: Arc<Disk>,
    /// The same open file. The kernel keeps a ring's files, and so their locks, for a while after
    /// the ring has gone; whoever ends in order gives the lock back by itself.
    lock: File,
}

impl Opened {
    /// Lets others have the file; the disk must not be in use any more.
    pub(crate) fn unlock(&self) {
        // What fails here comes with the end of the process.
        let _ = self.lock.unlock();
    }
}

/// Listens, and says what is wrong if that is not possible.
pub(crate) fn listen(server: &Server, endpoint: &Endpoint) -> Result<Endpoint> {
    server
        .listen(endpoint)
        .map_err(|e| cannot_listen(endpoint, &e))
}

/// Why one cannot listen at `endpoint`.
pub(crate) fn cannot_listen(endpoint: &Endpoint, error: &std::io::Error) -> Failure {
    let what = format!("cannot listen at {endpoint}: {error}");
    match error.kind() {
        std::io::ErrorKind::AddrInUse => Failure::new(Exit::InUse, what)
            .hint("another program listens there; choose another address or stop it"),
        std::io::ErrorKind::PermissionDenied => Failure::new(Exit::Failed, what)
            .hint("ports below 1024 and foreign folders need privileges"),
        _ => Failure::new(Exit::Failed, what),
    }
}

fn announce(
    report: Report,
    disk: &Served,
    export: &ExportHandle,
    (server, endpoints): (&Server, &[Endpoint]),
) -> Result<()> {
    let uri = |endpoint: &Endpoint| {
        let address = Address {
            endpoint: endpoint.clone(),
            export: disk.name.clone(),
        };
        address.to_string()
    };
    let serving = Serving {
        disk: disk.path.clone(),
        export: disk.name.clone(),
        virtual_size: export.size(),
        read_only: export.read_only(),
        uris: endpoints.iter().map(uri).collect(),
        io_uring: server.uses_io_uring(),
    };
    let read_only = if serving.read_only { ", read-only" } else { "" };
    let people = format!(
        "serving {} ({}{read_only}) at {}",
        disk.path.display(),
        size::show(serving.virtual_size),
        serving.uris.join(" and "),
    );
    report.event("serving", &serving, &people)
}

fn statistics(export: &ExportHandle) -> EndedExport {
    EndedExport {
        export: export.name().to_owned(),
        statistics: export.statistics(),
    }
}

fn farewell(ended: &Ended) -> String {
    let line = |EndedExport { export, statistics }: &EndedExport| {
        format!(
            "{export}: closed; {} reads ({}), {} writes ({}), {} flushes\n",
            statistics.read.requests,
            size::show(statistics.read.bytes),
            statistics.write.requests,
            size::show(statistics.write.bytes),
            statistics.flush.requests,
        )
    };
    ended.exports.iter().map(line).collect()
}
