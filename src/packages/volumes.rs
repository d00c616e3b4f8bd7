//! Volumes under way: one after another, each under its name only when it is whole and durable.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use package::{
    Content, Fill, HEADER, Hash, Header, MOST_VOLUMES, Manifest, RECORD_HEAD, Record, Sequence,
    VolumeEntry,
};

use super::cipher::Lock;
use super::folders::{Folders, full_or, sync_folder_of};
use super::journal::Journal;
use super::parcels::Parcel;
use super::sealed::SealedWriter;
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::progress::Progress;

/// Where a package is written, and what is written of it already.
pub(crate) struct Place<'a> {
    pub(crate) folders: &'a Folders,
    /// What its files are called.
    pub(crate) name: &'a str,
    pub(crate) lock: &'a Lock,
    pub(crate) journal: Journal,
    /// Where the journal is.
    pub(crate) notes: PathBuf,
}

/// A volume under way.
struct Open {
    number: u32,
    part: Partial,
    output: SealedWriter,
    fill: Fill,
    sequence: Sequence,
    first: u64,
}

/// A file that goes away if it does not become whole.
struct Partial {
    part: PathBuf,
    place: PathBuf,
    keep: bool,
}

/// Writes volumes.
pub(crate) struct Volumes<'a, 'p> {
    place: Place<'a>,
    open: Option<Open>,
    /// A run of zeros that may go on.
    zeros: Option<(u64, u64)>,
    /// Bytes that are still to come, at most.
    left: u64,
    progress: &'p mut Progress,
}

impl Place<'_> {
    pub(crate) fn volume_name(&self, number: u32) -> String {
        Manifest::volume_name(self.name, number, self.lock.is_on())
    }
}

impl<'a, 'p> Volumes<'a, 'p> {
    /// Goes on behind the volumes that are whole; at most `left` bytes of data are still to come.
    pub(crate) fn new(place: Place<'a>, left: u64, progress: &'p mut Progress) -> Self {
        Self {
            place,
            open: None,
            zeros: None,
            left,
            progress,
        }
    }

    /// Takes the next part of the disk.
    pub(crate) fn take(&mut self, parcel: Parcel) -> Result<()> {
        interrupt::check("whole volumes are kept, and the same command goes on")?;
        match parcel {
            Parcel::Zeros { offset, len } => {
                self.progress.advance(len, 0);
                if self.place.journal.work.builds_on.is_none() {
                    return Ok(());
                }
                match &mut self.zeros {
                    Some((_, end)) if *end == offset => *end += len,
                    _ => {
                        self.put_zeros()?;
                        self.zeros = Some((offset, offset + len));
                    }
                }
                Ok(())
            }
            Parcel::Data {
                offset,
                len,
                content,
                stored,
                hash,
            } => {
                self.put_zeros()?;
                let record = Record {
                    content,
                    offset,
                    len,
                    hash,
                };
                self.put(record, &stored)?;
                self.left = self.left.saturating_sub(len);
                self.progress.advance(len, len);
                Ok(())
            }
        }
    }

    /// All was taken: ends the last volume, and gives the journal, which has all of them.
    pub(crate) fn finish(mut self) -> Result<Place<'a>> {
        self.put_zeros()?;
        let size = self.place.journal.work.disk.size;
        if self.open.is_none() && self.place.journal.done() < size {
            self.open = Some(self.begin()?);
        }
        self.close(size)?;
        Ok(self.place)
    }

    fn put_zeros(&mut self) -> Result<()> {
        let Some((offset, end)) = self.zeros.take() else {
            return Ok(());
        };
        let record = Record {
            content: Content::Zeros,
            offset,
            len: end - offset,
            hash: Hash::NONE,
        };
        self.put(record, &[])
    }

    fn put(&mut self, record: Record, stored: &[u8]) -> Result<()> {
        let len = stored.len() as u64;
        if self.open.as_ref().is_some_and(|open| !open.fill.takes(len)) {
            self.close(record.offset)?;
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        let open = self.open.insert(open);
        let head = open.sequence.encode(&record);
        open.fill.add(len);
        let written = open.output.write(&head);
        written
            .and_then(|()| open.output.write(stored))
            .map_err(|e| open.part.failed(&e))
    }

    fn begin(&mut self) -> Result<Open> {
        let journal = &self.place.journal;
        let number = journal.volumes.len() as u32 + 1;
        if number > MOST_VOLUMES {
            let what = format!("a package has at most {MOST_VOLUMES} volumes");
            return Err(Failure::usage(what).hint("make them larger: --volume-size"));
        }
        let first = journal.done();
        let most = self.left + self.left / 1000 + (4 << 20);
        let folder = self.place.folders.with_room(most.min(journal.work.limit));
        let part = Partial::new(folder, &self.place.volume_name(number))?;
        let file = File::create(&part.part).map_err(|e| part.failed(&e))?;
        let mut output = SealedWriter::new(file, self.place.lock)?;
        let header = Header {
            number,
            package: journal.package,
            builds_on: journal.work.builds_on,
            disk_size: journal.work.disk.size,
            first,
        };
        let (header, hash): ([u8; HEADER], Hash) = header.encode();
        output.write(&header).map_err(|e| part.failed(&e))?;
        Ok(Open {
            number,
            fill: Fill::new(journal.work.limit, output.before()),
            part,
            output,
            sequence: Sequence::new(hash),
            first,
        })
    }

    /// Ends the volume that is open; it tells of the disk up to `end`.
    fn close(&mut self, end: u64) -> Result<()> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        let records = open.sequence.count();
        let last = Record {
            content: Content::End,
            offset: end,
            len: records,
            hash: Hash::NONE,
        };
        let head: [u8; RECORD_HEAD] = open.sequence.encode(&last);
        let written = open.output.write(&head);
        let finished = written.and_then(|()| open.output.finish());
        let (length, hash) = finished.map_err(|e| open.part.failed(&e))?;
        let journal = &mut self.place.journal;
        if length > journal.work.limit {
            let what = format!("volume {} became longer than it may", open.number);
            return Err(Failure::new(Exit::Failed, what));
        }
        open.part.finish()?;
        journal.volumes.push(VolumeEntry {
            length,
            hash,
            first: open.first,
            end,
            records,
        });
        journal.store(&self.place.notes)
    }
}

impl Partial {
    fn new(folder: &Path, name: &str) -> Result<Self> {
        let place = folder.join(name);
        if fs::symlink_metadata(&place).is_ok() {
            // After the volume got its name and before the journal had it, an export may be killed.
            let what = format!("{}: exists already", place.display());
            return Err(Failure::new(Exit::Failed, what).hint(
                "remove it if it is of an interrupted export, or give another folder or --name",
            ));
        }
        Ok(Self {
            part: folder.join(format!("{name}.part")),
            place,
            keep: false,
        })
    }

    fn failed(&self, error: &io::Error) -> Failure {
        full_or(&self.place, "cannot be written", error)
    }

    fn finish(mut self) -> Result<()> {
        let named = fs::rename(&self.part, &self.place);
        let named = named.and_then(|()| sync_folder_of(&self.place));
        named.map_err(|e| self.failed(&e))?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.keep {
            // There may be nothing to remove, and nobody to tell.
            let _ = fs::remove_file(&self.part);
        }
    }
}
