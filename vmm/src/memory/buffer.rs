//! Room for one extent of memory, aligned as the host's block devices want it, so that files are read and written
//! past the page cache.
//!
//! Part of the drivers of memory files. Where a file system cannot go past its cache, it goes through.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

use super::image::EXTENT;
use crate::layout::PAGE;

/// Room for an extent, on a page's boundary.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    pub(super) fn new() -> Self {
        let bytes = vec![0; (EXTENT + PAGE) as usize];
        let start = bytes.as_ptr().align_offset(PAGE as usize);
        Self { bytes, start }
    }

    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..][..EXTENT as usize]
    }

    /// All of it, to be filled.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..EXTENT as usize]
    }
}

/// Open a file past the page cache, or through it where that cannot be.
pub(super) fn open_direct(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let direct = options
        .clone()
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(path);
    match direct {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
            options.open(path)
        }
        result => result,
    }
}
