//! `diskferry check`: a disk against the rules of its format, and those it is built on. Changes nothing;
//! `--repair` is [`super::repair`]'s.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use vdisk::check::{CheckReport, Finding, Severity, check_parents};
use vdisk::format::Code;

use super::{image, repair};
use crate::args::{CheckArgs, FormatName};
use crate::failure::{Exit, Failure, Result};
use crate::plan;
use crate::report::Report;
use crate::size;

#[derive(Serialize)]
struct Body {
    path: String,
    sound: bool,
    #[serde(flatten)]
    report: CheckReport,
}

pub(crate) fn run(args: &CheckArgs, report: Report) -> Result<()> {
    let path = &args.disk;
    let format = args.format.unwrap_or_else(|| plan::format_of(path));
    if format == FormatName::Raw {
        return Err(Failure::new(
            Exit::Unsupported,
            format!("{}: a raw disk has no structure to check", path.display()),
        )
        .hint("--format vhdx if it is a VHDX after all"));
    }
    if args.repair {
        return repair::run(args, report);
    }
    let mut storage = image::open_storage(path)?;
    let mut found = vdisk::check::check(&mut storage).map_err(|e| e.in_file(path))?;
    drop(storage);
    let mut beneath = Vec::new();
    // What an unsound disk says of its parents is not believed.
    if args.whole_chain && found.is_sound() && found.has(Code::HasParent) {
        let search = plan::search(&args.chain);
        let parents = check_parents(path, &search, (found.has(Code::Marked), true))?;
        found.add(parents.findings);
        beneath = parents.disks;
    }
    let disks = std::iter::once((path.clone(), found)).chain(beneath);
    let mut ended = Ok(());
    for (path, found) in disks {
        let body = Body::new(&path, found);
        report.result("check", &body, people)?;
        // The first of the worst decides: corrupt before a log to be replayed.
        let verdict = verdict(&body.path, &body.report);
        ended = match (ended, verdict) {
            (Ok(()), verdict) => verdict,
            (Err(a), Err(b)) if a.exit == Exit::NeedsRepair && b.exit == Exit::Corrupt => Err(b),
            (ended, _) => ended,
        };
    }
    ended
}

impl Body {
    fn new(path: &Path, report: CheckReport) -> Self {
        Self {
            path: path.display().to_string(),
            sound: report.is_sound(),
            report,
        }
    }
}

/// Unsound is a failure with its exit code; so is a log to be replayed.
pub(super) fn verdict(path: &str, report: &CheckReport) -> Result<()> {
    if report.is_mendable() {
        let what = format!("{path}: is damaged: {} errors", report.errors());
        return Err(Failure::new(Exit::NeedsRepair, what)
            .hint("`diskferry check --repair` mends all of them without a guess"));
    }
    if !report.is_sound() {
        let what = if report.complete {
            format!("{path}: is corrupt: {} errors", report.errors())
        } else {
            format!("{path}: is corrupt, and could not be examined to the end")
        };
        return Err(Failure::new(Exit::Corrupt, what).hint("restore it from a copy"));
    }
    if report.dirty {
        let what = format!("{path}: has a log to be replayed: it was not closed");
        return Err(Failure::new(Exit::NeedsRepair, what)
            .hint("`diskferry check --repair` replays it, and so does any writable open"));
    }
    Ok(())
}

/// A finding, for a person.
pub(super) fn line(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Info => "info",
        Severity::Leak => "leak",
        Severity::Warning => "warning",
        Severity::Error => "corrupt",
    };
    let at = finding
        .offset
        .map_or_else(String::new, |at| format!(" at {at:#x}"));
    format!(
        "{severity}: {} [{}]{at}: {}",
        finding.structure, finding.code, finding.message
    )
}

fn people(body: &Body) -> String {
    let mut text = String::new();
    for finding in &body.report.findings {
        let _ = writeln!(text, "{}", line(finding));
        let _ = writeln!(text, "    {}", finding.consequence);
    }
    if body.report.omitted > 0 {
        let _ = writeln!(text, "… and {} more", body.report.omitted);
    }
    let leaked = body.report.leaked_mib;
    let word = if body.sound { "sound" } else { "NOT sound" };
    let _ = write!(
        text,
        "{}: {word}; {} blocks present, {} of the file in use",
        body.path,
        body.report.blocks.fully_present + body.report.blocks.partially_present,
        size::show(body.report.allocated),
    );
    let _ = match leaked {
        0 => writeln!(text),
        mib => writeln!(text, ", {mib} MiB of it refer to nothing"),
    };
    text
}
