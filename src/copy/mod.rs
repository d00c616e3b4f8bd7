//! Disks read by many threads: copied into another in the order of the disk, or compared.
//!
//! ```text
//!   plan: which pieces hold data ─► readers, in turn: read, find zeros, hash ─► in order: write
//! ```
//!
//! A piece is 1 MiB of the disk, at a multiple of that; memory is bounded by the pieces under way.

pub(crate) mod compare;
pub(crate) mod digest;
pub(crate) mod in_order;
pub(crate) mod journal;
pub(crate) mod partial;
pub(crate) mod pieces;
pub(crate) mod read;
pub(crate) mod sink;
pub(crate) mod stream;
