//! `diskferry convert`: a disk copied into another format, its holes and zeros left out.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use serde::Serialize;
use vdisk::disk::Disk;
use vdisk::zeros::data_runs;

use super::image::{self, Known};
use crate::args::{ConvertArgs, FormatName, ProgressMode};
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::plan::Convert;
use crate::progress::{Progress, per_second};
use crate::report::Report;
use crate::size;
use crate::target::Target;

/// Bytes read and written at once.
const PIECE: u64 = 1 << 20;
/// How much of the source is asked about at once.
const WINDOW: u64 = 1 << 40;
/// Pieces read and not written yet.
const AHEAD: usize = 8;
/// A shorter run of zeros is written with its neighbours.
const GRAIN: usize = 4096;
/// A VHDX consists of whole sectors.
const SECTOR: u64 = 512;

#[derive(Serialize)]
struct Converted {
    path: String,
    #[serde(flatten)]
    known: Known,
    size_on_disk: u64,
    copied_bytes: u64,
    seconds: f64,
    bytes_per_second: u64,
}

/// A part of the source, in order.
enum Part {
    /// These bytes.
    Data { offset: u64, bytes: Vec<u8> },
    /// So many bytes that read as zero.
    Zeros(u64),
}

pub(crate) fn run(args: &ConvertArgs, report: Report, mode: ProgressMode) -> Result<()> {
    let plan = Convert::new(args)?;
    refuse_the_same_file(&plan.source, &plan.target)?;
    interrupt::listen();
    let options = image::options(plan.from, true);
    let source = image::open_chain(&plan.source, &options, &plan.search)?;
    let target = Target::new(&plan.target, plan.force)?;
    let size = whole_sectors(source.size(), plan.shape.format, report);
    image::make(target.partial(), &plan.shape, size)?;
    let disk = image::open(target.partial(), Some(plan.shape.format), false)?;
    let mut progress = Progress::new(report, mode, "copy", source.size());
    let copied = copy(source, disk, &mut progress);
    progress.finish();
    copied?;
    target.finish()?;
    let converted = Converted {
        path: plan.target.display().to_string(),
        known: image::know(&plan.target, Some(plan.shape.format))?,
        size_on_disk: image::size_on_disk(&plan.target)?,
        copied_bytes: progress.moved(),
        seconds: progress.elapsed().as_secs_f64(),
        bytes_per_second: per_second(progress.moved(), progress.elapsed()),
    };
    report.event("summary", &converted, &sentence(&converted))
}

fn refuse_the_same_file(source: &Path, target: &Path) -> Result<()> {
    let place = |path: &Path| std::fs::canonicalize(path).ok();
    if place(source).is_some_and(|place_of_source| place(target) == Some(place_of_source)) {
        let what = format!("{}: source and target are the same file", source.display());
        return Err(Failure::usage(what).hint("give the target another name"));
    }
    Ok(())
}

/// The size of the new disk: a VHDX has whole sectors, so a raw source may need some bytes more.
fn whole_sectors(size: u64, format: FormatName, report: Report) -> u64 {
    let whole = size.next_multiple_of(SECTOR);
    if format == FormatName::Raw || whole == size {
        return size;
    }
    let more = whole - size;
    report.warn(&format!(
        "the new disk is {more} bytes longer: a VHDX has whole sectors"
    ));
    whole
}

/// Copies everything, reading on one thread and writing on this one, and closes the target.
fn copy(source: Disk, mut target: Disk, progress: &mut Progress) -> Result<()> {
    thread::scope(|scope| {
        let (send, parts) = sync_channel(AHEAD);
        let reader = scope.spawn(move || read(source, &send));
        let written = write(&parts, &mut target, progress);
        // A reader that waits for room is let go.
        drop(parts);
        let read = reader.join().unwrap_or_else(|_| {
            Err(Failure::new(
                Exit::Failed,
                "the reading thread ended unexpectedly",
            ))
        });
        written.and(read)
    })?;
    target.flush()?;
    Ok(target.close()?)
}

/// Sends all parts of `source`; ends early when nobody takes them any more.
fn read(mut source: Disk, send: &SyncSender<Part>) -> Result<()> {
    let size = source.size();
    let mut at = 0;
    while at < size {
        let extents = source.status(at, WINDOW.min(size - at))?;
        for extent in extents {
            let end = at + extent.len;
            if extent.zero {
                if send.send(Part::Zeros(extent.len)).is_err() {
                    return Ok(());
                }
                at = end;
            }
            while at < end {
                let mut bytes = vec![0; PIECE.min(end - at) as usize];
                source.read_at(at, &mut bytes)?;
                let read = bytes.len() as u64;
                if send.send(Part::Data { offset: at, bytes }).is_err() {
                    return Ok(());
                }
                at += read;
            }
        }
    }
    Ok(())
}

fn write(parts: &Receiver<Part>, target: &mut Disk, progress: &mut Progress) -> Result<()> {
    for part in parts {
        interrupt::check("the half-made target was removed, the source is unchanged")?;
        match part {
            Part::Zeros(len) => progress.advance(len, 0),
            Part::Data { offset, bytes } => {
                let mut moved = 0;
                for run in data_runs(&bytes, GRAIN) {
                    target.write_at(offset + run.start as u64, &bytes[run.clone()])?;
                    moved += run.len() as u64;
                }
                progress.advance(bytes.len() as u64, moved);
            }
        }
    }
    Ok(())
}

fn sentence(converted: &Converted) -> String {
    format!(
        "{}: {}, {} copied in {:.1} s ({}/s), {} on disk",
        converted.path,
        size::show(converted.known.virtual_size()),
        size::show(converted.copied_bytes),
        converted.seconds,
        size::show(converted.bytes_per_second),
        size::show(converted.size_on_disk)
    )
}
