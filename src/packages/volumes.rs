//! Volumes under way: one after another, each under its name only when it is whole and durable.

use package::{
    Content, Fill, HEADER, Hash, Header, MOST_VOLUMES, Manifest, RECORD_HEAD, Record, Sequence,
    VolumeEntry,
};

use super::cipher::Lock;
use super::journal::Journal;
use super::parcels::Parcel;
use super::place::{Growing, Place};
use super::sealed::SealedWriter;
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::progress::Progress;

/// A package that is written, and what is written of it already.
pub(crate) struct Begun<'a> {
    pub(crate) place: &'a dyn Place,
    /// What its files are called.
    pub(crate) name: &'a str,
    pub(crate) lock: &'a Lock,
    pub(crate) journal: Journal,
}

/// A volume under way.
struct Open {
    number: u32,
    output: SealedWriter<Box<dyn Growing>>,
    fill: Fill,
    sequence: Sequence,
    first: u64,
}

/// Writes volumes.
pub(crate) struct Volumes<'a, 'p> {
    begun: Begun<'a>,
    open: Option<Open>,
    /// A run of zeros that may go on.
    zeros: Option<(u64, u64)>,
    /// Bytes that are still to come, at most.
    left: u64,
    progress: &'p mut Progress,
}

impl Begun<'_> {
    pub(crate) fn volume_name(&self, number: u32) -> String {
        Manifest::volume_name(self.name, number, self.lock.is_on())
    }

    /// Notes how far it is.
    pub(crate) fn note(&self) -> Result<()> {
        self.journal.store(self.place, self.name)
    }

    fn failed(&self, number: u32, error: &std::io::Error) -> Failure {
        let name = self.volume_name(number);
        self.place.failed(&name, "cannot be written", error)
    }
}

impl<'a, 'p> Volumes<'a, 'p> {
    /// Goes on behind the volumes that are whole; at most `left` bytes of data are still to come.
    pub(crate) fn new(begun: Begun<'a>, left: u64, progress: &'p mut Progress) -> Self {
        Self {
            begun,
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
                if self.begun.journal.work.builds_on.is_none() {
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
    pub(crate) fn finish(mut self) -> Result<Begun<'a>> {
        self.put_zeros()?;
        let size = self.begun.journal.work.disk.size;
        if self.open.is_none() && self.begun.journal.done() < size {
            self.open = Some(self.begin()?);
        }
        self.close(size)?;
        Ok(self.begun)
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
            .map_err(|e| self.begun.failed(open.number, &e))
    }

    fn begin(&mut self) -> Result<Open> {
        let journal = &self.begun.journal;
        let number = journal.volumes.len() as u32 + 1;
        if number > MOST_VOLUMES {
            let what = format!("a package has at most {MOST_VOLUMES} volumes");
            return Err(Failure::usage(what).hint("make them larger: --volume-size"));
        }
        let first = journal.done();
        let most = self.left + self.left / 1000 + (4 << 20);
        let most = most.min(journal.work.limit);
        let name = self.begun.volume_name(number);
        let file = self.begun.place.begin(&name, most)?;
        let upload = file.upload().map(str::to_owned);
        if upload.is_some() {
            self.begun.journal.upload = upload;
            self.begun.note()?;
        }
        let journal = &self.begun.journal;
        let mut output = SealedWriter::new(file, self.begun.lock)?;
        let header = Header {
            number,
            package: journal.package,
            builds_on: journal.work.builds_on,
            disk_size: journal.work.disk.size,
            first,
        };
        let (header, hash): ([u8; HEADER], Hash) = header.encode();
        let written = output.write(&header);
        written.map_err(|e| self.begun.failed(number, &e))?;
        Ok(Open {
            number,
            fill: Fill::new(journal.work.limit, output.before()),
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
        let (file, whole) = finished.map_err(|e| self.begun.failed(open.number, &e))?;
        let (length, hash) = whole;
        if length > self.begun.journal.work.limit {
            let what = format!("volume {} became longer than it may", open.number);
            return Err(Failure::new(Exit::Failed, what));
        }
        let named = file.finish(whole);
        named.map_err(|e| self.begun.failed(open.number, &e))?;
        let journal = &mut self.begun.journal;
        journal.upload = None;
        journal.volumes.push(VolumeEntry {
            length,
            hash,
            first: open.first,
            end,
            records,
        });
        self.begun.note()
    }
}
