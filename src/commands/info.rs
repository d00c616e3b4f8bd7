//! `diskferry info`: what a disk says of itself.

use std::fmt::Write as _;

use serde::Serialize;
use vdisk::info::Info;

use super::image::{self, Known};
use crate::args::InfoArgs;
use crate::failure::Result;
use crate::report::Report;
use crate::size;

#[derive(Serialize)]
struct Body {
    path: String,
    #[serde(flatten)]
    known: Known,
    size_on_disk: u64,
}

pub(crate) fn run(args: &InfoArgs, report: Report) -> Result<()> {
    let body = Body {
        path: args.disk.display().to_string(),
        known: image::know(&args.disk, args.format)?,
        size_on_disk: image::size_on_disk(&args.disk)?,
    };
    report.result("info", &body, people)
}

fn people(body: &Body) -> String {
    let mut text = String::new();
    line(&mut text, "disk", &body.path);
    match &body.known {
        Known::Raw(raw) => {
            line(&mut text, "format", "raw");
            line(&mut text, "size", &both(raw.virtual_size));
        }
        Known::Vhdx(info) => vhdx(&mut text, info),
    }
    line(&mut text, "on disk", &size::show(body.size_on_disk));
    text
}

fn vhdx(text: &mut String, info: &Info) {
    line(text, "format", &format!("VHDX, {}", info.kind));
    line(text, "size", &both(info.virtual_size));
    line(text, "blocks", &size::show(u64::from(info.block_size)));
    let sectors = format!(
        "{} bytes, {} physical",
        info.logical_sector, info.physical_sector
    );
    line(text, "sectors", &sectors);
    let log = if info.log.dirty {
        "to be replayed by the next writable open"
    } else {
        "empty"
    };
    line(text, "log", &format!("{}, {log}", size::show(info.log.len)));
    line(text, "made by", &info.creator);
    line(text, "disk id", &info.ids.disk.to_string());
    line(text, "file id", &info.ids.file_write.to_string());
    line(text, "data id", &info.ids.data_write.to_string());
    if let Some(parent) = &info.parent {
        let path = parent.relative_path.as_deref();
        line(
            text,
            "parent",
            path.unwrap_or("named only by paths of Windows"),
        );
        for version in &parent.versions {
            line(text, "", &format!("its data id must be {version}"));
        }
    }
    if let Some(mark) = info.mark {
        let meaning = match mark {
            "incomplete" => "the target of a migration that is not complete",
            _ => "handed over to another owner",
        };
        line(text, "mark", meaning);
    }
    line(text, "file", &size::show(info.file_len));
    for finding in &info.warnings {
        line(text, "warning", &finding.message);
    }
}

/// A size for people, and exactly.
fn both(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", size::show(bytes))
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<9} {value}");
}
