//! A record of a volume: a head of 64 bytes, and bytes of the disk as they are or packed.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::{CHUNK, MAX_DISK};

/// Bytes of a record's head.
pub const RECORD_HEAD: usize = 64;
/// How hard chunks are packed.
const LEVEL: i32 = 3;

thread_local! {
    /// What is costly to make anew for each chunk.
    static PACKING: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static UNPACKING: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// What stands in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The disk's bytes, as they are.
    Plain,
    /// The disk's bytes, as one frame of zstd of so many bytes.
    Packed(u32),
    /// Nothing: they are all zero.
    Zeros,
    /// Nothing: the volume ends.
    End,
}

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What follows it.
    pub content: Content,
    /// Which byte of the disk is the first; of the end, the one at which the next volume begins.
    pub offset: u64,
    /// How many bytes of the disk; of the end, how many records came before.
    pub len: u64,
    /// The hash of the disk's bytes; [`Hash::NONE`] where none are stored.
    pub hash: Hash,
}

/// The records of one volume, each of which is bound to the volume and to its place in it.
#[derive(Clone, Debug)]
pub struct Sequence {
    volume: Hash,
    next: u64,
}

/// `bytes` packed, if that makes them at least an eighth shorter.
#[must_use]
pub fn pack(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut packed = vec![0; bytes.len() / 8 * 7];
    let written = PACKING.with_borrow_mut(|packing| {
        let compressor = match packing.take() {
            Some(compressor) => compressor,
            None => Compressor::new(LEVEL).ok()?,
        };
        // It fails when there is not room enough, which is the answer.
        let packed = packing
            .insert(compressor)
            .compress_to_buffer(bytes, &mut packed);
        packed.ok()
    })?;
    packed.truncate(written);
    Some(packed)
}

fn unpack(packed: &[u8], len: usize) -> Option<Vec<u8>> {
    let bytes = UNPACKING.with_borrow_mut(|unpacking| {
        let decompressor = match unpacking.take() {
            Some(decompressor) => decompressor,
            None => Decompressor::new().ok()?,
        };
        unpacking.insert(decompressor).decompress(packed, len).ok()
    })?;
    (bytes.len() == len).then_some(bytes)
}

impl Record {
    /// How many bytes follow the head.
    #[must_use]
    pub fn stored(&self) -> u64 {
        match self.content {
            Content::Plain => self.len,
            Content::Packed(len) => len.into(),
            Content::Zeros | Content::End => 0,
        }
    }

    /// The disk's bytes, of what follows the head.
    ///
    /// `Damaged` if they are not those that were put in.
    pub fn open(&self, stored: &[u8]) -> Result<Vec<u8>> {
        let bytes = match self.content {
            Content::Plain => Some(stored.to_vec()),
            Content::Packed(_) => unpack(stored, self.len as usize),
            Content::Zeros | Content::End => None,
        };
        let sound =
            |bytes: &Vec<u8>| bytes.len() as u64 == self.len && Hash::of(bytes) == self.hash;
        bytes.filter(sound).ok_or_else(|| {
            let (offset, len) = (self.offset, self.len);
            Error::damaged(format!(
                "is damaged: the {len} bytes at byte {offset} of the disk are not those that were exported"
            ))
        })
    }

    /// Whether its fields agree with one another.
    fn is_sound(&self) -> bool {
        let end = self.offset.checked_add(self.len);
        let on_disk = end.is_some_and(|end| end <= MAX_DISK) && self.len > 0;
        match self.content {
            Content::Plain => on_disk && self.len <= CHUNK,
            Content::Packed(len) => {
                on_disk && self.len <= CHUNK && len > 0 && u64::from(len) < self.len
            }
            Content::Zeros => on_disk && self.hash == Hash::NONE,
            Content::End => self.offset <= MAX_DISK && self.hash == Hash::NONE,
        }
    }

    fn kind(&self) -> u8 {
        match self.content {
            Content::Plain => 1,
            Content::Packed(_) => 2,
            Content::Zeros => 3,
            Content::End => 4,
        }
    }
}

impl Sequence {
    /// The records of the volume whose header has this hash.
    #[must_use]
    pub fn new(volume: Hash) -> Self {
        Self { volume, next: 0 }
    }

    /// How many records there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.next
    }

    /// The head of the next record.
    pub fn encode(&mut self, record: &Record) -> [u8; RECORD_HEAD] {
        let fields = fields(record);
        let check = self.check(&fields, &record.hash);
        self.next = self.next.saturating_add(1);
        let mut head = [0; RECORD_HEAD];
        let parts = fields.iter().chain(&check).chain(&record.hash.0);
        for (byte, part) in head.iter_mut().zip(parts) {
            *byte = *part;
        }
        head
    }

    /// Reads the head of the next record.
    ///
    /// `Damaged` if it is not one, or one of another volume or another place in this.
    pub fn decode(&mut self, head: &[u8; RECORD_HEAD]) -> Result<Record> {
        let number = self.next;
        let record = self.read(head).filter(Record::is_sound);
        let record = record
            .ok_or_else(|| Error::damaged(format!("is damaged: record {number} cannot be read")))?;
        self.next = self.next.saturating_add(1);
        Ok(record)
    }

    fn read(&self, head: &[u8; RECORD_HEAD]) -> Option<Record> {
        let (fields, rest) = head.split_first_chunk::<24>()?;
        let (check, hash) = rest.split_first_chunk::<8>()?;
        let hash = Hash(*hash.first_chunk()?);
        if self.check(fields, &hash) != *check {
            return None;
        }
        let (kind, rest) = fields.split_first_chunk::<4>()?;
        let (stored, rest) = rest.split_first_chunk::<4>()?;
        let (offset, len) = rest.split_first_chunk::<8>()?;
        let stored = u32::from_le_bytes(*stored);
        let record = Record {
            content: match kind {
                [1, 0, 0, 0] => Content::Plain,
                [2, 0, 0, 0] => Content::Packed(stored),
                [3, 0, 0, 0] => Content::Zeros,
                [4, 0, 0, 0] => Content::End,
                _ => return None,
            },
            offset: u64::from_le_bytes(*offset),
            len: u64::from_le_bytes(*len.first_chunk()?),
            hash,
        };
        (record.stored() == u64::from(stored)).then_some(record)
    }

    fn check(&self, fields: &[u8; 24], hash: &Hash) -> [u8; 8] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.volume.0);
        hasher.update(&self.next.to_le_bytes());
        hasher.update(fields);
        hasher.update(&hash.0);
        let mut check = [0; 8];
        hasher.finalize_xof().fill(&mut check);
        check
    }
}

/// What the check is of: kind, bytes that follow, offset and length.
fn fields(record: &Record) -> [u8; 24] {
    let mut fields = [0; 24];
    let stored = u32::try_from(record.stored()).unwrap_or(u32::MAX);
    let parts = u32::from(record.kind()).to_le_bytes().into_iter();
    let parts = parts
        .chain(stored.to_le_bytes())
        .chain(record.offset.to_le_bytes())
        .chain(record.len.to_le_bytes());
    for (byte, part) in fields.iter_mut().zip(parts) {
        *byte = part;
    }
    fields
}
