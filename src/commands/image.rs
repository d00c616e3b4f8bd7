//! Opening and making image files: where a path and a format become one of the library's storages.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use vdisk::ErrorKind;
use vdisk::chain::{ParentSearch, create_child};
use vdisk::create::CreateOptions;
use vdisk::disk::{Disk, ImageFormat, OpenOptions, random_bits};
use vdisk::info::Info;
use vdisk::storage::{FileStorage, Storage as _};

use crate::args::FormatName;
use crate::failure::{Failure, Result};
use crate::plan::{self, Shape};

/// How long something is waited for that a killed server may still hold.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// Opens the disk at `path`; without a format its suffix says.
pub(crate) fn open(path: &Path, format: Option<FormatName>, read_only: bool) -> Result<Disk> {
    open_chain(path, &options(format, read_only), &ParentSearch::default())
}

/// The same, with the disks it is built on found as `search` says.
pub(crate) fn open_chain(
    path: &Path,
    options: &OpenOptions,
    search: &ParentSearch,
) -> Result<Disk> {
    patiently(|| Disk::open_with(path, options, search))
}

/// Tries again for a while if the file is locked: the kernel gives a killed server's lock back only
/// when the last of its requests has ended.
pub(crate) fn patiently<T>(mut open: impl FnMut() -> vdisk::Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match open() {
            Err(e) if e.kind() == ErrorKind::Locked && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return Ok(result?),
        }
    }
}

/// How the library is to open a disk.
pub(crate) fn options(format: Option<FormatName>, read_only: bool) -> OpenOptions {
    OpenOptions {
        read_only,
        format: format.map(|format| match format {
            FormatName::Vhdx => ImageFormat::Vhdx,
            FormatName::Raw => ImageFormat::Raw,
        }),
        ..OpenOptions::default()
    }
}

/// Makes a differencing disk at `path` over the disk at `parent`.
pub(crate) fn make_child(path: &Path, parent: &Path, block_size: Option<u32>) -> Result<()> {
    patiently(|| {
        let mut random = random_bits;
        let options = CreateOptions {
            block_size,
            ..CreateOptions::new(0, &mut random)
        };
        create_child(path, parent, options)
    })
}

/// Makes an empty image of `shape` with a disk of `size` bytes, its space reserved if it is fixed and
/// the host can do that; the file must not exist.
pub(crate) fn make(path: &Path, shape: &Shape, size: u64) -> Result<()> {
    let mut storage = make_sparse(path, shape, size)?;
    if shape.fixed {
        let failed = |e| vdisk::Error::io("cannot reserve the space", e).in_file(path);
        let len = storage.len().map_err(failed)?;
        storage.reserve(0, len).map_err(failed)?;
    }
    Ok(())
}

/// The same, all of its space a hole.
pub(crate) fn make_sparse(path: &Path, shape: &Shape, size: u64) -> Result<FileStorage> {
    let mut storage = FileStorage::create(path)?;
    match shape.format {
        FormatName::Raw => set_len(&mut storage, path, size)?,
        FormatName::Vhdx => {
            let mut random = random_bits;
            let options = CreateOptions {
                block_size: shape.block_size,
                logical_sector: shape.sector_size,
                fixed: shape.fixed,
                ..CreateOptions::new(size, &mut random)
            };
            vdisk::create::create(&mut storage, options).map_err(|e| e.in_file(path))?;
        }
    }
    Ok(storage)
}

fn set_len(storage: &mut FileStorage, path: &Path, size: u64) -> Result<()> {
    let resized = storage.set_len(size).and_then(|()| storage.flush());
    resized.map_err(|e| vdisk::Error::io("cannot be given its size", e).in_file(path))?;
    Ok(())
}

/// What is known of an image without reading its table.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Known {
    Vhdx(Box<Info>),
    Raw(RawInfo),
}

/// What is known of a raw image.
#[derive(Debug, Serialize)]
pub(crate) struct RawInfo {
    /// Always "raw".
    pub(crate) format: &'static str,
    pub(crate) virtual_size: u64,
    pub(crate) file_len: u64,
}

impl Known {
    pub(crate) fn virtual_size(&self) -> u64 {
        match self {
            Self::Vhdx(info) => info.virtual_size,
            Self::Raw(info) => info.virtual_size,
        }
    }
}

/// Opens an image's file for reading, without looking into it.
pub(crate) fn open_storage(path: &Path) -> Result<FileStorage> {
    let storage = patiently(|| FileStorage::open(path, false))?;
    let kind = storage
        .file()
        .metadata()
        .map_err(|e| Failure::io(format!("{}: cannot be examined", path.display()), &e))?;
    if kind.is_dir() {
        return Err(Failure::usage(format!(
            "{}: is a folder, not a disk",
            path.display()
        )));
    }
    Ok(storage)
}

/// Reads what is known of the image at `path`.
pub(crate) fn know(path: &Path, given: Option<FormatName>) -> Result<Known> {
    let mut storage = open_storage(path)?;
    let format = given.unwrap_or_else(|| plan::format_of(path));
    if given.is_none() && format == FormatName::Raw {
        refuse_disguised(&mut storage, path)?;
    }
    let file_len = storage
        .len()
        .map_err(|e| Failure::io(format!("{}: cannot be examined", path.display()), &e))?;
    Ok(match format {
        FormatName::Vhdx => Known::Vhdx(Box::new(
            vdisk::info::info(&mut storage).map_err(|e| e.in_file(path))?,
        )),
        FormatName::Raw => Known::Raw(RawInfo {
            format: "raw",
            virtual_size: file_len,
            file_len,
        }),
    })
}

/// A file that looks like VHDX and is not called so: somebody must say which it is.
fn refuse_disguised(storage: &mut FileStorage, path: &Path) -> Result<()> {
    let mut start = [0; 8];
    storage
        .read_at(0, &mut start)
        .map_err(|e| Failure::io(format!("{}: cannot be read", path.display()), &e))?;
    if &start == b"vhdxfile" {
        let what = format!("{}: its name says raw, its content VHDX", path.display());
        return Err(Failure::usage(what).hint("say which it is: --format vhdx or --format raw"));
    }
    Ok(())
}

/// Bytes that the file takes on the host.
pub(crate) fn size_on_disk(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path)
        .map_err(|e| Failure::io(format!("{}: cannot be examined", path.display()), &e))?;
    Ok(found.blocks() * 512)
}
