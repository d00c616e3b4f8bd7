//! A disk as a package of volumes: what their bytes are (`docs/package-format.md`).
//!
//! A package is a manifest and volumes of a given size. Each volume holds chunks of the disk, in its
//! order, each with its hash; what reads as zero takes no room. A package is all of a disk, or what
//! changed since another package.
//!
//! Codec and machine: it touches no file, and nothing in it may panic on what another wrote. Encryption
//! is around whole files and is not its business, but for the room that it takes ([`Fill`]).
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

mod error;
mod fill;
mod hash;
mod manifest;
mod record;
mod volume;

pub use error::{Error, ErrorKind, Result};
pub use fill::Fill;
pub use hash::Hash;
pub use manifest::{
    DiskShape, MANIFEST_LIMIT, MOST_VOLUMES, Manifest, NAME_LIMIT, VolumeEntry, applying, is_name,
};
pub use record::{Content, RECORD_HEAD, Record, Sequence, pack};
pub use volume::{HEADER, Header, Item, Walker};

/// Most bytes of the disk in one chunk.
pub const CHUNK: u64 = 1 << 20;
/// The largest disk.
pub const MAX_DISK: u64 = 64 << 40;
/// The version of the format.
pub const VERSION: u32 = 1;
/// The smallest volume that may be asked for: a chunk, its surroundings, and encryption for some dozens.
pub const LEAST_VOLUME: u64 = 2 << 20;
