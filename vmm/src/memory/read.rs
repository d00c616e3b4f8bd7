//! Reading a machine's memory from the file that it was written to.
//!
//! Driver: reads extents, and gives none whose checksum is wrong. Which one when is not decided here.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::buffer::{Buffer, open_direct};
use super::image::{self, Entry, HEADER_BYTES, Header, Wrong};
use crate::layout::PAGE;
use crate::{Error, ErrorKind, Result};

/// A file that holds the memory of a machine. Its table has been read and checked; its pages are checked as they
/// are read.
#[derive(Debug)]
pub struct MemoryImage {
    path: PathBuf,
    file: File,
    header: Header,
    entries: Vec<Entry>,
}

impl MemoryImage {
    /// Open the file at `path`.
    ///
    /// `BadSnapshot` when it is no such file, incomplete, damaged, or of a version that is not known.
    pub fn open(path: &Path) -> Result<Self> {
        let failed =
            |error: io::Error| Error::host(format!("{}: cannot be read", path.display()), error);
        let refused =
            |why: Wrong| Error::new(ErrorKind::BadSnapshot, format!("{}: {why}", path.display()));
        let mut plain = File::open(path).map_err(failed)?;
        let len = plain.metadata().map_err(failed)?.len();
        let mut first = [0; HEADER_BYTES];
        if len < HEADER_BYTES as u64 {
            return Err(refused(Wrong("is not whole".to_owned())));
        }
        plain.read_exact(&mut first).map_err(failed)?;
        let header = Header::decode(&first, len).map_err(refused)?;
        let mut table = vec![0; header.table_bytes() as usize];
        plain
            .read_exact_at(&mut table, header.table)
            .map_err(failed)?;
        let entries = image::decode_table(&header, &table).map_err(refused)?;
        let file = open_direct(path, OpenOptions::new().read(true)).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
            entries,
        })
    }

    /// Bytes of the machine's memory.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.header.memory
    }

    /// The snapshot that it belongs to.
    #[must_use]
    pub fn id(&self) -> [u8; 16] {
        self.header.id
    }

    /// Bytes of pages in it.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.header.table - HEADER_BYTES as u64
    }

    /// The extents of which it has pages, lowest first.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Read the pages of an extent into `buffer`, one after another as they are in the file.
    pub(super) fn read(&self, entry: &Entry, buffer: &mut Buffer) -> Result<()> {
        let bytes = &mut buffer.bytes_mut()[..entry.pages.count() * PAGE as usize];
        let place = || {
            format!(
                "{}: memory from {:#x} on",
                self.path.display(),
                image::address_of(u64::from(entry.extent) * image::EXTENT)
            )
        };
        self.file
            .read_exact_at(bytes, entry.at)
            .map_err(|error| Error::host(format!("{} cannot be read", place()), error))?;
        if crc32c::crc32c(bytes) != entry.sum {
            let what = format!("{} is damaged in the file", place());
            return Err(Error::new(ErrorKind::BadSnapshot, what));
        }
        Ok(())
    }
}
