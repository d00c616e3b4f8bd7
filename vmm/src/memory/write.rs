//! Writing a machine's memory to a file.
//!
//! Driver. Only pages that exist and are not all zero are written, packed, by several threads that each hold one
//! extent: the copy from the memory stays in the processor's cache, and the disk gets large writes past the page
//! cache. The file has another name until it is whole and durable. Must only be used while nothing changes
//! the memory; see `docs/vm-snapshot-memory.md`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::{Errno, pwritev};

use super::buffer::{Buffer, open_direct};
use super::image::{self, EXTENT, Entry, HEADER_BYTES, Header, Pages};
use crate::confine::{self, Kind};
use crate::layout::PAGE;
use crate::{Error, Result};

/// Extents that are under way at once: enough to keep a disk busy while others are read and summed.
const WRITERS: usize = 4;
static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of memory that are in the file; all others are zero.
    pub memory_bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
}

/// Write `bytes` of `memory`, of the snapshot `id`, to the new file at `path`, durably.
pub(super) fn write(memory: &File, bytes: u64, (path, id): (&Path, [u8; 16])) -> Result<Written> {
    let partial = partial(path);
    let result = write_to(memory, bytes, (&partial, id)).and_then(|written| {
        fs::rename(&partial, path)?;
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(written)
    });
    result.map_err(|error| {
        // It may not have been made.
        let _ = fs::remove_file(&partial);
        Error::host(
            format!("{}: memory cannot be written", path.display()),
            error,
        )
    })
}

/// The file's name until it is whole.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

fn write_to(memory: &File, bytes: u64, (path, id): (&Path, [u8; 16])) -> io::Result<Written> {
    let extents = existing(memory, bytes)?;
    // What a guest keeps in its memory is nobody else's to read.
    let plain = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let direct = open_direct(path, OpenOptions::new().write(true))?;
    // Writes into reserved space run beside one another; without it file systems do one after the other. What it
    // may take at most is known; if there is not as much, less may still do.
    let most = HEADER_BYTES as u64 + memory.metadata()?.blocks() * 512;
    let _ = fallocate(&direct, FallocateFlags::empty(), 0, most);
    let writing = Writing {
        memory,
        bytes,
        file: &direct,
        extents: &extents,
        next: AtomicUsize::new(0),
        end: AtomicU64::new(HEADER_BYTES as u64),
        failed: AtomicBool::new(false),
        entries: Mutex::new(Vec::new()),
    };
    thread::scope(|scope| {
        let started: Vec<_> = (0..WRITERS)
            .map(|_| {
                let builder = thread::Builder::new().name("save".into());
                builder.spawn_scoped(scope, || {
                    confine::thread(Kind::Saver);
                    writing.run()
                })
            })
            .collect();
        for thread in started {
            let ended = thread?.join();
            ended.unwrap_or_else(|_| Err(io::Error::other("a thread that saves has panicked")))?;
        }
        io::Result::Ok(())
    })?;
    finish(&plain, writing, id)
}

/// The table and the first page, and all of it durable.
fn finish(file: &File, writing: Writing<'_>, id: [u8; 16]) -> io::Result<Written> {
    let memory = writing.bytes;
    let end = writing.end.into_inner();
    let entries = writing.entries.into_inner();
    let mut entries = entries.map_err(|_| io::Error::other("a thread that saves has panicked"))?;
    entries.sort_unstable_by_key(|entry| entry.extent);
    let table = image::encode_table(&entries);
    let header = Header {
        id,
        memory,
        table: end,
        entries: u32::try_from(entries.len()).map_err(io::Error::other)?,
        sum: crc32c::crc32c(&table),
    };
    let file_bytes = end + table.len() as u64;
    file.set_len(file_bytes)?;
    file.write_all_at(&table, end)?;
    file.write_all_at(&header.encode(), 0)?;
    file.sync_all()?;
    Ok(Written {
        memory_bytes: end - HEADER_BYTES as u64,
        file_bytes,
    })
}

/// The extents of which a page exists.
fn existing(memory: &File, bytes: u64) -> io::Result<Vec<u32>> {
    let mut extents: Vec<u32> = Vec::new();
    let mut at = 0;
    while at < bytes {
        at = match seek(memory, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(memory, SeekFrom::Hole(at))?.min(bytes);
        let first = (at / EXTENT) as u32;
        let next = end.div_ceil(EXTENT) as u32;
        let taken = extents.last().map_or(0, |last| last + 1);
        extents.extend(first.max(taken)..next);
        at = end;
    }
    Ok(extents)
}

/// What the threads share.
struct Writing<'a> {
    memory: &'a File,
    bytes: u64,
    file: &'a File,
    extents: &'a [u32],
    /// The next of `extents` to be taken.
    next: AtomicUsize,
    /// Where the next pages go.
    end: AtomicU64,
    failed: AtomicBool,
    entries: Mutex<Vec<Entry>>,
}

impl Writing<'_> {
    fn run(&self) -> io::Result<()> {
        let mut buffer = Buffer::new();
        let mut entries = Vec::new();
        while !self.failed.load(Ordering::Relaxed) {
            let taken = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(extent) = self.extents.get(taken) else {
                break;
            };
            match self.extent(*extent, &mut buffer) {
                Ok(entry) => entries.extend(entry),
                Err(error) => {
                    self.failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        let all = self.entries.lock();
        all.map_err(|_| io::Error::other("a thread that saves has panicked"))?
            .append(&mut entries);
        Ok(())
    }

    /// Write the pages of an extent that are not zero, if there are any.
    fn extent(&self, extent: u32, buffer: &mut Buffer) -> io::Result<Option<Entry>> {
        let there = image::pages_of(self.bytes, extent) * PAGE as usize;
        let bytes = &mut buffer.bytes_mut()[..there];
        self.memory
            .read_exact_at(bytes, u64::from(extent) * EXTENT)?;
        let mut pages = Pages::default();
        for (page, content) in bytes.chunks_exact(PAGE as usize).enumerate() {
            if *content != ZEROS {
                pages.insert(page);
            }
        }
        if pages.count() == 0 {
            return Ok(None);
        }
        let runs = pages.runs().into_iter();
        let runs =
            runs.map(|(first, count)| &bytes[first * PAGE as usize..][..count * PAGE as usize]);
        let mut runs: Vec<_> = runs.map(IoSlice::new).collect();
        let sum = runs
            .iter()
            .fold(0, |sum, run| crc32c::crc32c_append(sum, run));
        let len = pages.count() as u64 * PAGE;
        let at = self.end.fetch_add(len, Ordering::Relaxed);
        write_all(self.file, &mut runs, at)?;
        Ok(Some(Entry {
            extent,
            sum,
            at,
            pages,
        }))
    }
}

fn write_all(file: &File, mut runs: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
    while !runs.is_empty() {
        match pwritev(file, runs, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut runs, written);
                at += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
