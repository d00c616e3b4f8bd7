//! Where a copy is written: a new image, or stdout.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vdisk::disk::Disk;

use super::digest::Digest;
use super::journal::Journal;
use super::read::{Data, Part};
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::progress::Progress;

/// What is copied at most before it is made durable and noted.
const NOTE_BYTES: u64 = 256 << 20;
/// How long it takes at most before that.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// The largest disk; a stream that is longer makes none.
const LARGEST: u64 = 64 << 40;
/// Zeros that are written to stdout at once.
const ZEROS: usize = 1 << 20;

/// What an interrupted copy leaves for the next.
pub(crate) struct Notes {
    pub(crate) journal: Journal,
    pub(crate) path: PathBuf,
}

/// A new image under way.
pub(crate) struct ImageSink<'a> {
    disk: Disk,
    /// All before this byte of the disk is written.
    at: u64,
    notes: Option<Notes>,
    progress: &'a mut Progress,
    digest: Digest,
    noted: Instant,
    since: u64,
}

impl<'a> ImageSink<'a> {
    /// Writes to `disk`, from where `notes` say.
    pub(crate) fn new(disk: Disk, notes: Option<Notes>, progress: &'a mut Progress) -> Self {
        let at = notes.as_ref().map_or(0, |notes| notes.journal.done);
        progress.skip(at);
        Self {
            disk,
            at,
            notes,
            progress,
            digest: Digest::default(),
            noted: Instant::now(),
            since: 0,
        }
    }

    /// Takes the next part of the disk.
    pub(crate) fn take(&mut self, part: Part) -> Result<()> {
        interrupt::check("the source is unchanged")?;
        match part {
            Part::Zeros { len } => {
                self.at += len;
                self.progress.advance(len, 0);
            }
            Part::Data(data) => self.write(&data)?,
        }
        if self.since >= NOTE_BYTES || self.noted.elapsed() >= NOTE_EVERY {
            self.note()?;
        }
        Ok(())
    }

    fn write(&mut self, data: &Data) -> Result<()> {
        let len = data.bytes.len() as u64;
        let end = data.offset + len;
        self.make_room(end)?;
        let mut moved = 0;
        for run in &data.runs {
            let at = data.offset + run.start as u64;
            self.disk.write_at(at, &data.bytes[run.clone()])?;
            moved += run.len() as u64;
        }
        if let Some(hash) = &data.hash {
            self.digest.add(data.offset, hash);
        }
        self.at = end;
        self.since += moved;
        self.progress.advance(len, moved);
        Ok(())
    }

    /// A disk that a stream fills is made larger when it is full.
    fn make_room(&mut self, end: u64) -> Result<()> {
        let mut size = self.disk.size();
        while size < end {
            let larger = size.saturating_mul(2).min(LARGEST);
            if larger == size {
                return Err(Failure::usage(
                    "the stream is longer than the largest disk, 64 TB",
                ));
            }
            self.disk.resize(larger, false)?;
            size = larger;
        }
        Ok(())
    }

    /// Makes durable what was written, and then says so in the journal.
    fn note(&mut self) -> Result<()> {
        if let Some(notes) = &mut self.notes
            && notes.journal.done != self.at
        {
            if self.since > 0 {
                self.disk.flush()?;
            }
            notes.journal.done = self.at;
            notes.journal.store(&notes.path)?;
        }
        self.noted = Instant::now();
        self.since = 0;
        Ok(())
    }

    /// The copy has failed: notes how far it came, if it can. Answers up to which byte another run need
    /// not copy again.
    pub(crate) fn give_up(mut self) -> u64 {
        // What failed may be what is needed for this; then the last note stands.
        let _ = self.note();
        self.notes.map_or(0, |notes| notes.journal.done)
    }

    /// All before this byte of the disk is written.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// All is there: gives the disk, durable and with `size` bytes if that is said, and the digest of what
    /// was written.
    pub(crate) fn finish(mut self, size: Option<u64>) -> Result<(Disk, String)> {
        if let Some(size) = size
            && self.disk.size() != size
        {
            self.disk.resize(size, false)?;
        }
        self.disk.flush()?;
        Ok((self.disk, self.digest.finish()))
    }
}

/// Writes the bytes of a disk to stdout, zeros too.
pub(crate) struct StreamSink<'a> {
    stdout: File,
    progress: &'a mut Progress,
    zeros: Vec<u8>,
}

impl<'a> StreamSink<'a> {
    pub(crate) fn new(progress: &'a mut Progress) -> Result<Self> {
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        Ok(Self {
            stdout: File::from(stdout.map_err(|e| Failure::io("cannot write to stdout", &e))?),
            progress,
            zeros: vec![0; ZEROS],
        })
    }

    /// Takes the next part of the disk.
    pub(crate) fn take(&mut self, part: Part) -> Result<()> {
        // A reader that has gone makes half a disk: that is a failure, unlike with lists for people.
        let failed = |e: io::Error| Failure::io("cannot write the disk to stdout", &e);
        match part {
            Part::Data(data) => {
                interrupt::check("what was written is not the whole disk")?;
                self.stdout.write_all(&data.bytes).map_err(failed)?;
                let len = data.bytes.len() as u64;
                self.progress.advance(len, len);
            }
            Part::Zeros { mut len } => {
                while len > 0 {
                    interrupt::check("what was written is not the whole disk")?;
                    let piece = len.min(ZEROS as u64);
                    let zeros = &self.zeros[..piece as usize];
                    self.stdout.write_all(zeros).map_err(failed)?;
                    self.progress.advance(piece, piece);
                    len -= piece;
                }
            }
        }
        Ok(())
    }
}
