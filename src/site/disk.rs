//! Opening a disk for a server, and finding out whether this host may serve it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockserver::export::Disk;
use mirror::files::{RecordStore, load_record, sidecar_path};
use mirror::record::{Ownership, State};
use mirror::switchover::{Verdict, verdict};
use mirror::way_back::{Side, WayBack};
use mirror::wire::{DiskDescription, DiskFormat};
use uuid::Uuid;
use vdisk::chain::ParentSearch;
use vdisk::disk::{ImageFormat, OpenOptions};
use vdisk::engine::Mark;
use vdisk::info::info;
use vdisk::storage::FileStorage;

use super::kept::{self, KeptSession};
use super::{bound, offered};
use crate::commands::image;
use crate::failure::{Exit, Failure, Result};

/// A disk opened for serving.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    pub(crate) disk: Arc<Disk>,
    pub(crate) mark: Option<Mark>,
    pub(crate) description: DiskDescription,
    pub(crate) read_only: bool,
    /// Where the disks were looked for that it is built on.
    pub(crate) search: ParentSearch,
    /// What was kept of a move that its last server began.
    pub(crate) kept: Option<KeptSession>,
}

/// Open the disk at `path` the way a server wants it: past the page cache, where the file system
/// allows that. Marks do not keep it from being opened; see [`Opened::standing`].
///
/// The record lies beside the file itself, not beside a link to it: else a disk that was handed over
/// could be served again by another name.
pub(crate) fn open(
    path: &Path,
    format: Option<ImageFormat>,
    read_only: bool,
    search: &ParentSearch,
) -> Result<Opened> {
    let found = std::fs::canonicalize(path);
    let found =
        found.map_err(|e| Failure::io(format!("{}: cannot be found", path.display()), &e))?;
    let path = found.as_path();
    let kind = format.unwrap_or_else(|| ImageFormat::of_path(path));
    let options = OpenOptions {
        read_only,
        allow_marked: true,
        format,
        ..OpenOptions::default()
    };
    let description = describe(path, kind)?;
    let disk = image::patiently(|| Disk::open_with(path, &options, search))?;
    // Nobody else can change it any more, and nobody here does yet.
    let kept = if read_only {
        None
    } else {
        kept::look(path, kind)
    };
    let description = DiskDescription {
        size: disk.size(),
        ..description
    };
    Ok(Opened {
        path: path.to_owned(),
        mark: disk.mark(),
        disk,
        description,
        read_only,
        search: search.clone(),
        kept,
    })
}

/// Refuse a disk that another host may own, as far as its record tells; marks in the image tell when it
/// is opened.
pub(crate) fn refuse_moved(path: &Path) -> Result<()> {
    let found = std::fs::canonicalize(path);
    let path =
        found.map_err(|e| Failure::io(format!("{}: cannot be found", path.display()), &e))?;
    refuse_recorded(&path)
}

/// The same of the record beside `path`, whether or not there is a disk of that name.
pub(crate) fn refuse_recorded(path: &Path) -> Result<()> {
    let failed = |why: String| {
        Failure::new(Exit::InUse, format!("{}: {why}", path.display()))
            .hint("do that where it is owned")
    };
    // Without a thread: the process of a machine is not confined yet.
    let record = load_record(&sidecar_path(path));
    let record = record.map_err(|error| failed(error.to_string()))?;
    let record = bound::told(record).map_err(failed)?;
    match verdict(record.as_ref(), None) {
        Verdict::Serve { .. } => Ok(()),
        Verdict::Forward { .. } => Err(failed("the disk was handed over".to_owned())),
        Verdict::Refuse(why) => Err(failed(why)),
    }
}

/// What another host needs to know to make a disk like the one at `path`; its size is not asked here.
fn describe(path: &Path, kind: ImageFormat) -> Result<DiskDescription> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
        .to_owned();
    let mut description = DiskDescription {
        name,
        size: 0,
        block_size: 0,
        logical_sector: 512,
        physical_sector: 4096,
        format: DiskFormat::Raw,
    };
    if kind == ImageFormat::Vhdx {
        let mut storage = image::patiently(|| FileStorage::open(path, false))?;
        let info = info(&mut storage).map_err(|error| error.in_file(path))?;
        description.format = DiskFormat::Vhdx;
        description.block_size = info.block_size;
        description.logical_sector = info.logical_sector;
        description.physical_sector = info.physical_sector;
    }
    Ok(description)
}

/// What this host may do with a disk.
#[derive(Clone, Debug)]
pub(crate) enum Standing {
    /// Serve it; first take a mark out of the image, if there is one.
    Ours { remove_mark: bool },
    /// It was handed over by this record: forward to the new owner.
    HandedOver(Ownership),
    /// It was handed over, and is on its way back: forward where it is known to be.
    Away,
}

impl Opened {
    /// Where its ownership record lies.
    pub(crate) fn record(&self) -> RecordStore {
        RecordStore::open(sidecar_path(&self.path))
    }

    /// Its lineage, if it has a record that can be read.
    pub(super) fn lineage(&self) -> Option<Uuid> {
        let record = self.record().load().ok().flatten();
        record.map(|record| record.disk)
    }

    /// Whether this host may serve it. With `take_over` it may unless the disk follows another one, and says so
    /// durably.
    pub(crate) fn standing(&self, take_over: bool) -> Result<Standing> {
        let store = self.record();
        let record = store.load().map_err(|error| {
            Failure::new(Exit::InUse, format!("{}: {error}", self.path.display()))
                .hint("restore the record, or --take-over if no other host can own the disk")
        })?;
        // What is in its journal belongs to it: not even to who insists.
        if let Some(State::Following { .. }) = record.as_ref().map(|record| &record.state)
            && let Verdict::Refuse(why) = verdict(record.as_ref(), self.mark)
        {
            let what = format!("{}: {why}", self.path.display());
            return Err(Failure::new(Exit::InUse, what).hint("--take-over is of no use here"));
        }
        if take_over {
            if let Some(record) = &record {
                let closed = offered::close_ballot(&store, record);
                closed.map_err(|why| {
                    Failure::new(Exit::InUse, format!("{}: {why}", self.path.display()))
                })?;
                let mut forced = record.forced();
                // A seed becomes a disk of its own.
                if record.is_seed() {
                    forced.disk = Uuid::new_v4();
                }
                let forced = store.persist_and_wait(&forced);
                forced.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
            }
            return Ok(Standing::Ours {
                remove_mark: self.mark.is_some(),
            });
        }
        let record = bound::settle(&store, record.as_ref())
            .and_then(|record| {
                if self.read_only {
                    return Ok(record);
                }
                offered::settle(&store, record)
            })
            .map_err(|why| self.refused(&why))?;
        match (verdict(record.as_ref(), self.mark), record) {
            (Verdict::Serve { remove_mark }, _) => Ok(Standing::Ours { remove_mark }),
            (Verdict::Forward { .. }, Some(record)) => Ok(Standing::HandedOver(record)),
            (Verdict::Forward { .. }, None) => Err(self.refused("its record is missing")),
            (Verdict::Refuse(why), _) => Err(self.refused(&why)),
        }
    }

    /// Whether it is on its way back here, by what is kept of that and by its record.
    pub(crate) fn away(&self, way: Option<&WayBack>) -> Option<Standing> {
        let home = way.is_some_and(|way| matches!(way.side, Side::Home { .. }));
        let record = self.record().load().ok().flatten()?;
        let comes = matches!(
            record.state,
            State::Receiving { .. } | State::Following { .. } | State::Prepared { claim: None, .. }
        );
        (home && comes && !self.read_only).then_some(Standing::Away)
    }

    fn refused(&self, why: &str) -> Failure {
        Failure::new(Exit::InUse, format!("{}: {why}", self.path.display())).hint(
            "--take-over serves it all the same; do so only if no other host can own the disk",
        )
    }

    /// Lets others have the file; the disk must not be in use any more.
    pub(crate) fn unlock(&self) {
        self.disk.unlock();
    }
}

/// Whether a disk of a machine is a VHDX.
pub(crate) fn is_vhdx(disk: &vmm::description::Disk) -> bool {
    let format = disk.format.map(crate::plan::disk_format);
    format.unwrap_or_else(|| ImageFormat::of_path(&disk.path)) == ImageFormat::Vhdx
}
