//! A partition with an ext4 file system, as the library that reads it sees it.
//!
//! Driver: gives the library what it asks for, but a superblock that it can go by, descriptors from where they
//! are, and blocks that are newer in the journal from there. So the library sees the file system as Linux would
//! after it had replayed the journal, while nothing is written.

use std::collections::BTreeMap;
use std::io;

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use super::disk::{Reader, Refused, refusal};
use super::journal::{self, Newer, Unread};
use super::partitions::Partition;
use super::superblock::{self, Superblock};
use super::tree::FileTree;
use super::unreadable;
use crate::Result;

/// Where other file systems and layers say what they are: offset, bytes, name.
const OTHERS: [(u64, &[u8], &str); 9] = [
    (0, b"XFSB", "XFS"),
    (0x1_0040, b"_BHRfS_M", "Btrfs"),
    (0, b"LUKS\xBA\xBE", "an encrypted volume (LUKS)"),
    (512, b"LABELONE", "a volume of LVM"),
    (4096, b"\xFC\x4E\x2B\xA9", "a part of a software RAID"),
    (54, b"FAT", "FAT"),
    (82, b"FAT32", "FAT"),
    (0xFF6, b"SWAPSPACE2", "swap"),
    (1024, b"\x10\x20\xF5\xF2", "F2FS"),
];

/// What a partition turned out to be.
pub(super) enum Opened {
    /// A file system that can be read.
    Tree(FileTree),
    /// Something else, in words that go on after the partition's name.
    Other(String),
}

/// Look at a partition.
pub(super) fn open(reader: &Reader, partition: &Partition) -> Result<Opened> {
    let mut bytes = [0; superblock::BYTES];
    let found = reader.read_at(partition.start + superblock::AT, &mut bytes);
    let room = partition.bytes;
    if room < superblock::AT + superblock::BYTES as u64 {
        return Ok(Opened::Other("is too small for a file system".into()));
    }
    found.map_err(|error| unreadable(HERE, error))?;
    if !superblock::is_one(&bytes) {
        return Ok(Opened::Other(other(reader, partition)?));
    }
    let superblock = match superblock::read(&bytes, room) {
        Ok(superblock) => superblock,
        Err(what) => return Ok(Opened::Other(format!("its file system {what}"))),
    };
    let mut volume = Volume {
        reader: reader.clone(),
        start: partition.start,
        plain: superblock::plain(&bytes),
        superblock,
        newer: BTreeMap::new(),
    };
    let remark = match volume.heed_journal(room) {
        Ok(()) => None,
        Err(unread) => {
            let why = match unread {
                Unread::Odd(why) => why,
                Unread::Disk(error) => match refusal(&error) {
                    Some(_) => "its journal leads where nothing is",
                    None => return Err(unreadable(HERE, error)),
                },
            };
            // All of it or nothing.
            volume.newer.clear();
            Some(format!(
                "the file system was not shut down cleanly and {why}; its files may be older than they should be"
            ))
        }
    };
    let uuid = volume.superblock.uuid.clone();
    match Ext4::load(Box::new(volume)) {
        Ok(ext4) => Ok(Opened::Tree(FileTree::new(ext4, uuid, remark))),
        Err(Ext4Error::Io(error)) => Err(unreadable(HERE, cause(error))),
        Err(error) => Ok(Opened::Other(format!(
            "its file system cannot be read: {error}"
        ))),
    }
}

/// What cannot be read.
const HERE: &str = "the disk to start from cannot be read";

/// What [`Volume`] told the library.
pub(super) fn cause(error: Box<dyn std::error::Error + Send + Sync>) -> io::Error {
    match error.downcast::<io::Error>() {
        Ok(error) => *error,
        Err(error) => io::Error::other(error),
    }
}

/// What is there if it is no ext4.
fn other(reader: &Reader, partition: &Partition) -> Result<String> {
    for (at, magic, name) in OTHERS {
        let mut bytes = vec![0; magic.len()];
        if at + magic.len() as u64 > partition.bytes {
            continue;
        }
        let read = reader.read_at(partition.start + at, &mut bytes);
        read.map_err(|error| unreadable(HERE, error))?;
        if bytes == magic {
            return Ok(format!("holds {name}, which is not read"));
        }
    }
    Ok("holds nothing that is known".to_owned())
}

/// No block of the file system.
const OUTSIDE: Refused = Refused("it leads out of its file system");

struct Volume {
    reader: Reader,
    /// Of the partition on the disk, in bytes.
    start: u64,
    superblock: Superblock,
    /// The superblock that the library sees.
    plain: [u8; superblock::BYTES],
    newer: BTreeMap<u64, Newer>,
}

impl Volume {
    /// Find out what is newer in the journal, the superblock included.
    fn heed_journal(&mut self, room: u64) -> Result<(), Unread> {
        let Some(inode) = self.superblock.journal else {
            return Ok(());
        };
        let block = self.superblock.block;
        let read = |number: u64| {
            let mut bytes = vec![0; block as usize];
            self.reader
                .read_at(self.block_at(number)?, &mut bytes)
                .map(|()| bytes)
        };
        self.newer = journal::newer(&self.superblock, inode, &read)?;
        let mut bytes = [0; superblock::BYTES];
        self.blocks(superblock::AT, &mut bytes)?;
        match superblock::read(&bytes, room) {
            Ok(superblock) if superblock.block == block => {
                self.plain = superblock::plain(&bytes);
                self.superblock = superblock;
                Ok(())
            }
            _ => Err(Unread::Odd("its journal is damaged")),
        }
    }

    /// Where a block is on the disk; [`Refused`] if the file system has no such block.
    fn block_at(&self, number: u64) -> io::Result<u64> {
        if number >= self.superblock.blocks {
            return Err(OUTSIDE.into());
        }
        Ok(self.start + number * self.superblock.block)
    }

    /// Fill `into` from `offset`, each block from where it is newest.
    fn blocks(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let size = self.superblock.block;
        let (mut at, mut rest) = (offset, into);
        while !rest.is_empty() {
            let (number, within) = (at / size, at % size);
            let len = (size - within).min(rest.len() as u64);
            let (part, others) = rest.split_at_mut(len as usize);
            let newer = self.newer.get(&number);
            let place = newer.map_or(number, |newer| newer.block);
            self.reader.read_at(self.block_at(place)? + within, part)?;
            if newer.is_some_and(|newer| newer.escaped) {
                let missing = journal::MAGIC.iter().skip(within as usize);
                for (byte, missing) in part.iter_mut().zip(missing) {
                    *byte = *missing;
                }
            }
            (at, rest) = (at + len, others);
        }
        Ok(())
    }

    fn answer(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if offset == superblock::AT && into.len() == superblock::BYTES {
            into.copy_from_slice(&self.plain);
            return Ok(());
        }
        // Whatever is shorter than any block is a descriptor, looked for where it would be if all were together.
        if into.len() as u64 == self.superblock.descriptor {
            let first = self.superblock.plain_descriptors();
            let group = offset.checked_sub(first).map(|at| at / into.len() as u64);
            let place = group.and_then(|group| self.superblock.descriptor_at(group));
            return self.blocks(place.ok_or(OUTSIDE)?, into);
        }
        self.blocks(offset, into)
    }
}

impl Ext4Read for Volume {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.answer(start_byte, dst)?)
    }
}
