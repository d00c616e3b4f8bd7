//! The log (MS-VHDX 2.3): entries as they are written, and which of them count after a crash.
//!
//! A circular buffer of 4 KiB sectors. An entry carries pages of the region tables, the metadata
//! region, the BAT and sector bitmaps; never the headers, never payload. [`encode_entry`] makes the
//! sectors of one entry, in order; writing them round the end of the log is the caller's business.

mod active;
mod entry;

pub use active::{ActiveSequence, find_active};
pub use entry::{
    Descriptor, Entry, EntryPlan, GUID_AT, LogPlace, SIGNATURE, decode_entry, descriptors,
    encode_entry, entry_len, page,
};

#[cfg(test)]
mod tests;
