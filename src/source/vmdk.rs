//! VMDK; what its bytes mean is in [`vdisk::foreign::vmdk`].
//!
//! A descriptor names the files of the extents. One that lies in a sparse extent can name that file
//! alone; a descriptor of its own names files beside it, opened as the caller allows.

use std::path::{Path, PathBuf};

use miniz_oxide::inflate::decompress_slice_iter_to_slice;
use vdisk::chain::{ParentSearch, open_beside};
use vdisk::foreign::vmdk::{
    DESCRIPTOR_START, Descriptor, Extent, ExtentKind, GRAIN_MARKER, Grain, HEADER, MAGIC,
    MAX_DESCRIPTOR, SparseHeader,
};
use vdisk::{Error, ErrorKind};

use super::file::SharedFile;
use super::{Parts, Run, Source, unsupported};
use crate::commands::image;
use crate::failure::{Exit, Failure, Result};

/// Runs that are told at once.
const MOST_RUNS: usize = 4096;
/// The footer of a stream, behind its marker and before the marker of its end.
const FOOTER_FROM_END: u64 = 1024;

/// A disk, of which each reader has a copy.
#[derive(Clone)]
struct Vmdk {
    parts: Vec<Part>,
    size: u64,
}

/// One extent.
#[derive(Clone)]
struct Part {
    /// First byte of the disk that it holds.
    start: u64,
    size: u64,
    kind: PartKind,
}

#[derive(Clone)]
enum PartKind {
    Zero,
    Flat(SharedFile, u64),
    Sparse(Box<Sparse>),
}

/// A sparse extent.
#[derive(Clone)]
struct Sparse {
    file: SharedFile,
    header: SparseHeader,
    directory: u64,
    /// The grain table that was read last: its number, and its entries.
    table: Option<(u64, Vec<u32>)>,
    /// The grain that was unpacked last: its number, and its bytes.
    grain: Option<(u64, Vec<u8>)>,
}

pub(super) fn open(path: &Path, search: &ParentSearch, handles: usize) -> Result<Parts> {
    let file = SharedFile::new(image::open_storage(path)?)?;
    let mut files = vec![path.to_owned()];
    let vmdk = explained(path, vmdk(path, file, search, &mut files))?;
    let handle = || -> Box<dyn Source> { Box::new(vmdk.clone()) };
    Ok(Parts {
        handles: (0..handles).map(|_| handle()).collect(),
        sector: None,
        files,
        versions: Vec::new(),
    })
}

/// What is legal and not read here another program reads.
fn explained<T>(path: &Path, result: Result<T>) -> Result<T> {
    result.map_err(|failure| match failure.exit {
        Exit::Unsupported => Failure {
            hint: unsupported(path, "").hint,
            ..failure
        },
        _ => failure,
    })
}

fn vmdk(
    path: &Path,
    file: SharedFile,
    search: &ParentSearch,
    files: &mut Vec<PathBuf>,
) -> Result<Vmdk> {
    let mut start = vec![0; DESCRIPTOR_START.len().min(file.len() as usize)];
    file.read(0, &mut start)?;
    if start.starts_with(&MAGIC) {
        let sparse = Sparse::new(file)?;
        sparse.refuse_others()?;
        return Ok(Vmdk::new(vec![(
            sparse.header.size,
            PartKind::Sparse(Box::new(sparse)),
        )]));
    }
    if start != DESCRIPTOR_START {
        return file.sound(Err(Error::corrupt(
            "is neither an extent nor a descriptor of a VMDK",
        )));
    }
    let descriptor = read_descriptor(&file, 0, file.len())?;
    let mut parts = Vec::new();
    for Extent { size, kind } in descriptor.extents {
        let mut open = |name: &str| -> Result<SharedFile> {
            let storage = image::patiently(|| open_beside(path, path, name, search))?;
            files.push(storage.path().to_owned());
            SharedFile::new(storage)
        };
        let kind = match kind {
            ExtentKind::Zero => PartKind::Zero,
            ExtentKind::Flat(name, at) => flat(open(&name)?, at, size)?,
            ExtentKind::Sparse(name) => sparse(open(&name)?, size)?,
        };
        parts.push((size, kind));
    }
    Ok(Vmdk::new(parts))
}

fn flat(file: SharedFile, at: u64, size: u64) -> Result<PartKind> {
    if at.checked_add(size).is_none_or(|end| end > file.len()) {
        let what = format!(
            "the extent ends at byte {}, before its {size} bytes",
            file.len()
        );
        return file.sound(Err(Error::corrupt(what)));
    }
    Ok(PartKind::Flat(file, at))
}

fn sparse(file: SharedFile, size: u64) -> Result<PartKind> {
    let sparse = Sparse::new(file)?;
    if sparse.header.size < size {
        let what = format!(
            "the extent has {} bytes and should have {size}",
            sparse.header.size
        );
        return sparse.file.sound(Err(Error::corrupt(what)));
    }
    Ok(PartKind::Sparse(Box::new(sparse)))
}

fn read_descriptor(file: &SharedFile, at: u64, len: u64) -> Result<Descriptor> {
    if len > MAX_DESCRIPTOR {
        let what = format!("a descriptor of {len} bytes is longer than any");
        return file.sound(Err(Error::corrupt(what)));
    }
    let mut text = vec![0; len as usize];
    file.read(at, &mut text)?;
    file.sound(Descriptor::parse(&text))
}

impl Sparse {
    fn new(file: SharedFile) -> Result<Self> {
        let header_at = |at| -> Result<SparseHeader> {
            let mut bytes = [0; HEADER];
            file.read(at, &mut bytes)?;
            file.sound(SparseHeader::decode(&bytes))
        };
        let mut header = header_at(0)?;
        if header.directory.is_none() {
            let descriptor = header.descriptor;
            header = header_at(file.len().saturating_sub(FOOTER_FROM_END))?;
            header.descriptor = header.descriptor.or(descriptor);
        }
        let Some(directory) = header.directory else {
            let what = "neither header nor footer says where its grains are";
            return file.sound(Err(Error::corrupt(what)));
        };
        let tables = header.size.div_ceil(header.table_covers());
        if directory.saturating_add(tables * 4) > file.len() {
            let what = "its grain directory is beyond the end of the file";
            return file.sound(Err(Error::corrupt(what).at(directory)));
        }
        Ok(Self {
            file,
            header,
            directory,
            table: None,
            grain: None,
        })
    }

    /// Refuses an extent whose own descriptor says that there is more to the disk.
    fn refuse_others(&self) -> Result<()> {
        let Some((at, len)) = self.header.descriptor else {
            return Ok(());
        };
        let descriptor = read_descriptor(&self.file, at, len)?;
        if descriptor.extents.len() != 1 {
            let what = "is one part of a disk of several; give the file of its descriptor";
            return self
                .file
                .sound(Err(Error::new(ErrorKind::InvalidArgument, what)));
        }
        Ok(())
    }

    /// Where the grain is that holds byte `offset`.
    fn place(&mut self, offset: u64) -> Result<Grain> {
        let covers = self.header.table_covers();
        let number = offset / covers;
        let index = (offset % covers / self.header.grain) as usize;
        if self.table.as_ref().is_none_or(|(held, _)| *held != number) {
            self.table = Some((number, self.read_table(number)?));
        }
        let entry = self.table.as_ref().and_then(|(_, table)| table.get(index));
        Ok(self.header.grain_at(entry.copied().unwrap_or(0)))
    }

    /// The entries of a grain table; none if there is no such table.
    fn read_table(&self, number: u64) -> Result<Vec<u32>> {
        let mut entry = [0; 4];
        self.file.read(self.directory + number * 4, &mut entry)?;
        let Grain::At(at) = self.header.grain_at(u32::from_le_bytes(entry)) else {
            return Ok(Vec::new());
        };
        let mut bytes = vec![0; self.header.entries as usize * 4];
        self.file.read(at, &mut bytes)?;
        let (entries, _) = bytes.as_chunks::<4>();
        Ok(entries
            .iter()
            .map(|entry| u32::from_le_bytes(*entry))
            .collect())
    }

    /// Reads a part of one grain.
    fn read_grain(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let Grain::At(at) = self.place(offset)? else {
            buffer.fill(0);
            return Ok(());
        };
        let within = offset % self.header.grain;
        if !self.header.compressed {
            return self.file.read(at + within, buffer);
        }
        let first = offset - within;
        if self.grain.as_ref().is_none_or(|(held, _)| *held != first) {
            self.grain = Some((first, self.unpack(at, first)?));
        }
        let held = self.grain.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        if let Some(bytes) = held.get(within as usize..within as usize + buffer.len()) {
            buffer.copy_from_slice(bytes);
        }
        Ok(())
    }

    /// The grain of byte `first`, packed at `at` of the file.
    fn unpack(&self, at: u64, first: u64) -> Result<Vec<u8>> {
        let mut marker = [0; GRAIN_MARKER];
        self.file.read(at, &mut marker)?;
        let len = self.header.compressed_len(&marker, first);
        let mut packed = vec![0; self.file.sound(len)?];
        self.file.read(at + GRAIN_MARKER as u64, &mut packed)?;
        let mut grain = vec![0; self.header.grain as usize];
        // The last grain of a disk may hold only what the disk has of it.
        let wanted = self.header.grain.min(self.header.size - first) as usize;
        let unpacked =
            decompress_slice_iter_to_slice(&mut grain, std::iter::once(&*packed), true, false);
        match unpacked {
            Ok(len) if len >= wanted => Ok(grain),
            other => {
                let what = format!("the compressed grain cannot be unpacked ({other:?})");
                self.file.sound(Err(Error::corrupt(what).at(at)))
            }
        }
    }

    fn run(&mut self, offset: u64, len: u64) -> Result<Run> {
        let zero = self.place(offset)? == Grain::Zero;
        let absent = self
            .table
            .as_ref()
            .is_some_and(|(_, table)| table.is_empty());
        let unit = if absent {
            self.header.table_covers()
        } else {
            self.header.grain
        };
        Ok(Run {
            len: len.min(unit - offset % unit),
            zero,
        })
    }
}

impl Vmdk {
    fn new(parts: Vec<(u64, PartKind)>) -> Self {
        let mut size = 0;
        let parts = parts.into_iter().map(|(len, kind)| {
            let start = size;
            size += len;
            Part {
                start,
                size: len,
                kind,
            }
        });
        let parts = parts.collect();
        Self { parts, size }
    }

    /// The extent that holds byte `offset`, and where in it.
    fn part(&mut self, offset: u64) -> Result<(&mut Part, u64)> {
        let index = self
            .parts
            .partition_point(|part| part.start + part.size <= offset);
        let part = self.parts.get_mut(index);
        let beyond = || Failure::new(Exit::Failed, format!("byte {offset} is beyond the disk"));
        let part = part.ok_or_else(beyond)?;
        let within = offset - part.start;
        Ok((part, within))
    }
}

impl Source for Vmdk {
    fn size(&self) -> u64 {
        self.size
    }

    fn runs(&mut self, offset: u64, len: u64) -> Result<Vec<Run>> {
        let (mut runs, mut at): (Vec<Run>, _) = (Vec::new(), offset);
        while at < offset + len && runs.len() < MOST_RUNS {
            let (part, within) = self.part(at)?;
            let len = (offset + len - at).min(part.size - within);
            let run = match &mut part.kind {
                PartKind::Zero => Run { len, zero: true },
                PartKind::Flat(file, first) => file.run(*first + within, len),
                PartKind::Sparse(sparse) => sparse.run(within, len)?,
            };
            at += run.len;
            match runs.last_mut() {
                Some(last) if last.zero == run.zero => last.len += run.len,
                _ => runs.push(run),
            }
        }
        Ok(runs)
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let (part, within) = self.part(offset + done as u64)?;
            let mut len = (buffer.len() - done).min((part.size - within) as usize);
            if let PartKind::Sparse(sparse) = &part.kind {
                let grain = sparse.header.grain;
                len = len.min((grain - within % grain) as usize);
            }
            let piece = &mut buffer[done..done + len];
            match &mut part.kind {
                PartKind::Zero => piece.fill(0),
                PartKind::Flat(file, first) => file.read(*first + within, piece)?,
                PartKind::Sparse(sparse) => sparse.read_grain(within, piece)?,
            }
            done += len;
        }
        Ok(())
    }
}
