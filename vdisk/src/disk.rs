//! A disk with one user: blocking calls over any storage.
//!
//! For tools that read, write and convert images. A server drives the [`Engine`] itself, with many
//! requests in flight.

mod carry_out;
mod parent;

use std::path::Path;

use bytes::Bytes;

use self::carry_out::execute;
use self::parent::{parent_extents, read_parent};

use crate::chain::{Chain, Layer, Lineage, ParentSearch, open_chain};
use crate::create::{CreateOptions, create};
use crate::engine::{
    Compacted, Completion, Done, Engine, EngineOptions, Extent, FileOp, FileOpKind, ImageState,
    Mark, Outcome, Request, RequestId,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::metadata::SizeItem;
use crate::format::track::CheckpointName;
use crate::format::{Guid, PAGE};
use crate::open::{Admit, Image, LoadOptions, View, load_scanning, recover_tracking};
use crate::space::Occupied;
use crate::storage::{FileStorage, Storage};
use crate::units::{FileOffset, GuestOffset};

/// Memory for noting changes up to which the table of blocks keeps all of its own.
const LEAST_SHARE: usize = 256 << 10;

/// What kind of image a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// MS-VHDX.
    Vhdx,
    /// Byte n of the disk is byte n of the file.
    Raw,
}

impl ImageFormat {
    /// The format that a path's ending names: `.vhdx` and `.avhdx` are VHDX, all others raw.
    ///
    /// The content is never asked: the guest of a raw disk writes it and could make its disk appear
    /// as an image that names other files.
    #[must_use]
    pub fn of_path(path: &Path) -> Self {
        let ending = path
            .extension()
            .and_then(|ending| ending.to_str())
            .unwrap_or_default();
        match ending.to_ascii_lowercase().as_str() {
            "vhdx" | "avhdx" => Self::Vhdx,
            _ => Self::Raw,
        }
    }
}

/// How to open an image.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Nothing is written, not even a replay of the log; others may read at the same time.
    pub read_only: bool,
    /// Open an image that is an incomplete target or has been handed over.
    pub allow_marked: bool,
    /// The format; `None` goes by the path's ending.
    pub format: Option<ImageFormat>,
    /// Ranges written must be multiples of this in the file; 1 unless the file is `O_DIRECT`.
    pub alignment: u64,
    /// Memory for pages of the BAT, in bytes.
    pub cache: usize,
    /// The version that the disk's data gets when it is changed; `None` for a fresh one.
    pub data_write: Option<Guid>,
    /// Nothing will be changed that the disk reads as, only how it is stored: where `data_write` names
    /// no version the present one stays, disks that are built on this one stay valid, and none of it
    /// counts as a change for checkpoints.
    pub same_content: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_marked: false,
            format: None,
            alignment: 1,
            cache: EngineOptions::default().cache,
            data_write: None,
            same_content: false,
        }
    }
}

/// Open the image in `storage` and make an engine for it.
///
/// `random` gives fresh random bits at each call.
pub fn open_engine(
    storage: &mut dyn Storage,
    format: ImageFormat,
    options: &OpenOptions,
    random: &mut dyn FnMut() -> u128,
) -> Result<Engine> {
    open_engine_with(storage, format, options, random, |options| options)
}

/// As [`open_engine`], with a last word on how the engine is to work.
pub fn open_engine_with(
    storage: &mut dyn Storage,
    format: ImageFormat,
    options: &OpenOptions,
    random: &mut dyn FnMut() -> u128,
    tune: impl FnOnce(EngineOptions) -> EngineOptions,
) -> Result<Engine> {
    match format {
        ImageFormat::Raw => raw_engine(storage, options),
        ImageFormat::Vhdx => {
            let random = (random, false);
            vhdx_engine(storage, options, random, tune).map(|(engine, _)| engine)
        }
    }
}

/// As [`open_engine_with`] for a VHDX disk that may have a parent: what [`FileOpKind::ReadParent`] and
/// its like ask for, the caller knows.
pub fn open_child_engine_with(
    storage: &mut dyn Storage,
    options: &OpenOptions,
    random: &mut dyn FnMut() -> u128,
    tune: impl FnOnce(EngineOptions) -> EngineOptions,
) -> Result<(Engine, Lineage)> {
    vhdx_engine(storage, options, (random, true), tune)
}

fn raw_engine(storage: &mut dyn Storage, options: &OpenOptions) -> Result<Engine> {
    let size = storage
        .len()
        .map_err(|error| Error::io("its length is not known", error))?;
    Ok(Engine::raw(size, options.alignment, options.read_only))
}

fn vhdx_engine(
    storage: &mut dyn Storage,
    options: &OpenOptions,
    (random, allow_parent): (&mut dyn FnMut() -> u128, bool),
    tune: impl FnOnce(EngineOptions) -> EngineOptions,
) -> Result<(Engine, Lineage)> {
    let mut engine_options = tune(EngineOptions {
        read_only: options.read_only,
        alignment: options.alignment,
        cache: options.cache,
        seed: random(),
        data_write: options.data_write,
        ..EngineOptions::default()
    });
    let load = LoadOptions {
        writable: !options.read_only,
        scan_bat: false,
        admit: Admit {
            marked: options.allow_marked,
            parent: allow_parent,
        },
        random: &mut *random,
    };
    let scan_first = if options.read_only {
        0
    } else {
        engine_options.scan_first
    };
    let mut image = load_scanning(storage, load, scan_first)?;
    if options.same_content {
        let same = image.header.data_write;
        engine_options.data_write.get_or_insert(same);
    }
    let lineage = Lineage {
        data_write: image.header.data_write,
        sector: image.geometry.sector(),
        parent: image.metadata.parent.clone(),
    };
    let tracking = if options.read_only {
        None
    } else {
        recover_tracking(storage, &mut image, random)?
    };
    let state = image_state(storage, image)?;
    let Some(tracking) = tracking else {
        return Ok((Engine::vhdx(state, &engine_options), lineage));
    };
    // A quarter of the memory is for what is noted of changes, unless there is hardly any.
    let share = engine_options.cache / 4;
    if share > LEAST_SHARE {
        engine_options.cache -= share;
    }
    let engine = Engine::vhdx(state, &engine_options).with_tracking(tracking, share);
    if options.same_content {
        engine.note_nothing();
    }
    Ok((engine, lineage))
}

fn image_state(storage: &mut dyn Storage, image: Image) -> Result<ImageState> {
    let region = image.metadata_region().at.0;
    let mut view = View {
        storage,
        overlay: image.overlay,
        len: image.file_len,
    };
    let mut read = |at, len| Ok(Bytes::from(view.read(at, len, "metadata")?));
    let page = read(region, PAGE)?;
    let size_at = FileOffset(region + u64::from(image.metadata.size_item()?.offset));
    let size_item = SizeItem::read(size_at, &mut read)?;
    Ok(ImageState {
        used: Occupied {
            map: image.used,
            scanned: image.scanned,
            end: image.end_of_used,
        },
        header: image.header,
        slot: image.slot,
        geometry: image.geometry,
        regions: image.regions,
        metadata_page: page,
        size_item,
        mark: image.metadata.mark,
        // Ignored where there is a parent.
        leave_allocated: image.metadata.leave_allocated && image.metadata.parent.is_none(),
        file_len: image.file_len,
        overlay: view.overlay,
    })
}

/// An engine for one disk of a chain, and what it says of the one beneath; `path` names the file.
pub(crate) fn open_layer(
    storage: &mut FileStorage,
    path: &Path,
    options: &OpenOptions,
) -> Result<(Engine, Lineage)> {
    let format = options.format.unwrap_or_else(|| ImageFormat::of_path(path));
    if format == ImageFormat::Vhdx {
        return vhdx_engine(storage, options, (&mut random_bits, true), |options| {
            options
        });
    }
    if options.format.is_none() {
        refuse_disguised(storage)?;
    }
    let lineage = Lineage {
        data_write: Guid::ZERO,
        sector: 0,
        parent: None,
    };
    Ok((raw_engine(storage, options)?, lineage))
}

/// A file that looks like VHDX and is not called so: somebody must say which it is.
fn refuse_disguised(storage: &mut FileStorage) -> Result<()> {
    let mut start = [0; 8];
    storage
        .read_at(0, &mut start)
        .map_err(|error| Error::io("cannot be read", error))?;
    if &start == b"vhdxfile" {
        let what =
            "its name says raw and its content says VHDX; say which it is with a format option";
        return Err(Error::new(ErrorKind::InvalidArgument, what));
    }
    Ok(())
}

/// Random bits of the operating system.
#[must_use]
pub fn random_bits() -> u128 {
    uuid::Uuid::new_v4().as_u128() ^ uuid::Uuid::new_v4().as_u128().rotate_left(64)
}

/// Create a VHDX image at `path`, which must not exist, and make it durable.
pub fn create_file(path: &Path, options: CreateOptions<'_>) -> Result<()> {
    let mut storage = FileStorage::create(path)?;
    let made = create(&mut storage, options)
        .map_err(|error| error.in_file(path))
        .and_then(|()| {
            storage
                .sync_directory()
                .map_err(|error| Error::io("its name can not be made durable", error).in_file(path))
        });
    if made.is_err() {
        // Half an image serves nobody; that it can not be removed says less than why it was not made.
        let _ = std::fs::remove_file(path);
    }
    made
}

/// The buffer of the request that runs.
enum Buffer<'a> {
    None,
    In(&'a mut [u8]),
    Out(&'a [u8]),
}

/// An open disk.
pub struct Disk {
    storage: Box<dyn Storage + Send>,
    engine: Engine,
    /// The disk it is built on.
    parent: Option<Box<Disk>>,
    /// Whether only what it holds of its own is looked at.
    alone: bool,
    version: Guid,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

impl Disk {
    /// Open and lock the image at `path`, and those it is built on, which lie in the same folder or
    /// below it.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        Self::open_with(path, options, &ParentSearch::default())
    }

    /// Open and lock the image at `path`, and those it is built on, found as `search` says.
    pub fn open_with(path: &Path, options: &OpenOptions, search: &ParentSearch) -> Result<Self> {
        let Chain { top, mut parents } = open_chain(path, options, search)?;
        let layer = |layer: Layer| Self::new(Box::new(layer.storage), layer.engine);
        let mut beneath = None;
        while let Some(parent) = parents.pop() {
            let parent = layer(parent);
            beneath = Some(match beneath {
                Some(beneath) => parent.over(beneath),
                None => parent,
            });
        }
        let version = top.data_write;
        let mut disk = layer(top);
        disk.version = version;
        disk.parent = beneath.map(Box::new);
        Ok(disk)
    }

    /// A disk over a storage that has been opened with [`open_engine`].
    #[must_use]
    pub fn new(storage: Box<dyn Storage + Send>, engine: Engine) -> Self {
        Self {
            storage,
            engine,
            parent: None,
            alone: false,
            version: Guid::ZERO,
        }
    }

    /// The same disk without the one it is built on: what that holds cannot be read, and
    /// [`Disk::status`] tells of it as neither allocated nor zero.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// The same disk, with the one it is built on.
    #[must_use]
    pub fn over(mut self, parent: Disk) -> Self {
        self.parent = Some(Box::new(parent));
        self
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.engine.map().size()
    }

    /// Fill `buffer` from `offset`.
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let len = buffer.len() as u64;
        self.run(
            Request::Read {
                offset: GuestOffset(offset),
                len,
            },
            Buffer::In(buffer),
        )
        .map(|_| ())
    }

    /// Write `data` at `offset`. Durable after [`Disk::flush`].
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let len = data.len() as u64;
        let request = Request::Write {
            offset: GuestOffset(offset),
            len,
            fua: false,
        };
        self.run(request, Buffer::Out(data)).map(|_| ())
    }

    /// Make a range read as zero and give its space back.
    pub fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        let offset = GuestOffset(offset);
        let request = Request::WriteZeroes {
            offset,
            len,
            fua: false,
            unmap: true,
        };
        self.run(request, Buffer::None).map(|_| ())
    }

    /// The range is not needed any more.
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        let request = Request::Discard {
            offset: GuestOffset(offset),
            len,
        };
        self.run(request, Buffer::None).map(|_| ())
    }

    /// Make every change so far durable.
    pub fn flush(&mut self) -> Result<()> {
        self.run(Request::Flush, Buffer::None).map(|_| ())
    }

    /// Which parts of a range are allocated; covers at least one byte, may end before the range.
    pub fn status(&mut self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let request = Request::Status {
            offset: GuestOffset(offset),
            len,
        };
        match self.run(request, Buffer::None)? {
            Done::Extents(extents) => Ok(extents),
            Done::Done | Done::Compacted(_) => Ok(Vec::new()),
        }
    }

    /// Leave the image as a cleanly closed one with `mark` in place.
    pub fn park(&mut self, mark: Option<Mark>) -> Result<()> {
        self.run(Request::Park { mark }, Buffer::None).map(|_| ())
    }

    /// Make the file as short as it can be, in steps: about `budget` bytes are moved by each call; to be
    /// called until [`Compacted::done`]. See [`Request::Compact`] for what is refused.
    pub fn compact(&mut self, defragment: bool, budget: u64) -> Result<Compacted> {
        let request = Request::Compact { defragment, budget };
        match self.run(request, Buffer::None)? {
            Done::Compacted(how_far) => Ok(how_far),
            _ => Err(Error::new(
                ErrorKind::Failed,
                "a compaction ended without an answer",
            )),
        }
    }

    /// Give the disk another size in bytes, durably; where that cuts off data, only if it may be
    /// discarded. See [`Request::Resize`] for what is refused.
    pub fn resize(&mut self, size: u64, discard_data: bool) -> Result<()> {
        let request = Request::Resize { size, discard_data };
        self.run(request, Buffer::None).map(|_| ())
    }

    /// Take a checkpoint, durably. See [`Request::Checkpoint`] for what is refused.
    pub fn checkpoint(&mut self, name: CheckpointName, time: u64) -> Result<()> {
        let request = Request::Checkpoint { name, time };
        self.run(request, Buffer::None).map(|_| ())
    }

    /// Close the image cleanly. One that is dropped instead is as after a crash: replayed at the
    /// next open, nothing flushed lost.
    pub fn close(mut self) -> Result<()> {
        if self.engine.map().read_only() {
            return Ok(());
        }
        let mark = self.engine.mark();
        self.park(mark)
    }

    fn run(&mut self, request: Request, mut buffer: Buffer<'_>) -> Result<Done> {
        self.engine.submit(RequestId(0), request);
        loop {
            while let Some(op) = self.engine.next_op() {
                let outcome = self
                    .execute(&op, &mut buffer)
                    .unwrap_or_else(Outcome::Failed);
                self.engine.complete(op.id, outcome);
            }
            if let Some(Completion { result, .. }) = self.engine.next_completion() {
                // What goes on without a request (a checkpoint, growth) is done while we are here.
                self.settle();
                return result;
            }
            if self.engine.is_idle() {
                return Err(Error::new(
                    ErrorKind::Failed,
                    "the engine stopped without an answer",
                ));
            }
        }
    }

    fn settle(&mut self) {
        while let Some(op) = self.engine.next_op() {
            let outcome = self
                .execute(&op, &mut Buffer::None)
                .unwrap_or_else(Outcome::Failed);
            self.engine.complete(op.id, outcome);
        }
    }

    fn execute(&mut self, op: &FileOp, buffer: &mut Buffer<'_>) -> std::io::Result<Outcome> {
        let parent = self.parent.as_deref_mut();
        match (&op.kind, buffer) {
            (
                FileOpKind::ReadParent {
                    start, offset, len, ..
                },
                Buffer::In(buffer),
            ) => {
                let range = *start as usize..(start + len) as usize;
                read_parent(parent, offset.0, &mut buffer[range])?;
            }
            (FileOpKind::CopyUp { offset, at, len }, _) => {
                let mut data = vec![0; *len as usize];
                read_parent(parent, offset.0, &mut data)?;
                self.storage.write_at(at.0, &data)?;
            }
            (FileOpKind::StatusParent { len, .. }, _) if self.alone => {
                return Ok(Outcome::Holes(vec![Extent {
                    len: *len,
                    allocated: false,
                    zero: false,
                }]));
            }
            (FileOpKind::StatusParent { offset, len }, _) => {
                return Ok(Outcome::Holes(parent_extents(parent, offset.0, *len)?));
            }
            (_, buffer) => return execute(&mut *self.storage, op, buffer),
        }
        Ok(Outcome::Done)
    }
}
