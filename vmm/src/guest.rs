//! The freestanding guest (`vmm/guest/`): what this machine and others are tested and measured with.
//!
//! An ELF file for x86-64 with two entries, each told by a note: `docs/vmm-guest.md` says which, and what
//! its command line may ask for.

/// Where the file is that was built with this crate, for a machine that is a program of its own.
pub const PATH: &str = env!("DISKFERRY_GUEST");

/// Its bytes.
pub const IMAGE: &[u8] = include_bytes!(env!("DISKFERRY_GUEST"));
