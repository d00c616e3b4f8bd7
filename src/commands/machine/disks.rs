//! `diskferry machine add-disk`, `remove-disk`, `resize-disk`.

use vmm::description::{DiskEntry, DiskFormat};

use super::client;
use crate::args::{AddDiskArgs, FormatName, RemoveDiskArgs, ResizeDiskArgs};
use crate::commands::remote::{Remote, escape};
use crate::commands::resize::Resized;
use crate::control::machine::disks::{MachineDisk, RemoveDisk};
use crate::failure::{Failure, Result};
use crate::plan::{self, NewSize};
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
        limits: plan::limits(&args.limits)?,
    };
    let added: MachineDisk = client.post("/v1/machine/disks", &wanted)?;
    report.result("disk-added", &added, |added| {
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
    report.result("disk-removed", &removed, |removed| {
        format!("`{}`: removed; {} is closed", removed.name, removed.path)
    })
}

pub(super) fn resize(args: &ResizeDiskArgs, report: Report) -> Result<()> {
    let new = NewSize::new(&args.size)?;
    let remote = Remote::named(client(&args.machine)?, &args.name)?;
    let resized = Resized::at_server(&remote, new, args.discard_data)?;
    report.result("resized", &resized, |resized| resized.sentence(""))
}
