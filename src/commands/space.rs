//! The host's space for a new disk, taken at once or only looked at.

use vdisk::create::default_block_size;
use vdisk::storage::{FileStorage, Storage as _};
use vdisk::{Error, ErrorKind};

use crate::args::{FormatName, ProgressMode};
use crate::failure::{Failure, Result};
use crate::plan::{Preallocation, Shape};
use crate::progress::Progress;
use crate::report::Report;
use crate::{interrupt, size};

/// Zeros written at once.
const PIECE: u64 = 4 << 20;

/// What is to be taken of a file that holds a new, empty disk.
pub(super) struct Taken<'a> {
    pub(super) mode: Preallocation,
    /// Bytes of the disk.
    pub(super) size: u64,
    pub(super) shape: &'a Shape,
}

impl Taken<'_> {
    /// Takes it. On failure the file is to be removed, as any half-made one.
    pub(super) fn take(
        &self,
        storage: &mut FileStorage,
        (report, mode): (Report, ProgressMode),
    ) -> Result<()> {
        let path = storage.path().to_owned();
        let failed = |what: &str, e| Error::io(what.to_owned(), e).in_file(&path);
        let len = storage
            .len()
            .map_err(|e| failed("its length is not known", e))?;
        if self.mode == Preallocation::Off {
            return self.warn_of_limits(storage, len, report);
        }
        let room = storage
            .room()
            .map_err(|e| failed("its file system is not known", e))?;
        if room < len {
            let what = format!(
                "its file system has {} free, the disk needs {}",
                size::show(room),
                size::show(len)
            );
            return Err(Error::new(ErrorKind::NoSpace, what).in_file(&path).into());
        }
        interrupt::listen();
        match self.mode {
            Preallocation::Written => self.write(
                storage,
                len,
                Progress::new(report, mode, "write zeros", len),
            ),
            _ => reserve(storage, len),
        }
    }

    /// Writes zeros over everything that the disk will hold, and reserves the rest.
    fn write(&self, storage: &mut FileStorage, len: u64, mut progress: Progress) -> Result<()> {
        let path = storage.path().to_owned();
        let failed = |e| Error::io("cannot be filled with zeros", e).in_file(&path);
        let mut at = len - self.payload().min(len);
        if at > 0 {
            storage.reserve(0, at).map_err(failed)?;
        }
        progress.advance(at, 0);
        let zeros = vec![0; PIECE as usize];
        while at < len {
            let piece = (len - at).min(PIECE);
            storage
                .write_at(at, &zeros[..piece as usize])
                .map_err(failed)?;
            at += piece;
            progress.advance(piece, piece);
            interrupt::check("no disk was made")?;
        }
        storage.flush().map_err(failed)?;
        progress.finish();
        Ok(())
    }

    /// Bytes at the end of the file that the disk's blocks take, all of them present.
    fn payload(&self) -> u64 {
        match self.shape.format {
            FormatName::Raw => self.size,
            FormatName::Vhdx => self.size.next_multiple_of(self.block_size()),
        }
    }

    fn block_size(&self) -> u64 {
        u64::from(
            self.shape
                .block_size
                .unwrap_or_else(|| default_block_size(self.size)),
        )
    }

    /// A disk that grows as it is written may meet an end that is known already.
    fn warn_of_limits(&self, storage: &mut FileStorage, len: u64, report: Report) -> Result<()> {
        let most = len.saturating_add(self.payload());
        if self.shape.fixed || self.shape.format == FormatName::Raw {
            return Ok(());
        }
        let path = storage.path().to_owned();
        let failed = |e| Error::io("cannot be given its length", e).in_file(&path);
        let fits = storage.set_len(most).is_ok();
        storage
            .set_len(len)
            .and_then(|()| storage.flush())
            .map_err(failed)?;
        if !fits {
            report.warn(&format!(
                "the host's file system holds no file of {}, which this disk may grow to; writes that \
                 find no room will fail with \"no space\"",
                size::show(most)
            ));
        }
        Ok(())
    }
}

fn reserve(storage: &mut FileStorage, len: u64) -> Result<()> {
    let path = storage.path().to_owned();
    let reserved = storage.reserve_or_fail(len);
    reserved.map_err(|e| match e.kind() {
        std::io::ErrorKind::Unsupported => {
            let what = "its file system cannot reserve space";
            let error = Error::new(ErrorKind::Unsupported, what).in_file(&path);
            Failure::from(error).hint("--preallocation full writes zeros instead, off leaves holes")
        }
        _ => Error::io("cannot reserve the space", e)
            .in_file(&path)
            .into(),
    })
}
