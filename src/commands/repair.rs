//! `diskferry check --repair`: what is wrong with a disk put right, as far as that needs no guess.
//!
//! The disk is locked for it, or a copy is repaired in its place. What is decided and in which order
//! it is written is the library's ([`vdisk::repair`]).

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use vdisk::disk::random_bits;
use vdisk::repair::{RepairOptions, RepairReport, copy_sparse, repair};
use vdisk::storage::{FileStorage, Storage};

use super::check::{line, verdict};
use super::image;
use crate::args::CheckArgs;
use crate::failure::Result;
use crate::interrupt;
use crate::report::Report;
use crate::target::Target;

#[derive(Serialize)]
struct Body {
    path: String,
    sound: bool,
    #[serde(flatten)]
    report: RepairReport,
}

pub(super) fn run(args: &CheckArgs, report: Report) -> Result<()> {
    let (path, told) = match &args.to {
        Some(copy) => (copy.as_path(), in_copy(&args.disk, copy)?),
        None if args.dry_run => {
            let mut storage = image::open_storage(&args.disk)?;
            (args.disk.as_path(), mend(&mut storage, &args.disk, true)?)
        }
        None => {
            // A folder is told apart before it is opened for writing.
            drop(image::open_storage(&args.disk)?);
            let mut storage = image::patiently(|| FileStorage::open(&args.disk, true))?;
            (args.disk.as_path(), mend(&mut storage, &args.disk, false)?)
        }
    };
    let body = Body {
        path: path.display().to_string(),
        sound: told.after.is_sound(),
        report: told,
    };
    report.result("repair", &body, people)?;
    verdict(&body.path, &body.report.after)
}

fn mend(storage: &mut dyn Storage, path: &Path, dry_run: bool) -> Result<RepairReport> {
    let options = RepairOptions {
        dry_run,
        random: &mut random_bits,
    };
    Ok(repair(storage, options).map_err(|error| error.in_file(path))?)
}

/// Repairs a copy of `disk` at `copy`, which appears when it is whole.
fn in_copy(disk: &Path, copy: &Path) -> Result<RepairReport> {
    interrupt::listen();
    let mut source = image::open_storage(disk)?;
    let target = Target::new(copy, false)?;
    let mut storage = FileStorage::create(target.partial())?;
    let mut stopped = Ok(());
    let copied = copy_sparse(&mut source, &mut storage, &mut |_, _| {
        stopped = interrupt::check("no copy was made; the disk is as it was");
        match &stopped {
            Ok(()) => Ok(()),
            Err(_) => Err(vdisk::Error::invalid("interrupted")),
        }
    });
    stopped?;
    copied.map_err(|error| error.in_file(disk))?;
    let told = mend(&mut storage, disk, false)?;
    drop(storage);
    target.finish()?;
    Ok(told)
}

fn people(body: &Body) -> String {
    let mut text = String::new();
    let report = &body.report;
    for finding in &report.before.findings {
        let _ = writeln!(text, "{}", line(finding));
    }
    let tense = if report.dry_run { "would do" } else { "done" };
    for done in &report.done {
        let _ = writeln!(text, "{tense}: {}", done.what);
    }
    for withheld in &report.withheld {
        let remedy = withheld.remedy.words();
        let _ = writeln!(text, "not done: that {remedy}: {}", withheld.reason);
    }
    let now = match (report.done.is_empty(), report.dry_run, body.sound) {
        (true, _, true) => "sound; nothing to repair",
        (true, _, false) => "NOT sound; nothing that may be done without a guess",
        (false, true, _) => "nothing was changed",
        (false, false, true) => "sound now",
        (false, false, false) => "still NOT sound",
    };
    let _ = writeln!(text, "{}: {now}", body.path);
    text
}
