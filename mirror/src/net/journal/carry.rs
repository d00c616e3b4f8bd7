//! From what is sealed of a journal into the disk.
//!
//! Must never empty a file before what it held is durable in the disk.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;

use super::{Carried, lock};
use crate::journal::{ENTRY_LEN, Entry, EntryHead, HEAD_LEN, Head};
use crate::net::port::{DiskPort, Done};
use crate::wire::Content;

/// Writes into the disk at once, and bytes of them.
const MOST_RUNNING: usize = 32;
const MOST_RUNNING_BYTES: u64 = 8 << 20;

/// Reads a file without moving the place at which it is written.
struct At<'a>(&'a File, u64);

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read_at(buffer, self.1)?;
        self.1 += read as u64;
        Ok(read)
    }
}

/// The entries of one file, up to the first that is none.
pub(super) struct Entries<'a> {
    from: BufReader<At<'a>>,
    /// How far they go.
    pub(super) read: u64,
}

impl<'a> Entries<'a> {
    /// From that place on.
    pub(super) fn new(file: &'a File, read: u64) -> Self {
        let from = BufReader::with_capacity(256 << 10, At(file, read));
        Self { from, read }
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        Ok(self.fill(&mut bytes)?.then_some(bytes))
    }

    /// Whether there were so many bytes.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<bool> {
        match self.from.read_exact(bytes) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub(super) fn head(&mut self) -> io::Result<Option<Head>> {
        let head = self.bytes::<HEAD_LEN>()?;
        self.read = HEAD_LEN as u64;
        Ok(head.and_then(|bytes| Head::from_bytes(&bytes)))
    }

    pub(super) fn next(&mut self, filling: u64) -> io::Result<Option<Entry>> {
        let head = self.bytes::<ENTRY_LEN>()?;
        let Some(head) = head.and_then(|bytes| EntryHead::from_bytes(&bytes)) else {
            return Ok(None);
        };
        let mut payload = vec![0; head.payload_len()];
        if !self.fill(&mut payload)? {
            return Ok(None);
        }
        self.read += (ENTRY_LEN + payload.len()) as u64;
        Ok(head.with_payload(filling, Bytes::from(payload)))
    }
}

/// A part of one of the files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) file: usize,
    pub(super) filling: u64,
    pub(super) from: u64,
    pub(super) end: u64,
    /// Nothing else is left in that file then.
    pub(super) empties: bool,
}

/// Write these parts into the disk, in order, and make them durable there, then empty the files of which nothing is left.
pub(super) fn carry_over(
    files: &[File; 2],
    parts: &[Part],
    carried: &Mutex<Carried>,
    port: &dyn DiskPort,
) -> io::Result<()> {
    if parts.is_empty() {
        return Ok(());
    }
    let mut writes = Writes::new(port);
    for part in parts {
        let Some(file) = files.get(part.file) else {
            continue;
        };
        let mut entries = Entries::new(file, part.from);
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the journal is damaged");
        while entries.read < part.end {
            match entries.next(part.filling)?.ok_or_else(damaged)? {
                Entry::Change { offset, content } => writes.begin(offset, content)?,
                Entry::Mark { .. } => {}
            }
        }
    }
    writes.wait()?;
    let (done, flushed) = answer();
    port.flush(done);
    flushed.recv().map_err(io::Error::other)??;
    for part in parts {
        if part.empties
            && let Some(file) = files.get(part.file)
        {
            file.set_len(0)?;
            file.sync_all()?;
        }
        let mut carried = lock(carried);
        match &mut carried.older {
            // It was the one that is filled when this began, or it still is.
            Some(older) if older.filling == part.filling => older.from = part.end,
            _ => carried.from = part.end,
        }
        if part.empties {
            carried.older = None;
        }
    }
    Ok(())
}

pub(super) fn answer() -> (Done, Receiver<io::Result<()>>) {
    let (tell, told) = channel();
    let done = move |result| {
        let _ = tell.send(result);
    };
    (Box::new(done), told)
}

/// Writes into the disk, in order where they meet.
struct Writes<'a> {
    port: &'a dyn DiskPort,
    tell: Sender<io::Result<()>>,
    told: Receiver<io::Result<()>>,
    /// Those that were begun since the last wait, some of which have ended: first byte, one past the last.
    begun: Vec<(u64, u64)>,
    bytes: u64,
}

impl<'a> Writes<'a> {
    fn new(port: &'a dyn DiskPort) -> Self {
        let (tell, told) = channel();
        Self {
            port,
            tell,
            told,
            begun: Vec::new(),
            bytes: 0,
        }
    }

    fn begin(&mut self, offset: u64, content: Content) -> io::Result<()> {
        let end = offset + content.covers();
        let meets = self.begun.iter().any(|(a, b)| *a < end && offset < *b);
        if meets || self.begun.len() >= MOST_RUNNING || self.bytes >= MOST_RUNNING_BYTES {
            self.wait()?;
        }
        self.begun.push((offset, end));
        self.bytes += content.held();
        let tell = self.tell.clone();
        let done = Box::new(move |result| {
            let _ = tell.send(result);
        });
        match content {
            Content::Data(data) => self.port.write(offset, data, done),
            Content::Zeroes(len) => self.port.zero(offset, len, done),
        }
        Ok(())
    }

    /// All that was begun has ended.
    fn wait(&mut self) -> io::Result<()> {
        self.bytes = 0;
        let mut result = Ok(());
        for _ in self.begun.drain(..) {
            let one = self.told.recv().map_err(io::Error::other)?;
            result = result.and(one);
        }
        result
    }
}
