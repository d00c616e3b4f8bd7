//! A package of a whole disk becomes a new disk.

use std::path::Path;

use package::Item;
use vdisk::disk::{Disk, OpenOptions};
use vdisk::engine::Mark;

use super::super::image;
use super::{Imported, Job};
use crate::args::FormatName;
use crate::copy::journal::Work;
use crate::copy::partial::{Partial, Start};
use crate::copy::read::{Data, Part};
use crate::copy::sink::ImageSink;
use crate::failure::{Exit, Failure, Result};
use crate::packages::found::Package;
use crate::plan::{Shape, library_format};
use crate::size;
use crate::source::Identity;

impl Job<'_> {
    /// Makes the disk; it has its name when it is whole.
    pub(super) fn make(&self, path: &Path, mut shape: Shape) -> Result<Imported> {
        let manifest = &self.package.manifest;
        shape.sector_size = manifest.disk.sector;
        let size = match shape.format {
            FormatName::Raw => manifest.disk.size,
            FormatName::Vhdx => manifest
                .disk
                .size
                .next_multiple_of(shape.sector_size.into()),
        };
        let package = format!("package {} {}", manifest.package, self.package.root);
        let work = Work {
            source: Identity::of_content(package),
            size,
            shape: format!("{shape:?}"),
        };
        let mut partial = Partial::new(path, self.plan.force, true)?;
        let start = partial.start(Some(work), self.plan.restart)?;
        let resumed = start.done();
        self.look(resumed)?;
        let filled = self.fill(&mut partial, start, &shape, size);
        let written = match filled {
            Ok(written) => written,
            Err((failure, done)) => {
                partial.give_up(done);
                return Err(going_on(failure, done));
            }
        };
        partial.finish()?;
        Ok(Imported {
            resumed_at: Some(resumed).filter(|at| *at > 0),
            ..self.imported(path, written)
        })
    }

    /// Looks which volumes are there. Where the next one is, that is enough to begin: media may come one after
    /// another.
    fn look(&self, from: u64) -> Result<()> {
        let (wrong, now) = self.package.incomplete(from)?;
        if now {
            return Package::refuse(&wrong);
        }
        if !wrong.is_empty() {
            let wrong = wrong.join("\n");
            self.report
                .warn(&format!("{wrong}\nwhat comes before is imported"));
        }
        Ok(())
    }

    /// Makes it under its name for now. A failure comes with the number of bytes that another run need not
    /// write again.
    fn fill(
        &self,
        partial: &mut Partial,
        start: Start,
        shape: &Shape,
        size: u64,
    ) -> Result<u64, (Failure, u64)> {
        let (notes, done) = match start {
            Start::New(notes) => {
                let made = partial.clear(notes.as_ref()).and_then(|()| {
                    partial.ours();
                    image::make(partial.target.partial(), shape, size)
                });
                made.map_err(|failure| (failure, 0))?;
                (notes, 0)
            }
            Start::Resume(notes) => {
                let done = notes.journal.done;
                (Some(notes), done)
            }
        };
        let disk = self.open(partial.target.partial(), shape);
        let disk = disk.map_err(|failure| (failure, done))?;
        partial.ours();
        let mut progress = self.progress("import", size);
        let mut sink = ImageSink::new(disk, notes, &mut progress);
        let read = self.pour(&mut sink, size);
        let finished = match read {
            Ok(()) => sink.finish(None).map_err(|failure| (failure, 0)),
            Err(failure) => {
                let done = sink.give_up();
                Err((failure, done))
            }
        };
        progress.finish();
        let (disk, _) = finished?;
        seal(disk, shape.format).map_err(|failure| (failure, 0))?;
        Ok(progress.moved())
    }

    /// The disk's data get the version that is the package's number: what it leaves is told by that.
    fn open(&self, path: &Path, shape: &Shape) -> Result<Disk> {
        let version = self.package.manifest.package.to_string().parse()?;
        let options = OpenOptions {
            format: Some(library_format(shape.format)),
            data_write: Some(version),
            ..OpenOptions::default()
        };
        image::open_chain(path, &options, &vdisk::chain::ParentSearch::default())
    }

    /// Everything from where the sink is.
    fn pour(&self, sink: &mut ImageSink<'_>, size: u64) -> Result<()> {
        let from = sink.at();
        self.each_item(from, &mut |item| {
            let Item::Data { offset, bytes } = item else {
                return Ok(());
            };
            let end = offset.saturating_add(bytes.len() as u64);
            if end <= from {
                return Ok(());
            }
            let gap = offset.checked_sub(sink.at()).ok_or_else(|| {
                let what = "what was imported before ends within a chunk";
                Failure::new(Exit::Failed, what).hint("--restart starts over")
            })?;
            if gap > 0 {
                sink.take(Part::Zeros { len: gap })?;
            }
            sink.take(Part::Data(Data::new(offset, bytes, false)))
        })?;
        let rest = size.saturating_sub(sink.at());
        if rest > 0 {
            sink.take(Part::Zeros { len: rest })?;
        }
        Ok(())
    }
}

fn going_on(failure: Failure, done: u64) -> Failure {
    if done == 0 {
        return failure;
    }
    failure.and_hint(format!(
        "{} of the disk are kept: the same command goes on, and needs no volume before that",
        size::show(done)
    ))
}

/// Closes a new disk. One into which nothing was written gets its version by being marked and unmarked.
fn seal(mut disk: Disk, format: FormatName) -> Result<()> {
    if format == FormatName::Vhdx {
        disk.park(Some(Mark::Incomplete))?;
        disk.park(None)?;
    }
    Ok(disk.close()?)
}
