//! A volume: a header, records in the order of the disk, and an end.

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::manifest::Manifest;
use crate::record::{Content, RECORD_HEAD, Record, Sequence};
use crate::{MAX_DISK, VERSION};

/// Bytes of a volume's header.
pub const HEADER: usize = 96;
const MAGIC: &[u8; 8] = b"dferrypk";

/// What a volume says of itself at its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which volume of its package, counted from 1.
    pub number: u32,
    /// The package.
    pub package: Uuid,
    /// The package that this one builds upon, if it does.
    pub builds_on: Option<Uuid>,
    /// Bytes of the disk.
    pub disk_size: u64,
    /// The first byte of the disk that it tells of.
    pub first: u64,
}

/// What stands in a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Bytes of the disk.
    Data {
        /// Where.
        offset: u64,
        /// The bytes, found to be those that were exported.
        bytes: Vec<u8>,
    },
    /// A range of the disk that is zero.
    Zeros {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

/// What is read next.
#[derive(Debug)]
enum Next {
    Header,
    Head,
    Bytes(Record),
    Nothing,
}

/// Goes through the bytes of a volume, and believes none of them.
///
/// Call [`Walker::wants`], give [`Walker::take`] so many bytes, until none are wanted; then no more may come.
#[derive(Debug)]
pub struct Walker {
    expected: Header,
    /// Up to which byte of the disk it must tell, and with how many records.
    end: u64,
    records: u64,
    /// All before this byte of the disk was told of.
    at: u64,
    sequence: Sequence,
    next: Next,
}

impl Header {
    /// What volume `number` of a package must say of itself; `None` if it has no such volume.
    #[must_use]
    pub fn of(manifest: &Manifest, number: u32) -> Option<Self> {
        let entry = manifest.volume(number)?;
        Some(Self {
            number,
            package: manifest.package,
            builds_on: manifest.builds_on,
            disk_size: manifest.disk.size,
            first: entry.first,
        })
    }

    /// Its bytes, and the hash that binds the records to it.
    #[must_use]
    pub fn encode(&self) -> ([u8; HEADER], Hash) {
        let builds_on = self.builds_on.unwrap_or(Uuid::nil());
        let parts = MAGIC.iter().copied();
        let parts = parts
            .chain(VERSION.to_le_bytes())
            .chain(self.number.to_le_bytes())
            .chain(*self.package.as_bytes())
            .chain(*builds_on.as_bytes())
            .chain(self.disk_size.to_le_bytes())
            .chain(self.first.to_le_bytes());
        let said: Vec<u8> = parts.collect();
        let hash = Hash::of(&said);
        let mut header = [0; HEADER];
        for (byte, part) in header.iter_mut().zip(said.into_iter().chain(hash.0)) {
            *byte = part;
        }
        (header, hash)
    }

    /// Reads a header.
    ///
    /// `Damaged` if it is none, `Unsupported` if it is one of a later version.
    pub fn decode(header: &[u8; HEADER]) -> Result<Self> {
        let not_one = || Error::damaged("is damaged: it does not begin as a volume");
        let (magic, rest) = header.split_first_chunk::<8>().ok_or_else(not_one)?;
        let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(not_one)?;
        if magic != MAGIC {
            return Err(not_one());
        }
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(Error::unsupported(version));
        }
        let read = Self::read(rest).filter(|read| read.encode().0 == *header);
        read.ok_or_else(not_one)
    }

    fn read(rest: &[u8]) -> Option<Self> {
        let (number, rest) = rest.split_first_chunk::<4>()?;
        let (package, rest) = rest.split_first_chunk::<16>()?;
        let (builds_on, rest) = rest.split_first_chunk::<16>()?;
        let (size, rest) = rest.split_first_chunk::<8>()?;
        let (first, _) = rest.split_first_chunk::<8>()?;
        let read = Self {
            number: u32::from_le_bytes(*number),
            package: Uuid::from_bytes(*package),
            builds_on: Some(Uuid::from_bytes(*builds_on)).filter(|id| !id.is_nil()),
            disk_size: u64::from_le_bytes(*size),
            first: u64::from_le_bytes(*first),
        };
        let sound = read.number > 0 && read.disk_size <= MAX_DISK && read.first <= read.disk_size;
        sound.then_some(read)
    }

    /// Says in which way another header is not this one.
    fn refuse(&self, found: &Self) -> Result<()> {
        if found == self {
            return Ok(());
        }
        let what = if found.package != self.package {
            format!("is of another package, {}", found.package)
        } else if found.number != self.number {
            format!(
                "is volume {} of its package, in the place of {}",
                found.number, self.number
            )
        } else {
            "tells of another disk than the manifest".to_owned()
        };
        Err(Error::other(what))
    }
}

impl Walker {
    /// Goes through volume `number` of a package; `None` if it has no such volume.
    #[must_use]
    pub fn new(manifest: &Manifest, number: u32) -> Option<Self> {
        let expected = Header::of(manifest, number)?;
        let entry = manifest.volume(number)?;
        Some(Self {
            expected,
            end: entry.end,
            records: entry.records,
            at: expected.first,
            sequence: Sequence::new(expected.encode().1),
            next: Next::Header,
        })
    }

    /// How many bytes are to be given next; 0 when the volume has ended. Never more than a chunk has.
    #[must_use]
    pub fn wants(&self) -> usize {
        match &self.next {
            Next::Header => HEADER,
            Next::Head => RECORD_HEAD,
            Next::Bytes(record) => record.stored() as usize,
            Next::Nothing => 0,
        }
    }

    /// All before this byte of the disk was told of.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Takes the next bytes, as many as were wanted, and says what stands in them.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Option<Item>> {
        let short = || Error::damaged("is damaged: it ends before its end");
        match std::mem::replace(&mut self.next, Next::Nothing) {
            Next::Header => {
                let header: &[u8; HEADER] = bytes.try_into().map_err(|_| short())?;
                self.expected.refuse(&Header::decode(header)?)?;
                self.next = Next::Head;
                Ok(None)
            }
            Next::Head => {
                let head: &[u8; RECORD_HEAD] = bytes.try_into().map_err(|_| short())?;
                let record = self.sequence.decode(head)?;
                self.head(record)
            }
            Next::Bytes(record) => {
                let bytes = record.open(bytes)?;
                self.next = Next::Head;
                Ok(Some(Item::Data {
                    offset: record.offset,
                    bytes,
                }))
            }
            Next::Nothing if bytes.is_empty() => Ok(None),
            Next::Nothing => Err(Error::damaged("is damaged: it goes on after its end")),
        }
    }

    fn head(&mut self, record: Record) -> Result<Option<Item>> {
        let wrong = |what| Err(Error::damaged(format!("is damaged: {what}")));
        if record.content == Content::End {
            let before = self.sequence.count().saturating_sub(1);
            let ends = record.offset == self.end && self.at <= self.end;
            if ends && record.len == before && before == self.records {
                self.at = self.end;
                return Ok(None);
            }
            return wrong("it ends elsewhere than the manifest says");
        }
        let end = record.offset.saturating_add(record.len);
        if record.offset < self.at || end > self.end {
            return wrong("its records are not those of its part of the disk");
        }
        if record.content == Content::Zeros && self.expected.builds_on.is_none() {
            return wrong("a whole disk has no records of zeros");
        }
        self.at = end;
        if record.content == Content::Zeros {
            self.next = Next::Head;
            return Ok(Some(Item::Zeros {
                offset: record.offset,
                len: record.len,
            }));
        }
        self.next = Next::Bytes(record);
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
