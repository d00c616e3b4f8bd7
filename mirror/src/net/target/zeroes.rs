//! Whether a part of a disk reads as zero, without reading what is not allocated.
//!
//! Must never call a part zero of which a byte was not asked about.

use std::io;
use std::sync::Arc;

use crate::net::port::DiskPort;
use crate::wire::MAX_PAYLOAD;

/// Told whether it does.
pub(super) type Answer = Box<dyn FnOnce(io::Result<bool>) + Send>;

/// Find out whether `len` bytes at `offset` read as zero.
pub(super) fn are_zero(port: Arc<dyn DiskPort>, (offset, len): (u64, u64), answer: Answer) {
    if len == 0 {
        return answer(Ok(true));
    }
    let asked = Arc::clone(&port);
    asked.status(
        offset,
        len,
        Box::new(move |extents| {
            let extents = match extents {
                Ok(extents) => extents,
                Err(e) => return answer(Err(e)),
            };
            let empty = extents
                .iter()
                .take_while(|extent| !extent.allocated || extent.zero);
            let skipped = empty.fold(0, |sum: u64, extent| sum.saturating_add(extent.len));
            let skipped = skipped.min(len);
            if skipped > 0 {
                return are_zero(port, (offset + skipped, len - skipped), answer);
            }
            let held = extents.first().map_or(0, |extent| extent.len);
            let piece = held.min(len).min(MAX_PAYLOAD as u64);
            if piece == 0 {
                let what = "the disk does not say what is allocated";
                return answer(Err(io::Error::other(what)));
            }
            read(port, (offset, len), piece, answer);
        }),
    );
}

/// Read the first `piece` bytes of it, and go on with the rest if they are zero.
fn read(port: Arc<dyn DiskPort>, (offset, len): (u64, u64), piece: u64, answer: Answer) {
    let asked = Arc::clone(&port);
    asked.read(
        offset,
        piece as u32,
        Box::new(move |data| match data {
            Err(e) => answer(Err(e)),
            Ok(data) if data.iter().any(|byte| *byte != 0) => answer(Ok(false)),
            Ok(_) => are_zero(port, (offset + piece, len - piece), answer),
        }),
    );
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use vdisk::engine::{Extent, Mark};

    use super::*;
    use crate::net::port::{Done, ReadDone, StatusDone};

    /// A disk of which every other MiB is allocated, and what was read of it.
    struct Half {
        bytes: Vec<u8>,
        read: Mutex<u64>,
    }

    const MIB: u64 = 1 << 20;

    impl DiskPort for Half {
        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read(&self, offset: u64, len: u32, done: ReadDone) {
            *self.read.lock().unwrap() += u64::from(len);
            let at = offset as usize;
            done(Ok(Bytes::copy_from_slice(
                &self.bytes[at..at + len as usize],
            )));
        }

        fn status(&self, offset: u64, len: u64, done: StatusDone) {
            let allocated = offset / MIB % 2 == 1;
            let len = len.min(MIB - offset % MIB);
            #[rustfmt::skip]
            done(Ok(vec![Extent { len, allocated, zero: false }]));
        }

        fn write(&self, _: u64, _: Bytes, _: Done) {
            unreachable!("it only looks");
        }

        fn zero(&self, _: u64, _: u64, _: Done) {
            unreachable!("it only looks");
        }

        fn flush(&self, _: Done) {
            unreachable!("it only looks");
        }

        fn park(&self, _: Option<Mark>, _: Done) {
            unreachable!("it only looks");
        }
    }

    #[test]
    fn what_is_allocated_is_read_and_nothing_else_until_a_byte_is_found() {
        for (dirty, zero) in [
            (None, true),
            (Some(MIB), false),
            (Some(8 * MIB - 1), false),
            (Some(9 * MIB), true),
        ] {
            let mut bytes = vec![0; 10 << 20];
            if let Some(at) = dirty {
                bytes[at as usize] = 1;
            }
            let read = Mutex::default();
            let disk = Arc::new(Half { bytes, read });
            let heard: Arc<Mutex<Option<bool>>> = Arc::default();
            let told = Arc::clone(&heard);
            let answer = move |answer: io::Result<bool>| *told.lock().unwrap() = answer.ok();
            are_zero(
                Arc::clone(&disk) as Arc<dyn DiskPort>,
                (512, 8 * MIB),
                Box::new(answer),
            );
            assert_eq!(*heard.lock().unwrap(), Some(zero), "{dirty:?}");
            assert!(*disk.read.lock().unwrap() <= 4 * MIB);
        }
    }
}
