//! VHDX and raw virtual-disk images.
//!
//! Three floors, arrows only downwards:
//!
//! | floor | modules | may not |
//! |---|---|---|
//! | driver | [`storage`], [`disk`], [`chain`], [`merge`], [`metadata`], [`repair`] | hold policy |
//! | machine | [`engine`] | do I/O, read a clock, take randomness, block |
//! | codec | [`mod@format`], [`foreign`] | anything but bytes to checked types and back |
//!
//! The engine answers *where* bytes are; whoever holds the buffers moves them. That lets one engine
//! run under `io_uring`, under plain `pread`/`pwrite`, in memory, and in a simulator that cuts the
//! power at every step.
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
pub mod space;
pub mod storage;
pub mod tap;
pub mod units;
pub mod zeros;

pub use error::{Error, ErrorKind, Result};
