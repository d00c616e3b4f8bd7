//! Reading a machine's memory from the file that it was written to.
//!
//! Driver: reads extents, and gives none whose checksum is wrong. Which one when is not decided here.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

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
    packed: bool,
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
            packed: true,
        })
    }

    /// Memory of `memory` bytes that lies in the file at `path` as it is, from byte `at` on, which is a multiple of
    /// 4096; its holes are zero. No page has a checksum: for a file that was checked as it was written, by a writer
    /// that cannot have lost parts of it since.
    ///
    /// `BadSnapshot` when the file is too short for it.
    pub fn raw(path: &Path, at: u64, (memory, id): (u64, [u8; 16])) -> Result<Self> {
        let failed =
            |error: io::Error| Error::host(format!("{}: cannot be read", path.display()), error);
        let file = File::open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        let whole = at.checked_add(memory).is_some_and(|end| {
            end <= len && memory.is_multiple_of(PAGE) && at.is_multiple_of(PAGE)
        });
        if !whole {
            let what = format!("{}: is not whole", path.display());
            return Err(Error::new(ErrorKind::BadSnapshot, what));
        }
        let entries = raw_entries(&file, at, memory).map_err(failed)?;
        let stored: u64 = entries
            .iter()
            .map(|entry| entry.pages.count() as u64 * PAGE)
            .sum();
        let header = Header {
            id,
            memory,
            table: HEADER_BYTES as u64 + stored,
            entries: entries.len() as u32,
            sum: 0,
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
            entries,
            packed: false,
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
        let failed = |error| Error::host(format!("{} cannot be read", place()), error);
        if !self.packed {
            return self.read_runs(entry, bytes).map_err(failed);
        }
        self.file.read_exact_at(bytes, entry.at).map_err(failed)?;
        if crc32c::crc32c(bytes) != entry.sum {
            let what = format!("{} is damaged in the file", place());
            return Err(Error::new(ErrorKind::BadSnapshot, what));
        }
        Ok(())
    }

    fn read_runs(&self, entry: &Entry, bytes: &mut [u8]) -> io::Result<()> {
        let mut rest = bytes;
        for (first, count) in entry.pages.runs() {
            let (run, behind) = rest.split_at_mut(count * PAGE as usize);
            rest = behind;
            self.file
                .read_exact_at(run, entry.at + first as u64 * PAGE)?;
        }
        Ok(())
    }
}

/// The extents of memory that lies in `file` from `start` on: which pages are no hole.
fn raw_entries(file: &File, start: u64, memory: u64) -> io::Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut at = 0;
    while at < memory {
        at = match seek(file, SeekFrom::Data(start + at)) {
            Ok(data) => data - start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = (seek(file, SeekFrom::Hole(start + at))? - start).min(memory);
        for page in at / PAGE..end.div_ceil(PAGE) {
            let extent = (page * PAGE / image::EXTENT) as u32;
            if entries.last().is_none_or(|last| last.extent != extent) {
                entries.push(Entry {
                    extent,
                    sum: 0,
                    at: start + u64::from(extent) * image::EXTENT,
                    pages: image::Pages::default(),
                });
            }
            if let Some(entry) = entries.last_mut() {
                entry
                    .pages
                    .insert((page % image::EXTENT_PAGES as u64) as usize);
            }
        }
        at = end;
    }
    Ok(entries)
}
