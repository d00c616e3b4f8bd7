//! Opening, checking and using an image that somebody harmed, with its checksums put right.
//!
//! What must hold, whatever is in the file: nothing panics or goes on without end; looking does not
//! change the file, nor does an open that is refused; a disk opened for writing reads as it does when
//! opened for reading; what was written is there when it is opened again, and the image is sound.

use std::ops::Range;

use arbitrary::{Arbitrary, Unstructured};
use vdisk::ErrorKind;
use vdisk::check::check;
use vdisk::disk::{Disk, OpenOptions};
use vdisk::storage::MemoryStorage;

use crate::file::{SharedFile, difference};
use crate::images::{self, BAT_AT, Base, LOG_AT, METADATA_AT, MIB};

/// Harms beyond these are not done.
const MOST_HARMS: usize = 12;

#[derive(Arbitrary, Debug)]
struct Plan {
    base: Base,
    harms: Vec<Harm>,
    /// Whether checksums are left as the harm made them.
    unsigned: bool,
    length: Length,
    writes: Vec<(u8, u8)>,
}

#[derive(Arbitrary, Debug)]
enum Length {
    Same,
    Longer(u8),
    Cut(u32),
}

/// Where harm is done.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    Identifier,
    HeaderOne,
    HeaderTwo,
    RegionOne,
    RegionTwo,
    Log,
    Metadata,
    Items,
    Bat,
    LaterBat,
    Blocks,
}

impl Place {
    fn at(self) -> u64 {
        match self {
            Self::Identifier => 0,
            Self::HeaderOne => 64 << 10,
            Self::HeaderTwo => 128 << 10,
            Self::RegionOne => 192 << 10,
            Self::RegionTwo => 256 << 10,
            Self::Log => LOG_AT,
            Self::Metadata => METADATA_AT,
            Self::Items => METADATA_AT + (64 << 10),
            Self::Bat => BAT_AT,
            // The entry of the first sector bitmap is in this page.
            Self::LaterBat => BAT_AT + 4096 * 8,
            Self::Blocks => BAT_AT + MIB,
        }
    }
}

/// A number as somebody who means harm would choose it.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Small(u8),
    Mib(u16),
    Power(u8),
    AllBelow(u8),
    Last(u8),
    Any(u64),
}

impl Number {
    fn value(self) -> u64 {
        match self {
            Self::Small(value) => u64::from(value),
            Self::Mib(value) => u64::from(value) * MIB,
            Self::Power(power) => 1 << (power % 64),
            Self::AllBelow(power) => (1 << (power % 64)) - 1,
            Self::Last(below) => u64::MAX - u64::from(below),
            Self::Any(value) => value,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Harm {
    /// A field: place, byte in it, bytes as a power of two.
    Field(Place, u16, u8, Number),
    /// An entry of the table: index, state and reserved bits, mebibyte.
    Entry(u16, u8, u16),
    /// A page goes to another place.
    Copy(Place, Place, u8, u8),
    /// One bit.
    Flip(Place, u16, u8),
}

impl Harm {
    fn apply(&self, file: &mut MemoryStorage) {
        match *self {
            Self::Field(place, at, width, number) => {
                let bytes = number.value().to_le_bytes();
                let width = 1 << (width % 4);
                file.put(place.at() + u64::from(at), &bytes[..width]);
            }
            Self::Entry(index, state, mib) => {
                let entry = u64::from(mib) << 20 | u64::from(state);
                let index = u64::from(index) % 4608;
                file.put(BAT_AT + index * 8, &entry.to_le_bytes());
            }
            Self::Copy(from, to, first, second) => {
                let mut page = [0; 4096];
                file.get(from.at() + u64::from(first) * 4096, &mut page);
                file.put(to.at() + u64::from(second) * 4096, &page);
            }
            Self::Flip(place, at, bit) => {
                let at = place.at() + u64::from(at);
                let mut byte = [0];
                file.get(at, &mut byte);
                file.put(at, &[byte[0] ^ 1 << (bit % 8)]);
            }
        }
    }
}

fn sign(file: &mut MemoryStorage, range: Range<u64>) {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.get(range.start, &mut bytes);
    bytes[4..8].fill(0);
    let sum = crc32c::crc32c(&bytes);
    file.put(range.start + 4, &sum.to_le_bytes());
}

/// Puts right every checksum that a reader looks at.
fn sign_all(file: &mut MemoryStorage) {
    for (start, len) in [(64, 4), (128, 4), (192, 64), (256, 64)] {
        let mut signature = [0; 4];
        file.get(start << 10, &mut signature);
        if signature != [0; 4] {
            sign(file, start << 10..(start + len) << 10);
        }
    }
    let end = LOG_AT + MIB;
    for at in (LOG_AT..end).step_by(4096) {
        let mut head = [0; 12];
        file.get(at, &mut head);
        let [.., a, b, c, d] = head;
        let len = u64::from(u32::from_le_bytes([a, b, c, d]));
        if head.starts_with(b"loge") && (4096..=end - at).contains(&len) {
            sign(file, at..at + len);
        }
    }
}

fn harmed(plan: &Plan) -> MemoryStorage {
    let mut file = plan.base.image();
    for harm in plan.harms.iter().take(MOST_HARMS) {
        harm.apply(&mut file);
    }
    if !plan.unsigned {
        sign_all(&mut file);
    }
    match plan.length {
        Length::Same => {}
        Length::Longer(mib) => file.resize(file.length() + u64::from(mib) * MIB),
        Length::Cut(at) => file.resize(file.length().min(u64::from(at))),
    }
    file
}

fn options(read_only: bool) -> OpenOptions {
    OpenOptions {
        read_only,
        allow_marked: true,
        cache: 1 << 20,
        ..OpenOptions::default()
    }
}

/// Pieces of the disk that are looked at.
fn places(size: u64) -> impl Iterator<Item = Range<u64>> {
    const LEN: u64 = 24 << 10;
    let places = [0, 1, 2, 3, 4, 5, 39, 1099, 4095, 4096];
    let starts = places
        .into_iter()
        .map(|mib| (mib * MIB).saturating_sub(8192));
    let pieces = starts.chain([size.saturating_sub(LEN)]);
    pieces
        .map(move |start| start.min(size)..(start + LEN).min(size))
        .filter(|piece| !piece.is_empty())
}

/// What a disk holds in those pieces; `None` for what cannot be read.
fn content(disk: &mut Disk) -> Vec<Option<Vec<u8>>> {
    let size = disk.size();
    places(size)
        .map(|piece| {
            let len = piece.end - piece.start;
            let mut buffer = vec![0xEE; len as usize];
            let read = disk.read_at(piece.start, &mut buffer);
            if let Ok(extents) = disk.status(piece.start, len) {
                let told: u64 = extents.iter().map(|extent| extent.len).sum();
                assert!((1..=len).contains(&told), "{told} of {len} bytes told of");
            }
            read.is_ok().then_some(buffer)
        })
        .collect()
}

/// Looking at the file; what a disk opened for reading holds.
fn look(file: &MemoryStorage, plan: &Plan) -> Option<Vec<Option<Vec<u8>>>> {
    let mut shared = SharedFile::new(file.clone());
    let _ = check(&mut shared);
    let _ = vdisk::info::info(&mut shared);
    let disk = images::open(&shared, &options(true), plan.base.is_child());
    let seen = disk.ok().map(|mut disk| {
        let seen = content(&mut disk);
        let _ = disk.close();
        seen
    });
    let changed = difference(file, &shared.content(), 0);
    assert_eq!(changed, None, "a look changed the file");
    seen
}

/// Writes, and closes the disk; what it must hold then.
fn write(disk: &mut Disk, writes: &[(u8, u8)]) -> Option<Vec<Option<Vec<u8>>>> {
    let size = disk.size();
    let starts: Vec<Range<u64>> = places(size).collect();
    let mut whole = true;
    for (number, (place, what)) in writes.iter().take(16).enumerate() {
        let piece = &starts[usize::from(*place) % starts.len()];
        let (start, len) = (piece.start, piece.end - piece.start);
        let done = match what % 6 {
            0 | 1 => disk.write_at(start, &vec![0xC0 + number as u8; len as usize]),
            2 => disk.write_at(start + len / 3, &[0xD0 + number as u8; 1][..]),
            3 => disk.zero(start, len),
            4 => disk.zero(start / MIB * MIB, MIB.min(size - start / MIB * MIB)),
            _ => disk.flush(),
        };
        whole &= done.is_ok();
    }
    whole &= disk.flush().is_ok();
    let seen = content(disk);
    whole.then_some(seen)
}

fn use_it(file: &MemoryStorage, plan: &Plan, seen: Option<&Vec<Option<Vec<u8>>>>) {
    let shared = SharedFile::new(file.clone());
    let child = plan.base.is_child();
    let mut disk = match images::open(&shared, &options(false), child) {
        Ok(disk) => disk,
        Err(error) => {
            let host = matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Io);
            let changed = difference(file, &shared.content(), 0);
            assert!(host || changed.is_none(), "changed and refused: {error}");
            return;
        }
    };
    let seen = seen.expect("what can be written can be read");
    let first = content(&mut disk);
    assert_eq!(&first, seen, "read-only and writable opens differ");
    let expected = write(&mut disk, &plan.writes);
    let closed = disk.close();
    let Some(expected) = expected.filter(|_| closed.is_ok()) else {
        return;
    };
    let report = check(&mut shared.clone()).expect("it can be checked");
    // A long table is gone through in the background: a disk that is closed before may keep what is wrong.
    let before = check(&mut SharedFile::new(file.clone()));
    let was_sound = before.is_ok_and(|report| report.is_sound());
    let findings = report.findings.as_slice();
    assert!(report.is_sound() || !was_sound, "after use: {findings:?}");
    let again = images::open(&shared, &options(true), child);
    let mut again = again.expect("what was closed opens");
    assert_eq!(content(&mut again), expected, "not what was written");
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let file = harmed(&plan);
    let seen = look(&file, &plan);
    use_it(&file, &plan, seen.as_ref());
}
