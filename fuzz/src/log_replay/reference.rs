//! The log as the text of MS-VHDX 2.3 has it, written down once more and without regard to speed: a
//! second opinion on what the engine reads. Nothing in here is shared with the engine.

use vdisk::format::Guid;

const SECTOR: usize = 4096;
const DESCRIPTOR: usize = 32;
const DESCRIPTORS: usize = 128;
/// No target may lie beyond this byte: 128 TiB, our own bound.
pub(super) const FARTHEST: u64 = 128 << 40;
/// Identifier and headers do not go through the log.
const FIRST_LOGGED: u64 = 192 << 10;

/// What an entry does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Page(u64, Vec<u8>),
    Zero(u64, u64),
}

/// What an entry says besides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) guid: Guid,
    pub(super) sequence: u64,
    pub(super) tail: u32,
    pub(super) flushed: u64,
    pub(super) last: u64,
}

/// An entry as it was found.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) at: u32,
    len: usize,
    tail: u32,
    sequence: u64,
    pub(super) flushed: u64,
    pub(super) last: u64,
    pub(super) changes: Vec<Change>,
}

/// What a log holds.
#[derive(Debug)]
pub(super) struct Found {
    /// From the tail to the head; none if no sequence is valid.
    pub(super) entries: Vec<Entry>,
    /// Whether any sector begins like an entry of this log.
    pub(super) named: bool,
}

/// The sectors of an entry.
pub(super) fn encode(header: &Header, changes: &[Change]) -> Vec<u8> {
    let sectors = (changes.len() + 2).div_ceil(DESCRIPTORS);
    let mut entry = vec![0; sectors * SECTOR];
    let mut put = |at: usize, bytes: &[u8]| entry[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"loge");
    put(12, &header.tail.to_le_bytes());
    put(16, &header.sequence.to_le_bytes());
    put(24, &(changes.len() as u32).to_le_bytes());
    put(32, &header.guid.0);
    put(48, &header.flushed.to_le_bytes());
    put(56, &header.last.to_le_bytes());
    let sequence = header.sequence.to_le_bytes();
    let mut data = Vec::new();
    for (number, change) in changes.iter().enumerate() {
        let at = (number + 2) * DESCRIPTOR;
        match change {
            Change::Page(to, page) => {
                put(at, b"desc");
                put(at + 4, &page[4092..]);
                put(at + 8, &page[..8]);
                put(at + 16, &to.to_le_bytes());
                data.extend_from_slice(b"data");
                data.extend_from_slice(&sequence[4..]);
                data.extend_from_slice(&page[8..4092]);
                data.extend_from_slice(&sequence[..4]);
            }
            Change::Zero(to, len) => {
                put(at, b"zero");
                put(at + 8, &len.to_le_bytes());
                put(at + 16, &to.to_le_bytes());
            }
        }
        put(at + 24, &sequence);
    }
    let len = sectors * SECTOR + data.len();
    put(8, &(len as u32).to_le_bytes());
    entry.extend(data);
    let sum = crc32c::crc32c(&entry);
    entry[4..8].copy_from_slice(&sum.to_le_bytes());
    entry
}

/// Puts the checksum of the entry at `at` right, if there is one.
pub(super) fn sign(log: &mut [u8], at: usize) {
    let head = &log[at..at + SECTOR];
    let len = number(head, 8, 4) as usize;
    if !head.starts_with(b"loge") || !len.is_multiple_of(SECTOR) || len == 0 || len > log.len() {
        return;
    }
    let mut entry = unwrapped(log, at, len);
    entry[4..8].fill(0);
    let sum = crc32c::crc32c(&entry);
    log[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
}

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let mut number = [0; 8];
    number[..width].copy_from_slice(&bytes[at..at + width]);
    u64::from_le_bytes(number)
}

fn unwrapped(log: &[u8], at: usize, len: usize) -> Vec<u8> {
    (0..len).map(|byte| log[(at + byte) % log.len()]).collect()
}

/// The entry at `at` if it keeps every rule of 2.3.1.
fn entry(log: &[u8], at: usize, guid: Guid, log_at: u64) -> Option<Entry> {
    let head = &log[at..at + SECTOR];
    let len = number(head, 8, 4) as usize;
    let tail = number(head, 12, 4);
    let sequence = number(head, 16, 8);
    let right = head.starts_with(b"loge")
        && head[32..48] == guid.0
        && len.is_multiple_of(SECTOR)
        && (SECTOR..=log.len()).contains(&len)
        && tail.is_multiple_of(SECTOR as u64)
        && tail < log.len() as u64
        && sequence > 0;
    if !right {
        return None;
    }
    let mut bytes = unwrapped(log, at, len);
    let sum = number(&bytes, 4, 4);
    bytes[4..8].fill(0);
    if u64::from(crc32c::crc32c(&bytes)) != sum {
        return None;
    }
    let changes = changes(&bytes, sequence)?;
    let log_end = log_at + log.len() as u64;
    let allowed = changes.iter().all(|change| {
        let (to, len) = match change {
            Change::Page(to, _) => (*to, SECTOR as u64),
            Change::Zero(to, len) => (*to, *len),
        };
        let pages = to.is_multiple_of(SECTOR as u64) && len.is_multiple_of(SECTOR as u64);
        let end = to.checked_add(len).filter(|end| *end <= FARTHEST);
        pages && to >= FIRST_LOGGED && end.is_some_and(|end| end <= log_at || log_end <= to)
    });
    allowed.then_some(Entry {
        at: at as u32,
        len,
        tail: tail as u32,
        sequence,
        flushed: number(head, 48, 8),
        last: number(head, 56, 8),
        changes,
    })
}

/// What the descriptors of a whole entry say; `None` if one of them, or a data sector, is not right.
fn changes(bytes: &[u8], sequence: u64) -> Option<Vec<Change>> {
    let count = number(bytes, 24, 4) as usize;
    let sectors = (count + 2).div_ceil(DESCRIPTORS);
    let mut data = bytes.get(sectors * SECTOR..)?.chunks_exact(SECTOR);
    let mut changes = Vec::new();
    for descriptor in 0..count {
        let at = (descriptor + 2) * DESCRIPTOR;
        let descriptor = &bytes[at..at + DESCRIPTOR];
        let to = number(descriptor, 16, 8);
        if number(descriptor, 24, 8) != sequence {
            return None;
        }
        changes.push(match &descriptor[..4] {
            b"desc" => {
                let sector = data.next()?;
                let own = number(sector, 4, 4) << 32 | number(sector, 4092, 4);
                if !sector.starts_with(b"data") || own != sequence {
                    return None;
                }
                let mut page = sector.to_vec();
                page[..8].copy_from_slice(&descriptor[8..16]);
                page[4092..].copy_from_slice(&descriptor[4..8]);
                Change::Page(to, page)
            }
            b"zero" => Change::Zero(to, number(descriptor, 8, 8)),
            _ => return None,
        });
    }
    data.next().is_none().then_some(changes)
}

/// The walk of 2.3.3 from one sector: entries one after the other, each one's number one more than
/// that of the one before, together not more than the log.
fn walk(entries: &[Option<Entry>], from: usize, log_len: usize) -> Vec<&Entry> {
    let mut walked: Vec<&Entry> = Vec::new();
    let (mut at, mut total) = (from, 0);
    while let Some(entry) = &entries[at / SECTOR] {
        let follows = walked
            .last()
            .is_none_or(|last| last.sequence.checked_add(1) == Some(entry.sequence));
        if !follows || total + entry.len > log_len {
            break;
        }
        walked.push(entry);
        total += entry.len;
        at = (at + entry.len) % log_len;
    }
    walked
}

/// The active sequence of a log, by a walk from every sector.
pub(super) fn find(log: &[u8], guid: Guid, log_at: u64) -> Found {
    let starts = (0..log.len()).step_by(SECTOR);
    let entries: Vec<Option<Entry>> = starts
        .clone()
        .map(|at| entry(log, at, guid, log_at))
        .collect();
    let mut best: Vec<&Entry> = Vec::new();
    for from in starts {
        let walked = walk(&entries, from, log.len());
        let Some(head) = walked.last() else {
            continue;
        };
        let tail = walked.iter().position(|entry| entry.at == head.tail);
        let newer = best.last().is_none_or(|best| best.sequence < head.sequence);
        if let (true, Some(tail)) = (newer, tail) {
            best = walked[tail..].to_vec();
        }
    }
    let named = log
        .chunks_exact(SECTOR)
        .any(|sector| sector.starts_with(b"loge") && sector[32..48] == guid.0);
    Found {
        entries: best.into_iter().cloned().collect(),
        named,
    }
}
