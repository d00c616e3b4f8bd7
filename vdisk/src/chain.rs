//! Chains: a differencing disk, the disk it is built on, and so on (MS-VHDX 2.6.2.6).
//!
//! Driver: opens files. **Where a parent is looked for.** An image names its parent, and an image is
//! not trusted: only the path from the child's folder is followed, only inside the folders that the
//! caller allows (the folder of the disk that is opened, unless told otherwise), and the kernel is
//! told to leave them by no `..` and no symbolic link. Paths of Windows are kept, never followed.
//!
//! A parent is opened for reading and held by a shared lock, and must be the very version that the
//! child was made from.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, fcntl_getfl, fcntl_setfl, openat2};

use crate::create::CreateOptions;
use crate::disk::{
    ImageFormat, OpenOptions, create_file, open_child_engine_with, open_layer, random_bits,
};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Code, Guid, ParentLocator};
use crate::storage::{FileStorage, Storage as _};

/// More disks than this do not make a chain.
pub const MOST_LAYERS: usize = 256;

/// Bytes of a block of a differencing disk for which none was asked. A block that is wholly the child's
/// own is read and written without the engine, and small blocks become that sooner.
pub const CHILD_BLOCK_SIZE: u32 = 2 << 20;

/// Where the parents of a disk may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentSearch {
    /// The parent of the disk that is opened, whatever it says itself. The caller vouches for it.
    pub parent: Option<PathBuf>,
    /// Folders in which parents may lie; when empty, the folder of the disk that is opened.
    pub folders: Vec<PathBuf>,
}

/// What a layer says of itself and of the one beneath it.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// The version of its data.
    pub data_write: Guid,
    /// Bytes of a logical sector.
    pub sector: u32,
    /// The disk it is built on.
    pub parent: Option<ParentLocator>,
}

/// One disk of a chain: its file, and the engine that knows where its bytes are.
#[derive(Debug)]
pub struct Layer {
    /// The file, locked.
    pub storage: FileStorage,
    /// Its engine. All but the first layer's are read-only.
    pub engine: Engine,
    /// The version of its data.
    pub data_write: Guid,
    /// Bytes of a logical sector; 0 where the image does not say.
    pub sector: u32,
}

/// A disk and all that it is built on.
#[derive(Debug)]
pub struct Chain {
    /// The disk itself.
    pub top: Layer,
    /// Its parent, the parent of that, and so on.
    pub parents: Vec<Layer>,
}

impl Chain {
    /// The layer that was opened last.
    fn last(&self) -> &Layer {
        self.parents.last().unwrap_or(&self.top)
    }
}

/// Open the disk at `path` and all that it is built on.
///
/// Beyond the failures of a single disk: `Corrupt` when a parent is not the version that its child
/// was made from, or the chain has a cycle; `NoParent` when a parent is outside the folders, cannot be
/// opened, or only Windows could find it.
pub fn open_chain(path: &Path, options: &OpenOptions, search: &ParentSearch) -> Result<Chain> {
    let folders = allowed_folders(path, search)?;
    let (top, mut lineage) = open_one(FileStorage::open(path, !options.read_only)?, options)?;
    let mut seen = vec![identity(&top)?];
    let mut chain = Chain {
        top,
        parents: Vec::new(),
    };
    if search.parent.is_some() && lineage.parent.is_none() {
        let what = "has no parent; none can be given for it";
        return Err(Error::invalid(what).in_file(path));
    }
    let mut given = search.parent.clone();
    while let Some(locator) = lineage.parent.take() {
        let child = chain.last().storage.path().to_owned();
        if seen.len() == MOST_LAYERS {
            let what = format!("is built on more than {} disks", MOST_LAYERS - 1);
            let error = Error::corrupt(what).coded(Code::ChainTooDeep);
            return Err(error.in_file(path));
        }
        let storage = match given.take() {
            Some(parent) => FileStorage::open(&parent, false)?,
            None => find_parent(&child, &locator, &folders)?,
        };
        let parent_options = OpenOptions {
            read_only: true,
            alignment: 1,
            format: Some(ImageFormat::Vhdx),
            ..*options
        };
        let (layer, next) = open_one(storage, &parent_options)?;
        let parent = layer.storage.path().to_owned();
        let this = identity(&layer)?;
        if seen.contains(&this) {
            let what = format!("{} is built on itself", parent.display());
            return Err(Error::corrupt(what).coded(Code::ChainCycle).in_file(&child));
        }
        fits(&lineage, &locator, &next, &parent).map_err(|error| error.in_file(&child))?;
        seen.push(this);
        chain.parents.push(layer);
        lineage = next;
    }
    Ok(chain)
}

fn open_one(mut storage: FileStorage, options: &OpenOptions) -> Result<(Layer, Lineage)> {
    let path = storage.path().to_owned();
    let (engine, lineage) =
        open_layer(&mut storage, &path, options).map_err(|error| error.in_file(&path))?;
    let layer = Layer {
        storage,
        engine,
        data_write: lineage.data_write,
        sector: lineage.sector,
    };
    Ok((layer, lineage))
}

/// Device and number of a layer's file.
fn identity(layer: &Layer) -> Result<(u64, u64)> {
    let path = layer.storage.path();
    let status = layer.storage.file().metadata();
    let status = status.map_err(|error| Error::io("cannot be asked", error).in_file(path))?;
    Ok((status.dev(), status.ino()))
}

/// Whether the disk at `path` may be what a child names as its parent.
fn fits(child: &Lineage, locator: &ParentLocator, parent: &Lineage, path: &Path) -> Result<()> {
    if !locator.linkages()?.contains(&parent.data_write) {
        return Err(Error::corrupt(format!(
            "its parent {} was changed after this disk was made from it (its data is version {}): \
             what this disk would read is not what was written",
            path.display(),
            parent.data_write
        ))
        .coded(Code::ParentChanged));
    }
    if child.sector != parent.sector {
        return Err(Error::corrupt(format!(
            "has sectors of {} bytes and its parent {} of {}",
            child.sector,
            path.display(),
            parent.sector
        ))
        .coded(Code::ParentSectors));
    }
    Ok(())
}

fn allowed_folders(path: &Path, search: &ParentSearch) -> Result<Vec<PathBuf>> {
    let real = |folder: &Path| {
        let failed = |error| Error::io("cannot be found", error).in_file(folder);
        folder.canonicalize().map_err(failed)
    };
    if search.folders.is_empty() {
        return Ok(vec![real(&folder_of(path)?)?]);
    }
    search.folders.iter().map(|folder| real(folder)).collect()
}

/// The folder in which the file at `path` really lies.
fn folder_of(path: &Path) -> Result<PathBuf> {
    let failed = |error| Error::io("cannot be found", error).in_file(path);
    let real = path.canonicalize().map_err(failed)?;
    Ok(real.parent().unwrap_or(Path::new("/")).to_owned())
}

/// Open the parent that `child` names, inside one of the folders.
fn find_parent(child: &Path, locator: &ParentLocator, folders: &[PathBuf]) -> Result<FileStorage> {
    let Some(relative) = locator.relative_path() else {
        let paths: Vec<&str> = locator.pairs().map(|(_, value)| value).collect();
        let what = format!(
            "names its parent only by paths of Windows ({})",
            paths.join(", ")
        );
        return Err(Error::new(ErrorKind::NoParent, what).in_file(child));
    };
    open_named(child, &relative, folders)
}

/// Open, for reading, another file that the image at `path` names by `named`, as a parent is opened:
/// inside the folders that `search` allows for the disk at `top`, and nowhere else.
///
/// For images of other formats that consist of several files. `NoParent` if it is elsewhere or cannot be
/// opened.
pub fn open_beside(
    top: &Path,
    path: &Path,
    named: &str,
    search: &ParentSearch,
) -> Result<FileStorage> {
    open_named(path, named, &allowed_folders(top, search)?)
}

fn open_named(child: &Path, named: &str, folders: &[PathBuf]) -> Result<FileStorage> {
    let wanted = normal(&folder_of(child)?.join(named));
    for folder in folders {
        let Ok(inside) = wanted.strip_prefix(folder) else {
            continue;
        };
        let file = open_beneath(folder, inside).map_err(|error| {
            let what = format!(
                "{}, which it names, cannot be opened: {error}",
                wanted.display()
            );
            Error::new(ErrorKind::NoParent, what).in_file(child)
        })?;
        return FileStorage::of(file, &wanted, false);
    }
    let what = format!(
        "names {}, outside the folders in which parents may be",
        wanted.display()
    );
    Err(Error::new(ErrorKind::NoParent, what).in_file(child))
}

/// `path` without `.` and `..`, by its words alone.
fn normal(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                result.pop();
            }
            Component::CurDir => {}
            part => result.push(part),
        }
    }
    result
}

fn open_beneath(folder: &Path, inside: &Path) -> std::io::Result<File> {
    // Not waiting: a pipe in the parent's place would have nobody at its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(File::open(folder)?, inside, flags, Mode::empty(), within)?;
    let file = File::from(file);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

/// What the image in `storage` says of its parent.
pub(crate) fn locator_of(storage: &mut FileStorage) -> Result<ParentLocator> {
    let reading = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let (_, lineage) =
        open_child_engine_with(storage, &reading, &mut random_bits, |options| options)?;
    let parent = lineage.parent;
    parent.ok_or_else(|| Error::invalid("is not built on another disk"))
}

/// Create a differencing disk at `path`, which must not exist, over the disk at `parent`, durably.
///
/// Size, sectors, identity and the metadata items of the disk are the parent's, whatever `options` say. The parent must not be written from then on, or the child is lost.
pub fn create_child(path: &Path, parent: &Path, options: CreateOptions<'_>) -> Result<()> {
    let read = OpenOptions {
        read_only: true,
        format: Some(ImageFormat::Vhdx),
        ..OpenOptions::default()
    };
    let mut storage = FileStorage::open(parent, false)?;
    let info = crate::info::info(&mut storage).map_err(|error| error.in_file(parent))?;
    let items = crate::metadata::of_disk(&mut storage).map_err(|error| error.in_file(parent))?;
    let (mut layer, lineage) = open_one(storage, &read)?;
    // Else a power cut could bring back an older content of the parent under the same version.
    layer
        .storage
        .flush()
        .map_err(|error| Error::io("cannot be made durable", error).in_file(parent))?;
    let relative = relative_path(&folder_of_new(path)?, parent)?;
    let options = CreateOptions {
        virtual_size: info.virtual_size,
        block_size: Some(options.block_size.unwrap_or(CHILD_BLOCK_SIZE)),
        logical_sector: info.logical_sector,
        physical_sector: info.physical_sector,
        disk_id: Some(info.ids.disk),
        items: crate::metadata::beyond_the_known(items),
        parent: Some(ParentLocator::new(lineage.data_write, &relative)),
        ..options
    };
    let made = create_file(path, options);
    drop(layer);
    made
}

fn folder_of_new(path: &Path) -> Result<PathBuf> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let failed = |error| Error::io("cannot be found", error).in_file(folder);
    folder.canonicalize().map_err(failed)
}

/// The way from `folder`, which is real, to the file at `path`.
pub(crate) fn relative_path(folder: &Path, path: &Path) -> Result<String> {
    let failed = |error| Error::io("cannot be found", error).in_file(path);
    let real = path.canonicalize().map_err(failed)?;
    let shared = folder
        .components()
        .zip(real.components())
        .take_while(|(a, b)| a == b)
        .count();
    let ups = folder.components().count() - shared;
    let mut way: Vec<String> = vec!["..".to_owned(); ups];
    for part in real.components().skip(shared) {
        let name = part
            .as_os_str()
            .to_str()
            .filter(|name| !name.contains('\\'));
        let name = name.ok_or_else(|| {
            let what = "its name is not UTF-8, or has a backslash: a child could not name it";
            Error::invalid(what).in_file(path)
        })?;
        way.push(name.to_owned());
    }
    if ups == 0 {
        way.insert(0, ".".to_owned());
    }
    Ok(way.join("/"))
}
