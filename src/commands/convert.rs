//! `diskferry convert`: a disk copied into another format, its holes and zeros left out.

mod outcome;

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::time::Duration;

use vdisk::storage::FileStorage;

use self::outcome::{Converted, Planned};
use super::image;
use crate::args::{ConvertArgs, FormatName, GlobalArgs, ProgressMode, SourceFormat};
use crate::copy::compare::{self, Found};
use crate::copy::journal::Work;
use crate::copy::partial::{Partial, Start};
use crate::copy::pieces::{self, Piece};
use crate::copy::read::{self, Part};
use crate::copy::sink::{ImageSink, StreamSink};
use crate::copy::stream;
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::plan::{Convert, Input, Shape, SourceName, TargetName};
use crate::progress::Progress;
use crate::report::Report;
use crate::size;
use crate::source::{self, Opened};

/// A raw disk from a stream whose length nobody knows begins with so many bytes, and grows.
const FIRST_SIZE: u64 = 64 << 30;

/// What one run of the command is about.
struct Job {
    plan: Convert,
    report: Report,
    mode: ProgressMode,
}

/// Where a copy comes from.
enum From {
    Disk(Opened),
    Stream,
}

/// What was copied.
struct Copied {
    size: u64,
    digest: Option<String>,
    moved: u64,
    elapsed: Duration,
}

pub(crate) fn run(args: &ConvertArgs, global: &GlobalArgs, report: Report) -> Result<()> {
    let plan = Convert::new(args, global)?;
    let job = Job {
        mode: global.progress,
        plan,
        report,
    };
    interrupt::listen();
    let from = match &job.plan.source.name {
        SourceName::Stdin => From::Stream,
        _ => From::Disk(source::open(&job.plan.source, job.plan.jobs + 1)?),
    };
    match job.plan.target.clone() {
        TargetName::Stdout => job.fill_stdout(from),
        TargetName::File(path) => job.make_file(from, &path),
    }
}

impl Job {
    /// Copies to a file.
    fn make_file(mut self, mut from: From, path: &Path) -> Result<()> {
        let mut work = None;
        let size = match &from {
            From::Disk(disk) => {
                refuse_the_same_file(disk, path)?;
                self.take_sector(disk.sector);
                let size = self.whole_sectors(self.larger(disk.size)?);
                work = disk.identity.clone().map(|source| Work {
                    source,
                    size,
                    shape: shape_in_words(&self.plan.shape),
                });
                Some(size)
            }
            From::Stream => {
                self.take_sector(None);
                self.refuse_unknown_size()?;
                self.plan.size.map(|size| self.whole_sectors(size))
            }
        };
        let mut partial = Partial::new(path, self.plan.force, work.is_some())?;
        let start = partial.start(work, self.plan.restart)?;
        if self.plan.dry_run {
            return self.say_what_would_be(&mut from, path, &start);
        }
        let resumed = start.done();
        let made = self.make(from, &mut partial, start, size);
        let copied = match made {
            Ok(copied) => copied,
            Err((failure, done)) => {
                partial.give_up(done);
                return Err(going_on(failure, done));
            }
        };
        partial.finish()?;
        let converted = Converted::new(&self.plan, path, copied, resumed)?;
        self.report
            .event("summary", &converted, &converted.sentence())
    }

    /// Makes the whole of the new disk under its name for now. A failure comes with the number of bytes
    /// that another run need not copy again.
    fn make(
        &self,
        from: From,
        partial: &mut Partial,
        start: Start,
        size: Option<u64>,
    ) -> Result<Copied, (Failure, u64)> {
        let lost = |failure| (failure, 0);
        let shape = &self.plan.shape;
        let (notes, disk) = match start {
            Start::New(notes) => {
                partial.clear(notes.as_ref()).map_err(lost)?;
                partial.ours();
                let path = partial.target.partial();
                image::make(path, shape, size.unwrap_or(FIRST_SIZE)).map_err(lost)?;
                let disk = image::open(path, Some(shape.format), false).map_err(lost)?;
                (notes, disk)
            }
            Start::Resume(notes) => {
                let done = notes.journal.done;
                let path = partial.target.partial();
                let disk = image::open(path, Some(shape.format), false);
                let disk = disk.map_err(|failure| (failure, done))?;
                partial.ours();
                (Some(notes), disk)
            }
        };
        let identity = match &from {
            From::Disk(disk) => disk.identity.clone(),
            From::Stream => None,
        };
        let hashes = self.plan.verify && matches!(from, From::Stream);
        let mut progress = self.begin("copy", self.total(&from));
        let mut sink = ImageSink::new(disk, notes, &mut progress);
        let read = self.read(from, sink.at(), hashes, &mut |part| sink.take(part));
        let unchanged = read.and_then(|()| identity.map_or(Ok(()), |identity| identity.still()));
        let finished = match unchanged {
            Ok(()) => self
                .finish(sink, partial.target.partial(), size)
                .map_err(lost),
            Err(failure) => {
                let done = sink.give_up();
                Err((failure, done))
            }
        };
        progress.finish();
        let (size, digest) = finished?;
        let mut copied = Copied {
            size,
            digest: None,
            moved: progress.moved(),
            elapsed: progress.elapsed(),
        };
        if self.plan.verify {
            let path = partial.target.partial();
            let digest = self
                .verify(path, size, hashes.then_some(digest))
                .map_err(lost)?;
            copied.digest = Some(digest);
        }
        Ok(copied)
    }

    /// Gives all parts of the source from `at` on.
    fn read(
        &self,
        from: From,
        at: u64,
        hashes: bool,
        take: &mut dyn FnMut(Part) -> Result<()>,
    ) -> Result<()> {
        match from {
            From::Disk(disk) => read::each_part(disk.handles, at, hashes, take)?,
            From::Stream => stream::each_part(self.plan.jobs, self.plan.size, hashes, take)?,
        }
        interrupt::check("the source is unchanged")
    }

    /// Gives the new disk its size, makes it durable and closes it; answers its size and the digest of
    /// what was written.
    fn finish(&self, sink: ImageSink<'_>, path: &Path, size: Option<u64>) -> Result<(u64, String)> {
        let at = sink.at();
        if at == 0 {
            return Err(Failure::new(
                Exit::Failed,
                "the source has no bytes, and a disk must",
            ));
        }
        let size = size.unwrap_or_else(|| self.whole_sectors(at));
        let raw = self.plan.shape.format == FormatName::Raw;
        let (disk, digest) = sink.finish((!raw).then_some(size))?;
        disk.close()?;
        if raw {
            let cut = FileStorage::open(path, true)?;
            let cut = cut
                .file()
                .set_len(size)
                .and_then(|()| cut.file().sync_all());
            cut.map_err(|e| Failure::io("the new disk cannot be given its size", &e))?;
        }
        Ok((size, digest))
    }

    /// Reads the new disk again, and compares it with the source or, where that was a stream, with the
    /// digest of what came; answers the digest.
    fn verify(&self, path: &Path, size: u64, streamed: Option<String>) -> Result<String> {
        forget(path);
        let format = match self.plan.shape.format {
            FormatName::Vhdx => SourceFormat::Vhdx,
            FormatName::Raw => SourceFormat::Raw,
        };
        let target = Input {
            name: SourceName::Image(path.to_owned(), Some(format)),
            search: vdisk::chain::ParentSearch::default(),
        };
        let target = source::open(&target, self.plan.jobs + 1)?;
        let mut progress = self.begin("verify", size);
        let found = match streamed {
            None => {
                let source = source::open(&self.plan.source, self.plan.jobs + 1)?;
                compare::disks(source.handles, target.handles, &mut progress)
            }
            Some(digest) => compare::with_digest(target.handles, &digest, &mut progress),
        };
        progress.finish();
        match found? {
            Found::Equal(digest) => Ok(digest),
            Found::DifferAt(at) => Err(super::compare::different(
                &self.plan.source.name.to_string(),
                &self.plan.target.to_string(),
                at,
            )
            .hint(
                "the copy was thrown away; the source, the target's medium or memory may be bad",
            )),
        }
    }

    /// Copies to stdout.
    fn fill_stdout(self, from: From) -> Result<()> {
        if io::stdout().is_terminal() {
            return Err(Failure::usage("a disk would not look good on a terminal")
                .hint("let a program or a file take it: `| zstd > disk.zst`"));
        }
        if self.plan.dry_run {
            return Err(Failure::usage("--dry-run needs a file as the target"));
        }
        let identity = match &from {
            From::Disk(disk) => disk.identity.clone(),
            From::Stream => None,
        };
        let mut progress = self.begin("copy", self.total(&from));
        let mut sink = StreamSink::new(&mut progress)?;
        let read = self.read(from, 0, false, &mut |part| sink.take(part));
        progress.finish();
        read?;
        identity.map_or(Ok(()), |identity| identity.still())
    }

    fn begin(&self, phase: &'static str, total: u64) -> Progress {
        Progress::new(self.report, self.mode, phase, total)
    }

    /// Bytes that are to be copied, 0 if nobody knows.
    fn total(&self, from: &From) -> u64 {
        match from {
            From::Disk(disk) => disk.size,
            From::Stream => self.plan.size.unwrap_or(0),
        }
    }

    /// The sector of the new disk, where none was asked: the source's.
    fn take_sector(&mut self, source: Option<u32>) {
        let shape = &mut self.plan.shape;
        if shape.sector_size == 0 {
            shape.sector_size = source.unwrap_or(512);
        }
    }

    /// The size of the new disk, whose source has `size` bytes: what was asked for, but none of them is left out.
    fn larger(&self, size: u64) -> Result<u64> {
        let wanted = self.plan.size.unwrap_or(size);
        if wanted < size {
            let has = size::exact(size);
            return Err(
                Failure::usage(format!("--size is less than the source has: {has}"))
                    .hint("leave it out; `diskferry resize` can make the new disk smaller"),
            );
        }
        Ok(wanted)
    }

    fn refuse_unknown_size(&self) -> Result<()> {
        if self.plan.shape.fixed && self.plan.size.is_none() {
            return Err(Failure::usage("how much space a stream needs is not known")
                .hint("--size says it, or leave out --fixed"));
        }
        Ok(())
    }

    /// The size of the new disk: a VHDX has whole sectors, so a raw source may need some bytes more.
    fn whole_sectors(&self, size: u64) -> u64 {
        let sector = u64::from(self.plan.shape.sector_size);
        let whole = size.next_multiple_of(sector);
        if self.plan.shape.format == FormatName::Raw || whole == size {
            return size;
        }
        let more = whole - size;
        self.report.warn(&format!(
            "the new disk is {more} bytes longer: a VHDX has whole sectors"
        ));
        whole
    }

    fn say_what_would_be(&self, from: &mut From, path: &Path, start: &Start) -> Result<()> {
        let mut data = None;
        if let From::Disk(disk) = from
            && let Some(source) = disk.handles.first_mut()
        {
            let mut bytes = 0;
            pieces::each(&mut [&mut **source], start.done(), &mut |piece| {
                if let Piece::Data { len, .. } = piece {
                    bytes += len;
                }
                true
            })?;
            data = Some(bytes);
        }
        let planned = Planned::new(&self.plan, from.kind(), path, (data, start.done()));
        self.report.event("summary", &planned, &planned.sentence())
    }
}

impl From {
    /// The source's format and size, as far as they are known.
    fn kind(&self) -> (&'static str, Option<u64>) {
        match self {
            Self::Disk(disk) => (disk.format, Some(disk.size)),
            Self::Stream => ("raw", None),
        }
    }
}

/// The target must be none of the files that are read: renaming it there would take one away.
fn refuse_the_same_file(source: &Opened, target: &Path) -> Result<()> {
    let Ok(place) = std::fs::canonicalize(target) else {
        return Ok(());
    };
    for file in &source.files {
        if std::fs::canonicalize(file).is_ok_and(|file| file == place) {
            let what = format!("{}: is the source, or a part of it", target.display());
            return Err(Failure::usage(what).hint("give the target another name"));
        }
    }
    Ok(())
}

/// What distinguishes one new disk from another, in the journal.
fn shape_in_words(shape: &Shape) -> String {
    format!("{shape:?}")
}

/// Says of a failed copy that it can be gone on with.
fn going_on(failure: Failure, done: u64) -> Failure {
    if done == 0 {
        return failure;
    }
    failure.and_hint(format!(
        "{} of the disk are kept: the same command goes on; --restart starts over",
        size::show(done)
    ))
}

/// Lets the host forget what it holds in memory of a file, so that reading it shows what the medium has.
fn forget(path: &Path) {
    let Ok(file) = std::fs::File::open(path) else {
        return;
    };
    // A host that keeps it has it read from memory, which is no failure.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
}
