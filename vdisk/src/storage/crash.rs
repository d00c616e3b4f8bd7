//! A file that remembers what was flushed, and yields every image that a power cut may leave.
//!
//! The medium it stands for: what a completed flush covered is there; of everything else any subset
//! may be there, each write torn at sectors of 512 bytes in any way; lengths of the file may be lost
//! too, and what was written beyond the length that stayed is lost with it. Nothing that was not
//! written appears.

use std::io;

use bytes::Bytes;

use super::{MemoryStorage, Storage};

/// The unit in which a write may be torn.
const SECTOR: u64 = 512;

/// One change of the file that may or may not survive.
#[derive(Clone, Debug)]
pub enum Change {
    /// These bytes were written at this offset.
    Write(u64, Bytes),
    /// This many bytes at this offset became zero.
    Zero(u64, u64),
    /// The file got this length.
    Length(u64),
}

impl Change {
    fn apply(&self, image: &mut MemoryStorage) {
        match self {
            Self::Write(at, data) => image.put(*at, data),
            Self::Zero(at, len) => image.clear(*at, *len),
            Self::Length(len) => image.resize(*len),
        }
    }

    /// Apply some sectors of it, each if `choose(2)` says so.
    fn tear(&self, image: &mut MemoryStorage, choose: &mut dyn FnMut(u64) -> u64) {
        let (at, len) = match self {
            Self::Write(at, data) => (*at, data.len() as u64),
            Self::Zero(at, len) => (*at, *len),
            Self::Length(_) => return,
        };
        let mut from = at;
        while from < at + len {
            // Long changes are torn in at most some sixty pieces, else a case costs too much.
            let step = (len / 60 / SECTOR * SECTOR).max(SECTOR);
            let to = (from / SECTOR * SECTOR + step).min(at + len);
            if choose(2) == 0 {
                match self {
                    Self::Write(_, data) => {
                        image.put(from, &data[(from - at) as usize..(to - at) as usize]);
                    }
                    _ => image.clear(from, to - from),
                }
            }
            from = to;
        }
    }
}

/// How many changes a flush covers; see [`CrashStorage::begin_flush`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlushMark(u64);

/// The file as programs see it, as it surely is on the medium, and what lies between.
#[derive(Clone, Debug, Default)]
pub struct CrashStorage {
    live: MemoryStorage,
    durable: MemoryStorage,
    volatile: Vec<Change>,
    /// Number of the first change in `volatile`.
    first: u64,
}

impl CrashStorage {
    /// A file that holds `image`, all of it durable.
    #[must_use]
    pub fn new(image: MemoryStorage) -> Self {
        Self {
            live: image.clone(),
            durable: image,
            volatile: Vec::new(),
            first: 0,
        }
    }

    /// The file as programs see it now.
    #[must_use]
    pub fn live(&self) -> &MemoryStorage {
        &self.live
    }

    /// Change the file.
    pub fn apply(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.volatile.push(change);
    }

    /// A flush begins now: it covers what was changed until now.
    #[must_use]
    pub fn begin_flush(&self) -> FlushMark {
        FlushMark(self.first + self.volatile.len() as u64)
    }

    /// The flush that began at `mark` succeeded.
    pub fn end_flush(&mut self, mark: FlushMark) {
        let count = mark.0.saturating_sub(self.first) as usize;
        for change in self.volatile.drain(..count) {
            change.apply(&mut self.durable);
        }
        self.first = self.first.max(mark.0);
    }

    /// The flush that began at `mark` failed: the kernel may have dropped what it covered, and a later
    /// flush that succeeds says nothing about it. Programs go on seeing it until the power is cut.
    pub fn fail_flush(&mut self, mark: FlushMark, choose: &mut dyn FnMut(u64) -> u64) {
        let count = mark.0.saturating_sub(self.first) as usize;
        for change in self.volatile.drain(..count) {
            if choose(2) == 0 {
                change.apply(&mut self.durable);
            }
        }
        self.first = self.first.max(mark.0);
    }

    /// An image that a power cut now may leave. `in_flight` are changes handed to the file whose end
    /// was not seen; `choose(n)` picks a number below `n`.
    pub fn cut(&self, in_flight: &[Change], choose: &mut dyn FnMut(u64) -> u64) -> MemoryStorage {
        let mut image = self.durable.clone();
        // Some cuts lose nothing, some everything, most a part.
        let mood = choose(8);
        for change in self.volatile.iter().chain(in_flight) {
            let fate = match mood {
                0 => 0,
                1 => 1,
                _ => choose(3),
            };
            match fate {
                0 => change.apply(&mut image),
                1 => {}
                _ => change.tear(&mut image, choose),
            }
        }
        // A write beyond the length that stayed is not in the file.
        let mut len = self.durable.length();
        for change in self.volatile.iter().chain(in_flight) {
            if let Change::Length(new) = change {
                len = if choose(2) == 0 { *new } else { len };
            }
        }
        image.resize(len);
        image
    }
}

impl Storage for CrashStorage {
    fn len(&mut self) -> io::Result<u64> {
        Ok(self.live.length())
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.live.get(offset, buffer);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        if end > self.live.length() {
            self.apply(Change::Length(end));
        }
        self.apply(Change::Write(offset, Bytes::copy_from_slice(data)));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mark = self.begin_flush();
        self.end_flush(mark);
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.apply(Change::Length(len));
        Ok(())
    }

    fn zero(&mut self, offset: u64, len: u64, _keep: bool) -> io::Result<()> {
        self.apply(Change::Zero(offset, len));
        Ok(())
    }

    fn reserve(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>> {
        self.live.next_data(offset)
    }
}
