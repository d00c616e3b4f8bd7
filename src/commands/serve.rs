//! `diskferry serve`: disks for NBD clients, in the foreground until a signal.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use blockserver::export::{ExportHandle, ExportOptions, Statistics};
use blockserver::nbd::uri::{Address, Endpoint};
use blockserver::server::{Server, ServerConfig};
use serde::Serialize;

use super::image;
use crate::args::ServeArgs;
use crate::control::service::Controlled;
use crate::control::{Control, place};
use crate::failure::{Exit, Failure, Result};
use crate::plan::{self, Serve, Served};
use crate::report::Report;
use crate::site::Reachable;
use crate::site::elsewhere::NOT_PROMISED;
use crate::site::source::Site;
use crate::{identity, interrupt, limits, sealing};
use crate::{site, size};

#[derive(Serialize)]
struct Serving {
    disk: PathBuf,
    export: String,
    virtual_size: u64,
    read_only: bool,
    uris: Vec<String>,
    io_uring: bool,
    /// The export that is behind it, and what cannot be promised of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    behind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_promised: Option<&'static str>,
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
    identity::introduce(args.identity.identity.as_deref())?;
    limits::raise_open_files();
    interrupt::listen();
    let config = ServerConfig {
        workers: plan.workers,
        ..ServerConfig::default()
    };
    let server =
        Server::start(config).map_err(|e| Failure::io("the server cannot be started", &e))?;
    let server = Arc::new(server);
    let site = Site::new(&server);
    let mut exports = Vec::new();
    for served in &plan.disks {
        exports.push(add(&site, served, &plan)?);
    }
    // Only now: a client that comes earlier would find nothing.
    let mut endpoints = Vec::new();
    for endpoint in &plan.listen {
        endpoints.push(listen(&server, endpoint)?);
    }
    site.is_reachable(Reachable(plan::from_anywhere(endpoints[0].clone())));
    let site = Arc::new(site);
    let control = controlled(&site, &plan, report)?;
    for (disk, export) in plan.disks.iter().zip(&exports) {
        announce(report, disk, export, (&server, &endpoints))?;
    }
    interrupt::wait();
    drop(control);
    site.stop();
    let ended = Ended {
        exports: exports.iter().map(statistics).collect(),
    };
    drop(exports);
    let closed = server.stop();
    sealing::see_off();
    site.unlock();
    closed.map_err(|e| Failure::io("a disk could not be closed cleanly", &e))?;
    report.event("summary", &ended, &farewell(&ended))
}

/// Opens a disk and makes it an export.
fn add(site: &Site, served: &Served, plan: &Serve) -> Result<ExportHandle> {
    let opened = if let Some(behind) = &served.behind {
        behind.refuse_own(&plan.listen)?;
        behind.open((plan.read_only, plan.take_over))?
    } else {
        let format = served.format.map(plan::library_format);
        site::disk::open(&served.path, format, plan.read_only, &plan.search)?
    };
    let options = ExportOptions {
        read_only: plan.read_only,
        description: served.path.display().to_string(),
        ..ExportOptions::default()
    };
    let export = site.add(&served.name, opened, (options, plan.take_over))?;
    export.set_limits(plan.limits);
    Ok(export)
}

/// Listens for control: where every disk's socket is looked for, and where it was asked to.
fn controlled(site: &Arc<Site>, plan: &Serve, report: Report) -> Result<Controlled> {
    let mut paths = plan.control.clone();
    if !plan.read_only {
        place::make_folder()?;
        for disk in site.paths() {
            paths.push(place::socket_of(&disk)?);
        }
    }
    let control: Arc<dyn Control> = site.clone();
    let controlled = Controlled::start(&control, None, paths)?;
    watchable(&controlled, (&control, plan.metrics), report)?;
    Ok(controlled)
}

#[derive(Serialize)]
struct Watchable {
    listen: String,
}

/// Lets Prometheus read what is counted, if it was asked to, and says where.
pub(crate) fn watchable(
    controlled: &Controlled,
    (control, at): (&Arc<dyn Control>, Option<SocketAddr>),
    report: Report,
) -> Result<()> {
    let Some(at) = at else {
        return Ok(());
    };
    let listen = controlled.metrics_at(control, at)?.to_string();
    let people = format!("metrics at http://{listen}/metrics");
    report.event("metrics", &Watchable { listen }, &people)
}

/// Listens, and says what is wrong if that is not possible.
///
/// Tries again for a while if the address is in use: the kernel keeps the sockets of a killed server
/// open until the last of its requests has ended.
pub(crate) fn listen(server: &Server, endpoint: &Endpoint) -> Result<Endpoint> {
    let deadline = Instant::now() + image::PATIENCE;
    loop {
        match server.listen(endpoint) {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result.map_err(|e| cannot_listen(endpoint, &e)),
        }
    }
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
        behind: disk
            .behind
            .as_ref()
            .map(|behind| behind.address.to_string()),
        not_promised: disk.behind.as_ref().map(|_| NOT_PROMISED),
    };
    let read_only = if serving.read_only { ", read-only" } else { "" };
    let mut people = format!(
        "serving {} ({}{read_only}) at {}",
        disk.path.display(),
        size::show(serving.virtual_size),
        serving.uris.join(" and "),
    );
    if let Some(behind) = &serving.behind {
        let _ = write!(people, ", which is {behind}\nnot promised: {NOT_PROMISED}");
    }
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
