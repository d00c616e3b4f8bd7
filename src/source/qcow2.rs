//! qcow2, read by the library imago.
//!
//! What imago does not read is found in the header first and refused with words of our own. No file but
//! the image is opened by imago: backing files are opened here, where the caller allows.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, Mapping, StorageOpenOptions};
use vdisk::chain::{MOST_LAYERS, ParentSearch, open_beside};
use vdisk::storage::{FileStorage, Storage as _};
use vdisk::{Error, ErrorKind};

use super::{Parts, Run, Source, failed, foreign, unsupported};
use crate::args::SourceFormat;
use crate::commands::image;
use crate::failure::{Exit, Failure, Result};

/// Runs that are told at once.
const MOST_RUNS: usize = 4096;

/// An image, of which each reader has a share.
struct Image {
    access: Arc<FormatAccess<File>>,
    path: Arc<Path>,
    /// Keeps the locks.
    _storages: Arc<Vec<FileStorage>>,
}

/// A disk and those it is built on, while they are opened.
struct Opening<'a> {
    top: &'a Path,
    search: &'a ParentSearch,
    storages: Vec<FileStorage>,
    seen: Vec<(u64, u64)>,
}

pub(super) fn open(path: &Path, search: &ParentSearch, handles: usize) -> Result<Parts> {
    let mut opening = Opening {
        top: path,
        search,
        storages: Vec::new(),
        seen: Vec::new(),
    };
    let storage = image::open_storage(path)?;
    let access = Arc::new(opening.layer(storage, SourceFormat::Qcow2, search.parent.as_deref())?);
    let files: Vec<PathBuf> = opening
        .storages
        .iter()
        .map(|s| s.path().to_owned())
        .collect();
    let storages = Arc::new(opening.storages);
    let handle = || -> Box<dyn Source> {
        Box::new(Image {
            access: Arc::clone(&access),
            path: path.into(),
            _storages: Arc::clone(&storages),
        })
    };
    Ok(Parts {
        handles: (0..handles).map(|_| handle()).collect(),
        sector: None,
        files,
        versions: Vec::new(),
    })
}

impl Opening<'_> {
    /// Opens one image and those beneath; `given` is the one beneath, whatever the image says.
    fn layer(
        &mut self,
        mut storage: FileStorage,
        format: SourceFormat,
        given: Option<&Path>,
    ) -> Result<FormatAccess<File>> {
        let path = storage.path().to_owned();
        let unreadable = |error| failed(&path, "cannot be read as qcow2", error);
        let found = storage.file().metadata().map_err(unreadable)?;
        let this = (found.dev(), found.ino());
        if self.seen.contains(&this) || self.seen.len() == MOST_LAYERS {
            let error = Error::corrupt("is built on itself, or on too many disks");
            return Err(foreign(error, &path));
        }
        self.seen.push(this);
        if format == SourceFormat::Qcow2 {
            refuse(&mut storage, &path)?;
        }
        let options = StorageOpenOptions::new().filename(&path);
        let file = storage.file().try_clone().map_err(unreadable)?;
        self.storages.push(storage);
        let file = File::from_open_file(file, options).map_err(unreadable)?;
        if format == SourceFormat::Raw {
            let raw = Raw::open_image(file, false).map_err(unreadable)?;
            return Ok(FormatAccess::new(raw));
        }
        let mut qcow2 = Qcow2::<File>::open_image(file, false).map_err(unreadable)?;
        qcow2.set_data_file(None);
        let backing = self.backing(&path, &qcow2, given)?;
        let backing = backing.map(|(storage, format)| self.layer(storage, format, None));
        qcow2.set_backing(backing.transpose()?);
        Ok(FormatAccess::new(qcow2))
    }

    /// The file that an image is built on, and its format.
    fn backing(
        &self,
        path: &Path,
        image: &Qcow2<File>,
        given: Option<&Path>,
    ) -> Result<Option<(FileStorage, SourceFormat)>> {
        let Some(named) = image.implicit_backing_file() else {
            if given.is_some() {
                let what = format!(
                    "{}: has no parent; none can be given for it",
                    path.display()
                );
                return Err(Failure::usage(what));
            }
            return Ok(None);
        };
        if let Some(given) = given {
            let storage = image::open_storage(given)?;
            return Ok(Some((
                storage,
                readable(path, SourceFormat::of_path(given))?,
            )));
        }
        let named = named.strip_prefix("file:").unwrap_or(named);
        if named.contains(':') {
            let what = format!("is built on {named}, which is no name of a file");
            return Err(unsupported(path, &what));
        }
        let format = match image.implicit_backing_format().map(String::as_str) {
            Some("qcow2") => SourceFormat::Qcow2,
            Some("raw" | "file") => SourceFormat::Raw,
            Some(other) => {
                let what = format!("is built on a disk of the format {other}");
                return Err(unsupported(path, &what));
            }
            None => readable(path, SourceFormat::of_path(Path::new(named)))?,
        };
        let open = || open_beside(self.top, path, named, self.search);
        Ok(Some((image::patiently(open)?, format)))
    }
}

/// The format of a disk that a qcow2 is built on, if that is read.
fn readable(path: &Path, format: SourceFormat) -> Result<SourceFormat> {
    if matches!(format, SourceFormat::Raw | SourceFormat::Qcow2) {
        return Ok(format);
    }
    let what = format!("is built on a disk of the format {}", format.name());
    Err(unsupported(path, &what))
}

/// Refuses what imago reads not at all, or wrongly.
fn refuse(storage: &mut FileStorage, path: &Path) -> Result<()> {
    let mut header = [0; 80];
    let read = storage.read_at(0, &mut header);
    read.map_err(|e| failed(path, "cannot be read", e))?;
    let u32_at = |at: usize| {
        header[at..]
            .first_chunk()
            .map_or(0, |b| u32::from_be_bytes(*b))
    };
    let u64_at = |at: usize| {
        header[at..]
            .first_chunk()
            .map_or(0, |b| u64::from_be_bytes(*b))
    };
    if !header.starts_with(b"QFI\xfb") {
        return Err(foreign(Error::corrupt("is not a qcow2"), path));
    }
    let version = u32_at(4);
    if !(2..=3).contains(&version) {
        return Err(unsupported(
            path,
            &format!("is a qcow2 of version {version}"),
        ));
    }
    if u32_at(32) != 0 {
        return Err(unsupported(path, "is an encrypted qcow2"));
    }
    // A size that no table covers would be gone through for years.
    let bits = u32_at(20);
    let reach = u64::from(u32_at(36)).checked_shl(bits.saturating_mul(2).saturating_sub(3));
    if !(9..=21).contains(&bits) || reach.is_none_or(|reach| reach < u64_at(24)) {
        let what = "its table is too short for the size of the disk";
        return Err(foreign(Error::corrupt(what), path));
    }
    let features = if version == 3 { u64_at(72) } else { 0 };
    let has = |bit: u32| features & (1 << bit) != 0;
    if has(1) {
        let what = "says of itself that it is corrupt: `qemu-img check -r all` may mend it";
        return Err(foreign(Error::corrupt(what), path));
    }
    let what = if has(2) {
        "keeps its data in another file"
    } else if has(3) {
        "has clusters compressed by another method than zlib (zstd, most likely)"
    } else if has(4) {
        "has extended L2 entries (subclusters)"
    } else if has(0) {
        let what = "was not closed: `qemu-img check -r all` brings its reference counts in order";
        return Err(foreign(Error::new(ErrorKind::NeedsRepair, what), path));
    } else if features >> 5 != 0 {
        "has features that are not known here"
    } else {
        return Ok(());
    };
    Err(unsupported(path, what))
}

impl Image {
    fn failed(&self, what: &str, error: std::io::Error) -> Failure {
        failed(&self.path, what, error)
    }
}

impl Source for Image {
    fn size(&self) -> u64 {
        self.access.size()
    }

    fn runs(&mut self, offset: u64, len: u64) -> Result<Vec<Run>> {
        let (mut runs, mut at): (Vec<Run>, _) = (Vec::new(), offset);
        while at < offset + len && runs.len() < MOST_RUNS {
            let found = self.access.get_mapping(at, offset + len - at);
            let (mapping, len) = found.map_err(|e| self.failed("its tables cannot be read", e))?;
            let zero = matches!(mapping, Mapping::Zero { .. });
            if len == 0 {
                let what = format!("{}: tells nothing of byte {at}", self.path.display());
                return Err(Failure::new(Exit::Corrupt, what));
            }
            at += len;
            match runs.last_mut() {
                Some(last) if last.zero == zero => last.len += len,
                _ => runs.push(Run { len, zero }),
            }
        }
        Ok(runs)
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let read = self.access.read(buffer, offset);
        read.map_err(|e| self.failed("cannot be read", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut [u8; 80])) -> Option<Exit> {
        let mut header = [0; 80];
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        (header[23], header[39]) = (16, 1);
        change(&mut header);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), header).unwrap();
        let mut storage = FileStorage::open(file.path(), false).unwrap();
        refuse(&mut storage, file.path())
            .err()
            .map(|failure| failure.exit)
    }

    #[test]
    fn what_is_not_read_is_refused_with_a_way_out() {
        assert_eq!(refused(|_| {}), None);
        assert_eq!(refused(|h| h[7] = 2), None);
        assert_eq!(refused(|h| h[7] = 4), Some(Exit::Unsupported));
        assert_eq!(refused(|h| h[0] = 0), Some(Exit::Corrupt));
        // A byte more than its one entry of the table covers, and clusters of no size.
        assert_eq!(refused(|h| h[28] = 0x20), None);
        assert_eq!(refused(|h| (h[28], h[31]) = (0x20, 1)), Some(Exit::Corrupt));
        assert_eq!(refused(|h| h[23] = 0), Some(Exit::Corrupt));
        assert_eq!(refused(|h| h[35] = 2), Some(Exit::Unsupported));
        assert_eq!(refused(|h| h[79] = 1), Some(Exit::NeedsRepair));
        assert_eq!(refused(|h| h[79] = 2), Some(Exit::Corrupt));
        for bits in [4, 8, 16, 32] {
            assert_eq!(refused(|h| h[79] = bits), Some(Exit::Unsupported));
        }
        // Version 2 has no such field.
        assert_eq!(refused(|h| (h[7], h[79]) = (2, 8)), None);
    }
}
