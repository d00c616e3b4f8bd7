//! VHD, fixed and dynamic; what its bytes mean is in [`vdisk::foreign::vhd`].

use std::path::Path;

use vdisk::Error;
use vdisk::foreign::vhd::{FOOTER, Footer, HEADER, Header, Kind, SECTOR, holds};

use super::file::SharedFile;
use super::{Parts, Run, Source};
use crate::commands::image;
use crate::failure::Result;

/// Entries of the table that are read at once.
const ENTRIES: u64 = 16 << 10;

/// A disk, of which each reader has a copy.
#[derive(Clone)]
struct Vhd {
    file: SharedFile,
    size: u64,
    /// Of a dynamic disk.
    header: Option<Header>,
    /// A part of the table: its first entry, and the bytes.
    table: (u64, Vec<u8>),
    /// A bitmap, and where it lies.
    bitmap: (u64, Vec<u8>),
}

pub(super) fn open(path: &Path, handles: usize) -> Result<Parts> {
    let file = SharedFile::new(image::open_storage(path)?)?;
    let footer = footer(&file)?;
    let mut vhd = Vhd {
        size: footer.size,
        header: None,
        table: (0, Vec::new()),
        bitmap: (0, Vec::new()),
        file,
    };
    if let Kind::Dynamic(at) = footer.kind {
        let mut bytes = [0; HEADER];
        vhd.file.read(at, &mut bytes)?;
        let header = Header::decode(&bytes, &footer, vhd.file.len());
        vhd.header = Some(vhd.file.sound(header)?);
    }
    let handle = || -> Box<dyn Source> { Box::new(vhd.clone()) };
    Ok(Parts {
        handles: (0..handles).map(|_| handle()).collect(),
        sector: None,
        files: vec![path.to_owned()],
        versions: Vec::new(),
    })
}

/// The footer, or the copy of it that a dynamic disk begins with: a writer that died may have left no
/// footer.
fn footer(file: &SharedFile) -> Result<Footer> {
    let read = |at: u64| -> Result<Footer> {
        let mut bytes = [0; FOOTER];
        file.read(at, &mut bytes)?;
        file.sound(Footer::decode(&bytes))
    };
    let end = file.len().saturating_sub(FOOTER as u64);
    let found = match read(end) {
        Ok(footer) => footer,
        Err(why) => match read(0) {
            Ok(copy) if copy.kind != Kind::Fixed => copy,
            _ => return Err(why),
        },
    };
    if found.kind == Kind::Fixed && found.size > end {
        let what = format!("the disk has {} bytes, the file only {end}", found.size);
        return file.sound(Err(Error::corrupt(what)));
    }
    Ok(found)
}

impl Vhd {
    /// Where the bitmap of `block` lies, if the block was ever written.
    fn place(&mut self, header: &Header, block: u64) -> Result<Option<u64>> {
        let (first, _) = self.table;
        let held = first..first + self.table.1.len() as u64 / 4;
        if !held.contains(&block) {
            let first = block - block % ENTRIES;
            let count = ENTRIES.min(header.blocks - first);
            let mut bytes = vec![0; count as usize * 4];
            self.file.read(header.table + first * 4, &mut bytes)?;
            self.table = (first, bytes);
        }
        let (entries, _) = self.table.1.as_chunks::<4>();
        let entry = entries.get((block - self.table.0) as usize);
        let used = self.size - block * header.block;
        let place = header.place(entry.copied().unwrap_or([0; 4]), used, self.file.len());
        self.file.sound(place)
    }

    /// Reads a part of one block.
    fn read_block(&mut self, header: &Header, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (block, within) = (offset / header.block, offset % header.block);
        let Some(at) = self.place(header, block)? else {
            buffer.fill(0);
            return Ok(());
        };
        if self.bitmap.0 != at {
            let mut bitmap = vec![0; header.bitmap() as usize];
            self.file.read(at, &mut bitmap)?;
            self.bitmap = (at, bitmap);
        }
        self.file.read(at + header.bitmap() + within, buffer)?;
        let mut done = 0;
        while done < buffer.len() {
            let at = within + done as u64;
            let left = (SECTOR - at % SECTOR) as usize;
            let end = (done + left).min(buffer.len());
            if !holds(&self.bitmap.1, at / SECTOR) {
                buffer[done..end].fill(0);
            }
            done = end;
        }
        Ok(())
    }
}

impl Source for Vhd {
    fn size(&self) -> u64 {
        self.size
    }

    fn runs(&mut self, offset: u64, len: u64) -> Result<Vec<Run>> {
        let Some(header) = self.header else {
            return Ok(vec![self.file.run(offset, len)]);
        };
        let (mut runs, mut at): (Vec<Run>, _) = (Vec::new(), offset);
        // One part of the table at a time.
        let last = (offset / header.block + ENTRIES) * header.block;
        let end = (offset + len).min(last);
        while at < end {
            let block = at / header.block;
            let zero = self.place(&header, block)?.is_none();
            let len = end.min((block + 1) * header.block) - at;
            match runs.last_mut() {
                Some(run) if run.zero == zero => run.len += len,
                _ => runs.push(Run { len, zero }),
            }
            at += len;
        }
        Ok(runs)
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let Some(header) = self.header else {
            return self.file.read(offset, buffer);
        };
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let left = (header.block - at % header.block) as usize;
            let end = (done + left).min(buffer.len());
            self.read_block(&header, at, &mut buffer[done..end])?;
            done = end;
        }
        Ok(())
    }
}
