//! `diskferry machine add-disk`, `remove-disk`, `resize-disk`.

use serde::Serialize;
use vmm::description::{DiskEntry, DiskFormat};

use super::client;
use crate::args::{AddDiskArgs, FormatName, RemoveDiskArgs, ResizeDiskArgs};
use crate::commands::remote::escape;
use crate::control::machine::disks::{MachineDisk, RemoveDisk};
use crate::control::{DiskState, Resize};
use crate::failure::{Exit, Failure, Result};
use crate::plan::NewSize;
use crate::report::Report;
use crate::size;

pub(super) fn add(args: &AddDiskArgs, report: Report) -> Result<()> {
    let client = client(&args.machine)?;
    let found = std::fs::canonicalize(&args.disk);
    let path =
        found.map_err(|e| Failure::io(format!("{}: cannot be found", args.disk.display()), &e))?;
    // The process that opens it sees it from another folder, and calls it by its own name.
    let named = args.name.clone();
    let wanted = DiskEntry {
        path,
        name: named.or_else(|| DiskEntry::name_of(&args.disk)),
        format: args.format.map(|format| match format {
            FormatName::Vhdx => DiskFormat::Vhdx,
            FormatName::Raw => DiskFormat::Raw,
        }),
        read_only: args.read_only,
        queues: args.queues,
    };
    let added: MachineDisk = client.post("/v1/machine/disks", &wanted)?;
    report.result("disk_added", &added, |added| {
        format!(
            "`{}`: in slot {}, {}{}",
            added.name,
            added.slot,
            size::show(added.virtual_size),
            if added.read_only { ", read-only" } else { "" }
        )
    })
}

pub(super) fn remove(args: &RemoveDiskArgs, report: Report) -> Result<()> {
    let client = client(&args.machine)?;
    let how = RemoveDisk {
        force: args.force,
        timeout_ms: args.timeout.saturating_mul(1000),
    };
    let resource = format!("/v1/machine/disks/{}/remove", escape(&args.name));
    let removed: MachineDisk = client.post(&resource, &how)?;
    report.result("disk_removed", &removed, |removed| {
        format!("`{}`: removed; {} is closed", removed.name, removed.path)
    })
}

/// What was done.
#[derive(Serialize)]
struct Resized {
    disk: String,
    previous_size: u64,
    virtual_size: u64,
}

pub(super) fn resize(args: &ResizeDiskArgs, report: Report) -> Result<()> {
    let new = NewSize::new(&args.size)?;
    let client = client(&args.machine)?;
    let disks: Vec<DiskState> = client.get("/v1/disks")?;
    let none = || Failure::usage(format!("the machine has no disk called `{}`", args.name));
    let disk = disks.into_iter().find(|disk| disk.name == args.name);
    let before = disk.ok_or_else(none)?.virtual_size;
    let wanted = Resize {
        size: new.of(before)?,
        discard_data: args.discard_data,
    };
    let resource = format!("/v1/disks/{}/resize", escape(&args.name));
    let state: Result<DiskState> = client.post(&resource, &wanted);
    let state = state.map_err(|failure| {
        if failure.exit == Exit::Usage && wanted.size < before && !args.discard_data {
            return failure.hint("--discard-data throws away what lies beyond the new end");
        }
        failure
    })?;
    let resized = Resized {
        disk: args.name.clone(),
        previous_size: before,
        virtual_size: state.virtual_size,
    };
    report.result("resized", &resized, |resized| {
        let (now, before) = (resized.virtual_size, resized.previous_size);
        let (now, before) = (size::show(now), size::show(before));
        format!("`{}`: {now}, was {before}", resized.disk)
    })
}
