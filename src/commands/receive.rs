//! `diskferry receive`: disks from other hosts, served once they belong here.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use blockserver::nbd::uri::Endpoint;
use blockserver::server::{Server, ServerConfig};
use mirror::net::{TargetDriver, TargetHandle, TargetStatus};
use serde::Serialize;

use super::{promote, seed, serve};
use crate::args::ReceiveArgs;
use crate::control::service::Controlled;
use crate::control::{Control, place};
use crate::failure::{Failure, Result};
use crate::plan::{self, Receive};
use crate::report::Report;
use crate::site::Reachable;
use crate::site::source::Site;
use crate::site::target::{Folder, Owned};
use crate::site::templates;
use crate::{identity, interrupt, limits, sealing};

/// How often changes are looked for that people are told of.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct Receiving {
    listen: String,
    into: String,
    serve: Vec<String>,
}

pub(crate) fn run(args: &ReceiveArgs, report: Report) -> Result<()> {
    if let Some(disk) = &args.promote {
        return promote::run(disk, args.apart, report);
    }
    if let Some(disk) = &args.seed {
        return seed::run(disk, report);
    }
    let plan = Receive::new(args)?;
    identity::introduce(args.identity.identity.as_deref())?;
    limits::raise_open_files();
    identity::allowed(&plan.listen, args.plain)?;
    if let Some(clients) = plan.advertise.as_ref().or(plan.serve.first()) {
        identity::passes_on(&plan.listen, clients, args.plain)?;
    }
    interrupt::listen();
    if !plan.into.is_dir() {
        let what = format!("{}: is no folder", plan.into.display());
        return Err(Failure::usage(what).hint("make it first"));
    }
    let config = ServerConfig {
        workers: plan.workers,
        ..ServerConfig::default()
    };
    let server =
        Server::start(config).map_err(|e| Failure::io("the server cannot be started", &e))?;
    let server = Arc::new(server);
    let mut endpoints = Vec::new();
    for endpoint in &plan.serve {
        endpoints.push(serve::listen(&server, endpoint)?);
    }
    let advertised = plan.advertise.as_ref().unwrap_or(&endpoints[0]).clone();
    if !endpoints.iter().any(|at| same_kind(at, &advertised)) {
        tracing::warn!("{advertised}: nothing is served so here; it has to lead here all the same");
    }
    let reachable = Reachable(plan::from_anywhere(advertised));
    if let Some(arbiter) = &args.arbiter {
        // One that is away now may be there when it is needed.
        mirror::net::arbiter::at(arbiter).map_err(|e| Failure::usage(e.to_string()))?;
    }
    let site = Arc::new(Site::new(&server));
    site.is_reachable(reachable.clone());
    let control = controlled(&site, &plan, report)?;
    let owned = Owned {
        site: Arc::clone(&site),
        sockets: control.sockets(),
    };
    let folder = Folder::new(&plan.into, &server, reachable)
        .decided_by(args.arbiter.clone())
        .taking(plan.taking.clone())
        .knowing(templates::open(&plan.templates)?)
        .controlled(owned, args.plain);
    let folder = Arc::new(folder);
    let listed = |e| Failure::io(format!("{}: cannot be read", plan.into.display()), &e);
    folder.forward().map_err(listed)?;
    let target = TargetDriver::start(&plan.listen, folder.clone())
        .map_err(|e| Failure::new(crate::failure::Exit::Failed, e.to_string()))?;
    site.receives(Box::new(target.watch()));
    announce(report, &plan, (&target, &endpoints))?;
    watch(report, &target)?;
    drop(control);
    target.stop();
    site.stop();
    let closed = server.stop();
    sealing::see_off();
    folder.unlock();
    site.unlock();
    closed.map_err(|e| Failure::io("a disk could not be closed cleanly", &e))
}

fn same_kind(one: &Endpoint, other: &Endpoint) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// Listens for control where it was asked to; a disk's own socket comes when the disk is owned here.
fn controlled(site: &Arc<Site>, plan: &Receive, report: Report) -> Result<Controlled> {
    place::make_folder()?;
    let control: Arc<dyn Control> = site.clone();
    let controlled = Controlled::start(&control, None, plan.control.clone())?;
    serve::watchable(&controlled, (&control, plan.metrics), report)?;
    Ok(controlled)
}

fn announce(
    report: Report,
    plan: &Receive,
    (target, endpoints): (&TargetHandle, &[Endpoint]),
) -> Result<()> {
    let receiving = Receiving {
        listen: target.site(),
        into: plan.into.display().to_string(),
        serve: endpoints.iter().map(ToString::to_string).collect(),
    };
    let people = format!(
        "receiving at {} into {}, serving at {}",
        receiving.listen,
        receiving.into,
        receiving.serve.join(" and ")
    );
    report.event("receiving", &receiving, &people)
}

/// Tell of every change of a disk's state until a signal.
fn watch(report: Report, target: &TargetHandle) -> Result<()> {
    let mut told: Vec<TargetStatus> = Vec::new();
    while !interrupt::requested() {
        let now = target.status();
        for disk in &now {
            let before = told.iter().find(|before| before.name == disk.name);
            if before
                .is_none_or(|before| before.state != disk.state || before.address != disk.address)
            {
                let at = disk
                    .address
                    .as_deref()
                    .map_or_else(String::new, |at| format!(" at {at}"));
                report.event("disk", disk, &format!("{}: {}{at}", disk.name, disk.state))?;
            }
        }
        told = now;
        thread::sleep(LOOK);
    }
    Ok(())
}
