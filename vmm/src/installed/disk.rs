//! The disk that is read: pieces of it are kept, and what is asked of it is counted.
//!
//! Driver: reads, and never more than [`MOST_READ`] in all, whatever a file system says.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{error, fmt, io};

/// Bytes that are read at a time.
const PIECE: u64 = 256 << 10;
/// Pieces that are kept.
const KEPT: usize = 32;
/// Bytes that are read of a disk, at most: a kernel, initrds, a journal, tables, and room.
const MOST_READ: u64 = 8 << 30;

/// A disk that can be started from.
pub trait BootDisk: Send + Sync {
    /// Bytes of the disk.
    fn size(&self) -> u64;
    /// Bytes of its logical sector: 512 or 4096.
    fn sector(&self) -> u32;
    /// Fill `into` from `offset`; all of it lies in the disk.
    ///
    /// # Errors
    ///
    /// What the disk says.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Why bytes are not read although the disk could be: what is said of it cannot be, or is too much.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused(pub(super) &'static str);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl error::Error for Refused {}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        Self::other(refused)
    }
}

/// Why this error is a refusal, if it is one. All others are the disk's own.
pub(super) fn refusal(error: &io::Error) -> Option<&'static str> {
    let refused = error.get_ref()?.downcast_ref::<Refused>();
    refused.map(|refused| refused.0)
}

/// How far a reading is, seen from outside.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Progress {
    /// Reads that were begun.
    pub(super) fn count(&self) -> u64 {
        self.0.begun.load(Ordering::Acquire)
    }

    /// Whether the disk has yet to answer.
    pub(super) fn is_reading(&self) -> bool {
        self.0.ended.load(Ordering::Acquire) != self.count()
    }
}

struct Piece {
    at: u64,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Pieces {
    kept: VecDeque<Piece>,
    read: u64,
}

/// The disk with some of its pieces in memory. Clones share them.
#[derive(Clone)]
pub(super) struct Reader {
    disk: Arc<dyn BootDisk>,
    pieces: Arc<Mutex<Pieces>>,
    progress: Progress,
}

impl Reader {
    pub(super) fn new(disk: Arc<dyn BootDisk>) -> Self {
        Self {
            disk,
            pieces: Arc::default(),
            progress: Progress::default(),
        }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        self.disk.size()
    }

    /// Bytes of its logical sector.
    pub(super) fn sector(&self) -> u32 {
        self.disk.sector()
    }

    /// Fill `into` from `offset`. A range beyond the disk is [`Refused`].
    pub(super) fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.size()) {
            return Err(Refused("it leads out of the disk").into());
        }
        let (mut at, mut rest) = (offset, into);
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        while !rest.is_empty() {
            let piece = self.piece(&mut pieces, at - at % PIECE)?;
            let found = piece.get((at % PIECE) as usize..).unwrap_or_default();
            let len = found.len().min(rest.len());
            if len == 0 {
                return Err(Refused("it leads out of the disk").into());
            }
            let (filled, others) = rest.split_at_mut(len);
            filled.copy_from_slice(&found[..len]);
            (at, rest) = (at + len as u64, others);
        }
        Ok(())
    }

    /// The piece that begins at `at`, which lies in the disk.
    fn piece<'a>(&self, pieces: &'a mut Pieces, at: u64) -> io::Result<&'a [u8]> {
        if let Some(place) = pieces.kept.iter().position(|piece| piece.at == at) {
            let piece = pieces.kept.remove(place);
            pieces.kept.extend(piece);
        } else {
            let len = PIECE.min(self.size() - at);
            pieces.read += len;
            if pieces.read > MOST_READ {
                return Err(Refused("more was read than an installed disk needs").into());
            }
            let mut bytes = vec![0; len as usize];
            self.progress.0.begun.fetch_add(1, Ordering::AcqRel);
            let read = self.disk.read_at(at, &mut bytes);
            self.progress.0.ended.fetch_add(1, Ordering::AcqRel);
            read?;
            if pieces.kept.len() == KEPT {
                pieces.kept.pop_front();
            }
            pieces.kept.push_back(Piece { at, bytes });
        }
        Ok(pieces.kept.back().map_or(&[], |piece| &piece.bytes))
    }
}
