//! The seam to storage: run one file operation, say how it went.

mod crash;
mod file;
mod holder;
mod lock;
mod memory;

pub use crash::{Change, CrashStorage, FlushMark};
pub use file::FileStorage;
pub use lock::{Hold, exclude, lock, share, unlock};
pub use memory::MemoryStorage;

use std::io;

/// A file seen through the few things an engine needs of it.
///
/// Implementations: a blocking file, memory, and one that remembers flushes and yields every image
/// that a power cut may leave. The `io_uring` workers of the block server run the same operations
/// without this trait, since theirs complete later.
#[expect(
    clippy::len_without_is_empty,
    reason = "nobody asks whether an image is empty"
)]
pub trait Storage {
    /// Length of the file in bytes.
    fn len(&mut self) -> io::Result<u64>;

    /// Fill `buffer` from `offset`; what lies beyond the end of the file reads as zero.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Write all of `data` at `offset`, lengthening the file where needed.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Make everything written before durable.
    fn flush(&mut self) -> io::Result<()>;

    /// Set the length of the file; what is added reads as zero.
    fn set_len(&mut self, len: u64) -> io::Result<()>;

    /// Make `len` bytes at `offset` read as zero; give the space back to the host unless `keep`.
    fn zero(&mut self, offset: u64, len: u64, keep: bool) -> io::Result<()>;

    /// Reserve host space for `len` bytes at `offset` without changing what they read as.
    ///
    /// A file system that cannot do so is no error.
    fn reserve(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// The first byte at or after `offset` that may hold data, `None` if only holes follow.
    ///
    /// Holes read as zero. A file system that does not tell answers `offset`.
    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>>;

    /// The first byte at or after `offset` that lies in a hole or at the end of the file.
    ///
    /// A file system that does not tell answers the length of the file.
    fn next_hole(&mut self, offset: u64) -> io::Result<u64> {
        Ok(self.len()?.max(offset))
    }
}
