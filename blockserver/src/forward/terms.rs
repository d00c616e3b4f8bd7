//! What an export elsewhere has to be at every connection where it stands for a disk of this server.
//!
//! Must never let requests for one disk reach another, as far as a server tells them apart.

use crate::nbd::client::RemoteExport;
use crate::nbd::wire::{DEFAULT_MAX_PAYLOAD, transmission};

/// The largest unit of requests that clients here are told of.
const LARGEST_UNIT: u32 = 4096;

/// What was found of it at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Bytes.
    pub(crate) size: u64,
    /// The smallest unit of a request, bytes.
    pub(crate) min_block: u32,
    /// Whether nothing is written to it.
    pub(crate) read_only: bool,
    /// Whether it can make a range zero without being sent the zeroes.
    pub(crate) zeroes: bool,
}

impl Terms {
    /// Those of an export that is to be a disk from now on, only to be read if that is `asked`; or why it cannot be one.
    pub(crate) fn of(remote: &RemoteExport, asked: bool) -> Result<Self, String> {
        let terms = Self {
            size: remote.size,
            min_block: remote.min_block,
            read_only: asked || remote.is_read_only(),
            zeroes: remote.has(transmission::SEND_WRITE_ZEROES),
        };
        match terms.broken_by(remote) {
            Some(why) => Err(why),
            None => Ok(terms),
        }
    }

    /// Why `remote` cannot be the disk, if it cannot.
    pub(crate) fn broken_by(&self, remote: &RemoteExport) -> Option<String> {
        let unit = remote.min_block;
        if remote.size != self.size {
            let (now, was) = (remote.size, self.size);
            return Some(format!("the export has {now} bytes, and the disk {was}"));
        }
        if unit > self.min_block || unit > LARGEST_UNIT {
            return Some(format!("the export takes requests of {unit} bytes only"));
        }
        if !self.size.is_multiple_of(u64::from(unit.max(1))) {
            let size = self.size;
            return Some(format!(
                "the export's {size} bytes are no multiple of {unit}"
            ));
        }
        if remote.max_payload < DEFAULT_MAX_PAYLOAD {
            let most = remote.max_payload;
            return Some(format!(
                "the export takes at most {most} bytes at once; clients here may send {DEFAULT_MAX_PAYLOAD}"
            ));
        }
        if self.read_only {
            return None;
        }
        if remote.is_read_only() {
            return Some("the export cannot be written any more".to_owned());
        }
        let flushes = remote.has(transmission::SEND_FLUSH);
        (!flushes).then(|| "the export has no flush: it never says what is durable".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote() -> RemoteExport {
        RemoteExport {
            size: 1 << 20,
            flags: transmission::SEND_FLUSH,
            min_block: 512,
            preferred_block: 4096,
            max_payload: DEFAULT_MAX_PAYLOAD,
            structured: true,
            allocation: None,
        }
    }

    #[test]
    fn an_export_stays_the_disk_only_as_long_as_it_is_like_it() {
        let terms = Terms::of(&remote(), false).expect("it can be a disk");
        assert_eq!(terms.broken_by(&remote()), None);
        let changed = |change: &dyn Fn(&mut RemoteExport)| {
            let mut other = remote();
            change(&mut other);
            terms.broken_by(&other)
        };
        assert!(changed(&|other| other.size += 512).is_some());
        assert!(changed(&|other| other.size -= 512).is_some());
        assert!(changed(&|other| other.min_block = 1024).is_some());
        assert!(changed(&|other| other.max_payload = 1 << 20).is_some());
        assert!(changed(&|other| other.flags |= transmission::READ_ONLY).is_some());
        assert!(changed(&|other| other.flags = 0).is_some());
        assert_eq!(changed(&|other| other.min_block = 1), None);
    }

    #[test]
    fn a_disk_that_is_only_read_needs_neither_flush_nor_writing() {
        let only_read = RemoteExport {
            flags: transmission::READ_ONLY,
            ..remote()
        };
        let terms = Terms::of(&only_read, false).expect("it can be read");
        assert!(terms.read_only);
        let without_flush = RemoteExport {
            flags: 0,
            ..remote()
        };
        assert!(Terms::of(&without_flush, false).is_err());
        assert!(Terms::of(&without_flush, true).is_ok());
    }

    #[test]
    fn an_export_of_large_or_odd_units_is_no_disk() {
        let of = |size, min_block| {
            let odd = RemoteExport {
                size,
                min_block,
                ..remote()
            };
            Terms::of(&odd, false)
        };
        assert!(of(1 << 20, 4096).is_ok());
        assert!(of(1 << 20, 8192).is_err());
        assert!(of((1 << 20) + 512, 4096).is_err());
    }
}
