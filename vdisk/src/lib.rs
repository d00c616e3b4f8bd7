//! VHDX and raw virtual-disk images.
//!
//! Reads and writes what Hyper-V calls VHDX: dynamic, fixed and differencing disks up to 64 TiB, with
//! the log written and replayed, so that a power cut at any moment loses nothing that was flushed. What
//! of the format is implemented, clause by clause, is in `docs/vhdx.md`; the order of writes and what it
//! promises in `docs/crash-consistency.md`.
//!
//! ```
//! use vdisk::create::CreateOptions;
//! use vdisk::disk::{Disk, OpenOptions, create_file, random_bits};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("disk.vhdx");
//! create_file(&path, CreateOptions::new(1 << 40, &mut random_bits))?;
//! let mut disk = Disk::open(&path, &OpenOptions::default())?;
//! disk.write_at(5 << 30, b"hello")?;
//! disk.flush()?; // From here on no power cut takes it back.
//! disk.close()?; // Dropped instead, the disk is as after a crash: its log is replayed at the next open.
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to begin
//!
//! | to | use | example |
//! |---|---|---|
//! | make a disk, read it, write it | [`disk::create_file`], [`disk::Disk`] | `create` |
//! | copy a disk of another kind into one | [`disk::Disk::status`], [`disk::Disk::write_at`] | `convert` |
//! | know which parts hold data | [`disk::Disk::status`] | `extents` |
//! | give a disk another size | [`disk::Disk::resize`] | `resize` |
//! | give space back to the host | [`disk::Disk::discard`], [`disk::Disk::compact`] | `compact` |
//! | keep what a disk holds and go on, merge the two | [`chain::create_child`], [`merge::commit`] | `snapshot` |
//! | make a disk of a chain one of its own | [`merge::flatten()`] | `flatten` |
//! | keep notes of one's own in a disk's file | [`metadata::set`], [`metadata::get`] | `metadata` |
//! | find all that is wrong with an image | [`check::check`] | `check` |
//! | know what an image is without opening it | [`info`] | |
//! | have many requests in flight, with I/O of one's own | [`engine::Engine`] | `machine` |
//! | prove that a change survives power cuts | [`storage::CrashStorage`] | `crash` |
//!
//! Each example is a file of `vdisk/examples/` and runs with `cargo run -p vdisk --example NAME`.
//!
//! [`disk::Disk`] does one request at a time and blocks. [`engine::Engine`] is what is below it: a machine
//! that takes requests, hands out operations on the file, is told how they went, and does no I/O.
//!
//! # What is inside
//!
//! Three floors, arrows only downwards:
//!
//! | floor | modules | may not |
//! |---|---|---|
//! | driver | [`storage`], [`disk`], [`chain`], [`merge`], [`metadata`], [`repair`], [`track`] | hold policy |
//! | machine | [`engine`] | do I/O, read a clock, take randomness, block |
//! | codec | [`mod@format`], [`foreign`] | anything but bytes to checked types and back |
//!
//! The engine answers *where* bytes are; whoever holds the buffers moves them. That lets one engine
//! run under `io_uring`, under plain `pread`/`pwrite`, in memory, and in a simulator that cuts the
//! power at every step.
//!
//! # Errors
//!
//! Every [`Error`] has a small [`ErrorKind`] to match on, and says what was done, where in the file it went
//! wrong, and what to do. Bytes of an image never make this crate panic or take memory without bound: what
//! breaks a rule of the format is [`ErrorKind::Corrupt`], what keeps to it and is not implemented
//! [`ErrorKind::Unsupported`].
#![forbid(unsafe_code)]

pub mod chain;
pub mod check;
pub mod create;
pub mod disk;
pub mod engine;
pub mod error;
pub mod foreign;
pub mod format;
pub mod info;
pub mod merge;
pub mod metadata;
pub mod open;
pub mod repair;
pub mod size;
pub mod space;
pub mod storage;
pub mod tap;
pub mod track;
pub mod units;
pub mod zeros;

pub use error::{Error, ErrorKind, Result};
