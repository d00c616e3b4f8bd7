//! A package of changes, applied to the disk that the package left upon which it builds.
//!
//! What a package leaves is told by the disk's `DataWriteGuid`, which is its number, and which every program
//! that changes a VHDX disk makes another one first. The order, each step durable before the next:
//!
//! ```text
//!   larger, if it must be ─► marked incomplete ─► all of it ─► mark removed ─► smaller, if it must be
//!   └──────── the version of applying this package ───────┘    └──── the version of this package ────┘
//! ```
//!
//! So a disk without a mark holds what one package left or the next, and one with a mark is opened by nobody else;
//! half of one package is never taken for what another builds upon.

use std::path::Path;

use package::{Item, applying};
use uuid::Uuid;
use vdisk::chain::{ParentSearch, open_chain};
use vdisk::disk::{Disk, OpenOptions};
use vdisk::engine::Mark;
use vdisk::format::Guid;

use super::super::image;
use super::{Imported, Job};
use crate::args::FormatName;
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::plan::{format_of, library_format};
use crate::site;

/// The versions that a disk's data may have.
#[derive(Clone, Copy, Debug)]
struct Versions {
    /// What the package left upon which this one builds.
    base: Guid,
    /// While this one is applied.
    applying: Guid,
    /// What this one leaves.
    own: Guid,
}

/// What a disk is to a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// What the package left upon which this one builds.
    Base,
    /// Half of this one: an import was interrupted.
    Begun,
    /// What this package leaves.
    Done,
}

impl Job<'_> {
    /// Brings the disk from what the package `base` left to what this one leaves.
    pub(super) fn apply(&self, path: &Path, base: Uuid) -> Result<Imported> {
        if format_of(path) != FormatName::Vhdx {
            let what = format!(
                "{}: changes are applied to a VHDX disk only",
                path.display()
            );
            return Err(Failure::new(Exit::Unsupported, what).hint(
                "a raw disk cannot say what it holds, nor that it is incomplete: import the first package as VHDX",
            ));
        }
        if !path.exists() {
            let what = format!(
                "{}: is not there, and this package has only changes",
                path.display()
            );
            return Err(
                Failure::new(Exit::Failed, what).hint(format!("import package {base} first"))
            );
        }
        site::disk::refuse_moved(path)?;
        self.package.refuse_incomplete()?;
        let versions = self.versions(base)?;
        let (disk, standing) = open(path, versions, None)?;
        drop(disk);
        if standing != Standing::Done {
            self.read_all()?;
            self.mark(path, versions)?;
        }
        let written = if standing == Standing::Done {
            0
        } else {
            let (disk, _) = open(path, versions, Some(versions.applying))?;
            let written = self.write(disk, path)?;
            let (mut disk, _) = open(path, versions, Some(versions.own))?;
            disk.park(None)?;
            written
        };
        let shrunk = self.shrink(path, versions)?;
        Ok(Imported {
            already: standing == Standing::Done && !shrunk,
            ..self.imported(path, written)
        })
    }

    /// Says in the disk that it is incomplete. One that is to become larger becomes so before, as a marked one
    /// cannot: it holds no less for it.
    fn mark(&self, path: &Path, versions: Versions) -> Result<()> {
        let (mut disk, standing) = open(path, versions, Some(versions.applying))?;
        if standing != Standing::Base {
            return Ok(());
        }
        let size = self.package.manifest.disk.size;
        if disk.size() < size {
            disk.resize(size, false)?;
        }
        Ok(disk.park(Some(Mark::Incomplete))?)
    }

    /// A disk that is to become smaller becomes so at the end: until then it holds more than it must.
    fn shrink(&self, path: &Path, versions: Versions) -> Result<bool> {
        let (mut disk, _) = open(path, versions, Some(versions.own))?;
        let size = self.package.manifest.disk.size;
        let larger = disk.size() > size;
        if larger {
            disk.resize(size, true)?;
            disk.close()?;
        }
        Ok(larger)
    }

    fn versions(&self, base: Uuid) -> Result<Versions> {
        let version = |package: Uuid| package.to_string().parse::<Guid>();
        let own = self.package.manifest.package;
        Ok(Versions {
            base: version(base)?,
            applying: version(applying(own))?,
            own: version(own)?,
        })
    }

    /// Finds all of the package to be sound, before the first byte is written.
    fn read_all(&self) -> Result<()> {
        let mut progress = self.progress("check", self.stored());
        let mut read = Ok(());
        for (number, entry) in self.package.manifest.numbered() {
            read = self.package.read(number, &mut |_| Ok(()));
            if read.is_err() {
                break;
            }
            progress.advance(entry.length, entry.length);
        }
        progress.finish();
        read
    }

    fn write(&self, mut disk: Disk, path: &Path) -> Result<u64> {
        if disk.size() < self.package.manifest.disk.size {
            // It became larger before it was marked, if it was this package.
            let what = format!("{}: is smaller than the package says", path.display());
            return Err(Failure::new(Exit::Mismatch, what)
                .hint("it is half of another package with the same number; import that one"));
        }
        let mut progress = self.progress("import", 0);
        let applied = self.each_item(0, &mut |item| {
            interrupt::check("the disk is incomplete until the same command has ended")?;
            match item {
                Item::Data { offset, bytes } => {
                    disk.write_at(offset, &bytes)?;
                    let len = bytes.len() as u64;
                    progress.advance(len, len);
                }
                Item::Zeros { offset, len } => disk.zero(offset, len)?,
            }
            Ok(())
        });
        progress.finish();
        let finished = applied.and_then(|()| {
            disk.flush()?;
            // The mark stays.
            Ok(disk.close()?)
        });
        finished.map_err(|failure| going_on(failure, path))?;
        Ok(progress.moved())
    }
}

/// The disk, if it is in one of these states. With its next change it gets the version `becomes`, or keeps its own.
fn open(path: &Path, versions: Versions, becomes: Option<Guid>) -> Result<(Disk, Standing)> {
    let options = OpenOptions {
        allow_marked: true,
        format: Some(library_format(FormatName::Vhdx)),
        same_content: becomes.is_none(),
        data_write: becomes,
        ..OpenOptions::default()
    };
    let chain = image::patiently(|| open_chain(path, &options, &ParentSearch::default()))?;
    let layer = chain.top;
    let (version, mark) = (layer.data_write, layer.engine.mark());
    let is_one_of = |these: [Guid; 2]| these.contains(&version);
    let standing = match mark {
        None if version == versions.own => Standing::Done,
        // Of one that was to be marked next nothing was written yet.
        None if is_one_of([versions.base, versions.applying]) => Standing::Base,
        Some(Mark::Incomplete) if is_one_of([versions.applying, versions.own]) => Standing::Begun,
        Some(Mark::Incomplete) if version == versions.base => {
            return Err(unfinished(path, version));
        }
        _ => return Err(not_the_base(path, version, versions.base)),
    };
    Ok((Disk::new(Box::new(layer.storage), layer.engine), standing))
}

fn not_the_base(path: &Path, version: Guid, base: Guid) -> Failure {
    let what = format!(
        "{}: is not what package {base} left, upon which this one builds: its version is {version}",
        path.display()
    );
    Failure::new(Exit::Mismatch, what).hint(
        "it was written since, or packages are missing in between: import those first, or a package of the whole disk",
    )
}

fn unfinished(path: &Path, base: Guid) -> Failure {
    let what = format!(
        "{}: the import of package {base} was interrupted",
        path.display()
    );
    Failure::new(Exit::Mismatch, what).hint("import that one again first")
}

fn going_on(failure: Failure, path: &Path) -> Failure {
    let kept = format!(
        "{} is incomplete, and opened by no other command, until the same import has ended",
        path.display()
    );
    Failure {
        hint: Some(match failure.hint {
            Some(hint) => format!("{hint}; {kept}"),
            None => kept,
        }),
        ..failure
    }
}
