//! Disks as packages of volumes, in folders or in a store: written, found, read (`docs/package-format.md`).
//!
//! ```text
//!   export: plan: what holds data, or changed ─► readers: read, hash, pack ─► in order: volumes, one after another
//!   import: volumes ─► decrypt ─► walk, unpack, check ─► a new disk, or one that the package builds upon
//! ```
//!
//! Driver: what the bytes are, and what goes into which volume, the crate `package` says.

pub(crate) mod changes;
pub(crate) mod cipher;
pub(crate) mod found;
pub(crate) mod journal;
pub(crate) mod parcels;
pub(crate) mod place;
pub(crate) mod sealed;
pub(crate) mod volumes;
