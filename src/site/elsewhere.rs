//! A disk that is an export of another NBD server: what stands for it here, and whether it may be served.
//!
//! That server knows nothing of owners. So a file is kept here, `NAME.nbd`, that says which export is meant; it is locked
//! while the disk is served, the ownership record lies beside it, and the disk moves under NAME. Must never serve an export
//! that is unlike the one the file is of, nor one that was handed over.

use std::fs::{File, hard_link, read_to_string, remove_file};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use blockserver::export::{Disk, Elsewhere};
use blockserver::nbd::uri::{Address, Endpoint};
use mirror::files::{RecordStore, load_record, sidecar_path};
use mirror::net::SourceDriver;
use mirror::record::{Ownership, State};
use mirror::wire::{DiskDescription, DiskFormat};
use serde::{Deserialize, Serialize};
use vdisk::chain::ParentSearch;
use vdisk::create::default_block_size;
use vdisk::disk::ImageFormat;
use vdisk::storage::FileStorage;

use super::disk::Opened;
use super::{foreign, kept};
use crate::commands::image;
use crate::failure::{Exit, Failure, Result};

/// What the name of the file ends with.
pub(crate) const SUFFIX: &str = ".nbd";
/// Version of the file's form.
const VERSION: u32 = 1;
/// The longest file that is read, in bytes.
const MAX_LEN: u64 = 16 << 10;

/// What has to be said to whoever serves one.
pub(crate) const NOT_PROMISED: &str = "an NBD server knows no owner: nothing keeps others from writing to the export past \
this server, and such writes are neither seen nor moved; what is durable there is what its flush says is; what was sent over a \
connection that is lost is sent again after two seconds, and a server that does it later than that is not noticed; and whoever \
serves the export by another file than this one is not stopped once the disk has moved";

/// An export to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Behind {
    /// Where it is, as every program on this host finds it.
    pub(crate) address: Address,
    /// The file that stands for it.
    pub(crate) file: PathBuf,
}

/// What the file says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    diskferry_nbd_source: u32,
    at: String,
    size: u64,
}

impl Behind {
    /// Begin to use the export: locked, looked at and known to be the one that it was. One that was handed over is not even
    /// connected to, unless it is taken over.
    pub(crate) fn open(&self, (read_only, take_over): (bool, bool)) -> Result<Opened> {
        let known = self.file.exists() || sidecar_path(&self.file).exists();
        if !self.file.exists() {
            self.refuse_what_was_handed_over(take_over)?;
            self.begin(read_only)?;
        }
        let path =
            std::fs::canonicalize(&self.file).map_err(|e| self.failed("cannot be found", &e))?;
        let file = image::patiently(|| FileStorage::open(&path, true))?.into_file();
        let kept = self.kept(&path)?;
        let record = load_record(&sidecar_path(&path));
        let record = record.map_err(|e| self.in_use(&e.to_string()))?;
        if record.is_none() && !take_over {
            let hint = "restore it, or --take-over if no other host can own the disk";
            return Err(self.in_use("its ownership record is missing").hint(hint));
        }
        let record = record.map_or_else(|| first_record(&path), Ok)?;
        let disk = if was_handed_over(&record) && !take_over {
            Disk::elsewhere_no_more(kept.size, file)
        } else {
            let found = self.look(read_only)?;
            if found.size() != kept.size {
                let (now, was) = (found.size(), kept.size);
                let what = format!("{}: the export has {now} bytes and had {was}", self.address);
                return Err(Failure::new(Exit::Mismatch, what)
                    .hint("another export needs a --state of its own"));
            }
            Disk::elsewhere(found, file, known)
        };
        let read_only = read_only || disk.read_only();
        Ok(Opened {
            mark: None,
            description: describe(&path, kept.size),
            read_only,
            search: ParentSearch::default(),
            kept: if read_only {
                None
            } else {
                kept::look(&path, ImageFormat::Raw)
            },
            disk,
            path,
        })
    }

    /// Refuse what this process would serve to itself.
    pub(crate) fn refuse_own(&self, listen: &[Endpoint]) -> Result<()> {
        if foreign::is_one_of(&self.address.endpoint, listen) {
            return Err(Failure::usage(format!(
                "{}: that is this server itself",
                self.address
            )));
        }
        Ok(())
    }

    /// A record without its file: what the export was is known no more, so it is not asked whose it is either.
    fn refuse_what_was_handed_over(&self, take_over: bool) -> Result<()> {
        let record = load_record(&sidecar_path(&self.file));
        let record = record.map_err(|e| self.in_use(&e.to_string()))?;
        if take_over || !record.as_ref().is_some_and(was_handed_over) {
            return Ok(());
        }
        let hint = "restore it, and clients are sent to the new owner";
        Err(self
            .in_use("is missing, and its record says that the disk was handed over")
            .hint(hint))
    }

    fn in_use(&self, why: &str) -> Failure {
        Failure::new(Exit::InUse, format!("{}: {why}", self.file.display()))
    }

    /// The first time: an owner, then the file, so that there is never a file without a record.
    fn begin(&self, read_only: bool) -> Result<()> {
        let found = self.look(read_only)?;
        let kept = Kept {
            diskferry_nbd_source: VERSION,
            at: self.address.to_string(),
            size: found.size(),
        };
        let path = std::path::absolute(&self.file).map_err(|e| self.failed("is no path", &e))?;
        first_record(&path)?;
        write_new(&path, &kept).map_err(|e| self.failed("cannot be made", &e))
    }

    fn look(&self, read_only: bool) -> Result<Elsewhere> {
        Elsewhere::look(&self.address, read_only).map_err(|error| {
            let exit = match error.kind() {
                ErrorKind::Unsupported => Exit::Unsupported,
                _ => Exit::Network,
            };
            Failure::new(exit, format!("{}: {error}", self.address))
        })
    }

    /// What the file says, if it is of this export.
    fn kept(&self, path: &Path) -> Result<Kept> {
        let named = self.file.display();
        let bad = |why: String| Failure::new(Exit::Corrupt, format!("{named}: {why}"));
        let len = path
            .metadata()
            .map_err(|e| self.failed("cannot be read", &e))?
            .len();
        if len > MAX_LEN {
            return Err(bad("is no file of `serve --state`".to_owned()));
        }
        let text = read_to_string(path).map_err(|e| self.failed("cannot be read", &e))?;
        let kept: Kept = serde_json::from_str(&text)
            .map_err(|e| bad(format!("is no file of `serve --state`: {e}")))?;
        if kept.diskferry_nbd_source != VERSION {
            return Err(bad("is of another version".to_owned()));
        }
        if kept.at != self.address.to_string() {
            let what = format!("{named}: stands for {}, not for {}", kept.at, self.address);
            let hint = "another export needs a --state of its own; if that very export is reached at another address now, \
                        write it into the file";
            return Err(Failure::new(Exit::Mismatch, what).hint(hint));
        }
        Ok(kept)
    }

    fn failed(&self, what: &str, error: &std::io::Error) -> Failure {
        Failure::io(format!("{}: {what}", self.file.display()), error)
    }
}

/// Whether nothing may be asked of the export any more.
fn was_handed_over(record: &Ownership) -> bool {
    matches!(record.state, State::Released { .. })
}

/// The record of the disk for which the file at `path` stands; a first one is written if there is none.
fn first_record(path: &Path) -> Result<Ownership> {
    let record = SourceDriver::record(&RecordStore::open(sidecar_path(path)));
    record.map_err(|e| Failure::new(Exit::InUse, e.to_string()))
}

/// The name under which the disk of that file moves: the file's own without its last suffix.
pub(crate) fn name_of(file: &Path) -> Option<&str> {
    let name = file.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    (!name.is_empty() && !name.starts_with('.')).then_some(name)
}

/// What another host needs to know to make a disk like it; the name says of which format.
fn describe(path: &Path, size: u64) -> DiskDescription {
    let name = name_of(path).unwrap_or_default();
    let vhdx = ImageFormat::of_path(Path::new(name)) == ImageFormat::Vhdx;
    DiskDescription {
        name: name.to_owned(),
        size,
        block_size: if vhdx { default_block_size(size) } else { 0 },
        logical_sector: 512,
        physical_sector: 4096,
        format: if vhdx {
            DiskFormat::Vhdx
        } else {
            DiskFormat::Raw
        },
    }
}

/// Make the file whole and durable, unless there is one by now.
fn write_new(path: &Path, kept: &Kept) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".new-{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let mut file = File::create(&beside)?;
    let written = serde_json::to_vec_pretty(kept)
        .map_err(std::io::Error::other)
        .and_then(|text| file.write_all(&text))
        .and_then(|()| file.sync_all())
        .and_then(|()| hard_link(&beside, path));
    remove_file(&beside)?;
    match written {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(folder: &Path, at: &str) -> Behind {
        Behind {
            address: at.parse().unwrap(),
            file: folder.join("a.vhdx.nbd"),
        }
    }

    #[test]
    fn the_file_says_under_which_name_and_as_what_the_disk_moves() {
        assert_eq!(name_of(Path::new("/x/a.vhdx.nbd")), Some("a.vhdx"));
        for none in ["a.vhdx", ".nbd", "/x/..nbd", ".a.nbd"] {
            assert_eq!(name_of(Path::new(none)), None, "{none}");
        }
        let vhdx = describe(Path::new("/x/a.vhdx.nbd"), 1 << 30);
        assert_eq!((vhdx.format, vhdx.block_size), (DiskFormat::Vhdx, 2 << 20));
        let raw = describe(Path::new("/x/a.img.nbd"), 1 << 30);
        assert_eq!((raw.format, raw.name.as_str()), (DiskFormat::Raw, "a.img"));
    }

    /// An export that nobody serves, and what stands for it.
    fn known(folder: &Path) -> (Behind, Kept) {
        let mine = behind(folder, "nbd://127.0.0.1:1/a");
        let kept = Kept {
            diskferry_nbd_source: VERSION,
            at: mine.address.to_string(),
            size: 512,
        };
        write_new(&mine.file, &kept).unwrap();
        (mine, kept)
    }

    #[test]
    fn a_file_of_another_export_or_none_at_all_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (mine, kept) = known(folder.path());
        assert_eq!(mine.kept(&mine.file).unwrap(), kept);
        // Who comes second finds what the first one wrote.
        write_new(&mine.file, &Kept { size: 1024, ..kept }).unwrap();
        assert_eq!(mine.kept(&mine.file).unwrap().size, 512);
        let other = behind(folder.path(), "nbd://127.0.0.1:1/b");
        assert_eq!(other.kept(&mine.file).unwrap_err().exit, Exit::Mismatch);
        for text in [
            "",
            "{}",
            r#"{"diskferry_nbd_source":2,"at":"nbd://127.0.0.1:1/a","size":512}"#,
        ] {
            std::fs::write(&mine.file, text).unwrap();
            assert_eq!(
                mine.kept(&mine.file).unwrap_err().exit,
                Exit::Corrupt,
                "{text}"
            );
        }
    }

    #[test]
    fn a_file_without_a_record_serves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (mine, _) = known(folder.path());
        let refused = mine.open((false, false)).unwrap_err();
        assert_eq!(refused.exit, Exit::InUse, "{}", refused.what);
    }

    #[test]
    fn a_record_that_says_that_the_disk_was_handed_over_lets_nobody_connect_though_its_file_is_gone()
     {
        let folder = tempfile::tempdir().unwrap();
        let mine = behind(folder.path(), "nbd://127.0.0.1:1/a");
        let mut record = Ownership::first(uuid::Uuid::from_u128(1));
        record.state = State::Released {
            session: uuid::Uuid::from_u128(2),
            attempt: 1,
            epoch: 2,
            to: "b".into(),
        };
        let store = RecordStore::open(sidecar_path(&mine.file));
        store.persist_and_wait(&record).unwrap();
        let refused = mine.open((false, false)).unwrap_err();
        assert_eq!(refused.exit, Exit::InUse, "{}", refused.what);
        assert!(refused.what.contains("handed over"), "{}", refused.what);
    }
}
