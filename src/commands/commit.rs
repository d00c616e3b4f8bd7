//! `diskferry commit`: a disk is merged into the one it is built on.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vdisk::merge::{Merged, built_on, commit, parent_of};

use super::image;
use crate::args::{CommitArgs, ProgressMode};
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::plan::Commit;
use crate::progress::Progress;
use crate::report::Report;
use crate::size;

#[derive(Serialize)]
struct Committed {
    path: String,
    parent: String,
    written_bytes: u64,
    zeroed_bytes: u64,
    deleted: bool,
}

pub(crate) fn run(args: &CommitArgs, report: Report, mode: ProgressMode) -> Result<()> {
    let plan = Commit::new(args)?;
    interrupt::listen();
    let (parent, version) = image::patiently(|| parent_of(&plan.disk, &plan.search))?;
    if !plan.force {
        refuse_others(&plan.disk, &parent, version)?;
    }
    let size = image::know(&plan.disk, None)?.virtual_size();
    let protected = unprotect(&parent)?;
    let mut progress = Progress::new(report, mode, "merge", size);
    let mut seen = 0;
    let merged = commit(&plan.disk, &plan.search, &mut |at| {
        progress.advance(at - seen, at - seen);
        seen = at;
        interrupt::check("the same command goes on").map_err(|_| stopped())
    });
    progress.finish();
    let result = merged.map_err(|error| explain(error, &plan.disk));
    if protected && !(plan.delete && result.is_ok()) {
        protect(&parent)?;
    }
    let merged = result?;
    if plan.delete {
        let failed = |e| Failure::io(format!("{}: cannot be deleted", plan.disk.display()), &e);
        fs::remove_file(&plan.disk).map_err(failed)?;
    }
    report.event("summary", &body(&plan, &merged), &sentence(&plan, &merged))
}

pub(super) fn stopped() -> vdisk::Error {
    vdisk::Error::new(vdisk::ErrorKind::Failed, "interrupted")
}

pub(super) fn explain(error: vdisk::Error, disk: &Path) -> Failure {
    if interrupt::check("").is_err() {
        let state = format!(
            "{} reads as before; the same command goes on",
            disk.display()
        );
        return Failure::interrupted(&state);
    }
    error.into()
}

/// Refuses a change of `parent` if others than `child` that are built on its `version` lie in the
/// folders of the two.
pub(super) fn refuse_others(
    child: &Path,
    parent: &Path,
    version: vdisk::format::Guid,
) -> Result<()> {
    let mut others: Vec<PathBuf> = Vec::new();
    for disk in [child, parent] {
        let folder = disk.canonicalize().ok();
        let folder = folder.as_deref().and_then(Path::parent);
        others.extend(built_on(folder.unwrap_or(Path::new(".")), version, child)?);
    }
    others.sort();
    others.dedup();
    if others.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = others
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let what = format!(
        "{}: {} built on it as well, and would be lost",
        parent.display(),
        names.join(" and ")
    );
    Err(Failure::new(Exit::InUse, what)
        .hint("convert them into disks of their own first, or --force"))
}

/// Gives its owner the permission to write; whether nobody had it.
pub(super) fn unprotect(path: &Path) -> Result<bool> {
    let failed = |e| Failure::io(format!("{}: cannot be made writable", path.display()), &e);
    let mut permissions = fs::metadata(path).map_err(failed)?.permissions();
    if !permissions.readonly() {
        return Ok(false);
    }
    permissions.set_mode(permissions.mode() | 0o200);
    fs::set_permissions(path, permissions).map_err(failed)?;
    Ok(true)
}

/// Takes everybody's permission to write.
pub(crate) fn protect(path: &Path) -> Result<()> {
    let failed = |e| Failure::io(format!("{}: cannot be made read-only", path.display()), &e);
    let mut permissions = fs::metadata(path).map_err(failed)?.permissions();
    permissions.set_readonly(true);
    fs::set_permissions(path, permissions).map_err(failed)
}

fn body(plan: &Commit, merged: &Merged) -> Committed {
    Committed {
        path: plan.disk.display().to_string(),
        parent: merged.parent.display().to_string(),
        written_bytes: merged.written,
        zeroed_bytes: merged.zeroed,
        deleted: plan.delete,
    }
}

fn sentence(plan: &Commit, merged: &Merged) -> String {
    let rest = if plan.delete {
        "is deleted"
    } else {
        "may be deleted"
    };
    format!(
        "{} holds everything now ({} written, {} zeroed); {} {rest}",
        merged.parent.display(),
        size::show(merged.written),
        size::show(merged.zeroed),
        plan.disk.display()
    )
}
