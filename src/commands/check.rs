//! `diskferry check`: a disk against the rules of its format. Changes nothing.

use std::fmt::Write as _;

use serde::Serialize;
use vdisk::check::{CheckReport, Severity};

use super::image;
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
    let mut storage = image::open_storage(path)?;
    let found = vdisk::check::check(&mut storage).map_err(|e| e.in_file(path))?;
    let body = Body {
        path: path.display().to_string(),
        sound: found.is_sound(),
        report: found,
    };
    report.result("check", &body, people)?;
    verdict(&body)
}

/// Unsound is a failure with its exit code; so is a log to be replayed.
fn verdict(body: &Body) -> Result<()> {
    let path = &body.path;
    if !body.sound {
        let errors = body.report.errors();
        let what = if body.report.complete {
            format!("{path}: is corrupt: {errors} errors")
        } else {
            format!("{path}: is corrupt, and could not be examined to the end")
        };
        return Err(
            Failure::new(Exit::Corrupt, what).hint("restore it from a copy; nothing was changed")
        );
    }
    if body.report.dirty {
        let what = format!("{path}: has a log to be replayed: it was not closed");
        return Err(Failure::new(Exit::NeedsRepair, what)
            .hint("any writable open replays it, `diskferry serve` for one"));
    }
    Ok(())
}

fn people(body: &Body) -> String {
    let mut text = String::new();
    for finding in &body.report.findings {
        let severity = match finding.severity {
            Severity::Leak => "leak",
            Severity::Warning => "warning",
            Severity::Error => "corrupt",
        };
        let at = finding
            .offset
            .map_or_else(String::new, |at| format!(" at {at:#x}"));
        let _ = writeln!(
            text,
            "{severity}: {}{at}: {}",
            finding.structure, finding.message
        );
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
