//! Logs: entries laid down by a plan, some of them damaged, replayed by the engine and by the text.
//!
//! What must hold: the entries that count are those that the procedure of MS-VHDX 2.3.3 finds, done
//! here as the text says it, walk by walk (`reference`); a writable open leaves what replaying them
//! from tail to head makes of the file, a read-only one shows the same; a file whose log is refused is
//! not changed.

mod reference;

use arbitrary::{Arbitrary, Unstructured};
use vdisk::format::header::{Header, Slot};
use vdisk::format::log::{LogPlace, find_active};
use vdisk::format::{Guid, PAGE_BYTES};
use vdisk::open::{Admit, Image, LoadOptions, load};
use vdisk::storage::{MemoryStorage, Storage};
use vdisk::units::FileOffset;

use self::reference::{Change, Found};
use crate::file::{SharedFile, difference};
use crate::images::{BAT_AT, Base, LOG_AT, METADATA_AT, MIB, bits};

const LOG_LEN: usize = MIB as usize;
const SECTOR: usize = 4096;

#[derive(Arbitrary, Debug)]
struct Plan {
    base: Base,
    /// The sector at which the first entry begins.
    start: u8,
    entries: Vec<Entry>,
    harms: Vec<Harm>,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    /// Sectors between this entry and the one before.
    gap: u8,
    sequence: Sequence,
    tail: Tail,
    flushed: Length,
    last: Length,
    foreign: bool,
    changes: Vec<Planned>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Sequence {
    Next,
    Same,
    Jump(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Tail {
    Own,
    First,
    Back(u8),
    Raw(u32),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    AsIs,
    Mib(u16),
    Raw(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Planned {
    Page(Target, u8),
    Zero(Target, u8),
    ZeroRaw(u64, u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Target {
    /// A page where no structure is.
    Free(u8),
    /// A page beyond the end of the file.
    Beyond(u8),
    Metadata(u8),
    Bat(u8),
    Raw(u64),
}

impl Target {
    fn at(self, file_len: u64) -> u64 {
        match self {
            Self::Free(page) => 5 * MIB + u64::from(page) * PAGE_BYTES,
            Self::Beyond(page) => file_len + u64::from(page) * PAGE_BYTES,
            Self::Metadata(page) => METADATA_AT + u64::from(page % 32) * PAGE_BYTES,
            Self::Bat(page) => BAT_AT + u64::from(page) * PAGE_BYTES,
            Self::Raw(at) => at,
        }
    }
}

/// Damage: byte of the log, what it is xored with, whether the entry is signed again.
#[derive(Arbitrary, Debug)]
struct Harm {
    sector: u8,
    at: u16,
    xor: u8,
    signed: bool,
}

impl Entry {
    fn changes(&self, file: &MemoryStorage) -> Vec<Change> {
        let len = file.length();
        let page = |at: u64, fill: u8| {
            let mut page = vec![fill; SECTOR];
            if at < 4 * MIB && fill < 0xC0 {
                // What is there already, so that the image stays one.
                file.get(at, &mut page);
            }
            Change::Page(at, page)
        };
        let planned = self.changes.iter().take(20);
        let made = planned.map(|one| match *one {
            Planned::Page(target, with) => page(target.at(len), with),
            Planned::Zero(target, pages) => {
                Change::Zero(target.at(len), u64::from(pages) * PAGE_BYTES)
            }
            Planned::ZeroRaw(at, len) => Change::Zero(at, len),
        });
        made.collect()
    }
}

fn length(length: Length, file: &MemoryStorage) -> u64 {
    match length {
        Length::AsIs => file.length(),
        Length::Mib(mib) => u64::from(mib) * MIB,
        Length::Raw(raw) => raw,
    }
}

/// The log that the plan makes.
fn log_of(plan: &Plan, file: &MemoryStorage, guid: Guid) -> Vec<u8> {
    let mut log = vec![0; LOG_LEN];
    let mut at = usize::from(plan.start) * SECTOR % LOG_LEN;
    let mut sequence = 7_u64;
    let mut places: Vec<u32> = Vec::new();
    for entry in plan.entries.iter().take(12) {
        at = (at + usize::from(entry.gap % 8) * SECTOR) % LOG_LEN;
        sequence = match entry.sequence {
            Sequence::Next => sequence.wrapping_add(1),
            Sequence::Same => sequence,
            Sequence::Jump(to) => to,
        };
        places.push(at as u32);
        let back = |steps: usize| places[places.len().saturating_sub(1 + steps)];
        let tail = match entry.tail {
            Tail::Own => at as u32,
            Tail::First => places[0],
            Tail::Back(steps) => back(steps.into()),
            Tail::Raw(raw) => raw,
        };
        let header = reference::Header {
            guid: if entry.foreign {
                Guid::from_random(99)
            } else {
                guid
            },
            sequence,
            tail,
            flushed: length(entry.flushed, file),
            last: length(entry.last, file),
        };
        let bytes = reference::encode(&header, &entry.changes(file));
        for (number, byte) in bytes.iter().enumerate().take(LOG_LEN) {
            log[(at + number) % LOG_LEN] = *byte;
        }
        at = (at + bytes.len()) % LOG_LEN;
    }
    for harm in &plan.harms {
        let sector = usize::from(harm.sector) % (LOG_LEN / SECTOR);
        let at = sector * SECTOR + usize::from(harm.at) % SECTOR;
        log[at] ^= harm.xor;
        if harm.signed {
            reference::sign(&mut log, sector * SECTOR);
        }
    }
    log
}

/// The file with that log, and headers that name it.
fn laid_down(plan: &Plan, guid: Guid) -> (MemoryStorage, Vec<u8>) {
    let mut file = plan.base.image();
    // Clean, whatever it was: a log that was replayed.
    let mut bits = bits(3);
    open(&mut file, true, &mut bits).expect("a sound image is replayed");
    let log = log_of(plan, &file, guid);
    file.clear(LOG_AT, MIB);
    for (number, sector) in log.chunks_exact(SECTOR).enumerate() {
        file.put(LOG_AT + number as u64 * PAGE_BYTES, sector);
    }
    for slot in [Slot::One, Slot::Two] {
        let mut page = vec![0; SECTOR];
        file.get(slot.at().0, &mut page);
        let old = Header::decode(&page).expect("a sound header");
        let new = Header {
            log_guid: guid,
            log_len: MIB as u32,
            log_at: FileOffset(LOG_AT),
            ..old
        };
        file.put(slot.at().0, &new.encode());
    }
    (file, log)
}

fn open(
    storage: &mut dyn Storage,
    writable: bool,
    random: &mut dyn FnMut() -> u128,
) -> vdisk::Result<Image> {
    let admit = Admit {
        marked: true,
        parent: true,
    };
    let options = LoadOptions {
        writable,
        scan_bat: false,
        admit,
        random,
    };
    load(storage, options)
}

/// The file after a replay of what the text finds; `None` if the text refuses it.
fn expected(file: &MemoryStorage, found: &Found) -> Option<MemoryStorage> {
    let head = found.entries.last()?;
    if file.length() < head.flushed || head.last > reference::FARTHEST {
        return None;
    }
    let mut file = file.clone();
    let mut end = file.length().max(head.last);
    for change in found.entries.iter().flat_map(|entry| &entry.changes) {
        match change {
            Change::Page(at, page) => {
                file.put(*at, page);
                end = end.max(*at + PAGE_BYTES);
            }
            Change::Zero(at, len) => {
                end = end.max(*at + *len);
                file.clear(*at, *len);
            }
        }
    }
    file.resize(end);
    Some(file)
}

/// A file as a read-only open shows it.
fn shown(file: &MemoryStorage, image: &Image) -> MemoryStorage {
    let mut shown = file.clone();
    shown.resize(image.file_len);
    for (at, page) in &image.overlay {
        shown.put(*at, page);
    }
    shown.resize(image.file_len);
    shown
}

/// Headers change with a replay; nothing before this byte is compared.
const AFTER_HEADERS: u64 = 192 << 10;

/// One input.
pub fn run(data: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let guid = Guid::from_random(42);
    let (file, log) = laid_down(&plan, guid);
    let place = LogPlace {
        guid,
        at: FileOffset(LOG_AT),
    };
    let found = reference::find(&log, guid, LOG_AT);
    let active = find_active(&log, &place);
    let ours = active.as_ref().map_or(Vec::new(), |active| {
        active.entries.iter().map(|entry| entry.at).collect()
    });
    let theirs: Vec<u32> = found.entries.iter().map(|entry| entry.at).collect();
    assert_eq!(ours, theirs, "which entries count");

    let mut shared = SharedFile::new(file.clone());
    let written = open(&mut shared, true, &mut bits(4));
    let mut untouched = SharedFile::new(file.clone());
    let read = open(&mut untouched, false, &mut bits(5));
    assert_eq!(difference(&file, &untouched.content(), 0), None);
    let after = shared.content();
    if found.entries.is_empty() {
        // A log of which nothing was ever written counts as empty.
        let after = difference(&file, &after, AFTER_HEADERS);
        assert_eq!(after, None, "nothing to replay");
        assert!(written.is_err() || !found.named, "a damaged log is refused");
        return;
    }
    let expected = expected(&file, &found);
    let Ok(written) = written else {
        let space = difference(&file, &after, 0);
        let longest = expected.is_some_and(|file| file.length() > 16 << 40);
        assert!(space.is_none() || longest, "refused and changed");
        return;
    };
    let expected = expected.expect("a file cut short is refused");
    assert_eq!(difference(&expected, &after, AFTER_HEADERS), None);
    assert!(written.header.log_guid.is_zero() && !written.dirty);
    let read = read.expect("what can be replayed can be shown");
    assert_eq!(
        difference(&expected, &shown(&file, &read), AFTER_HEADERS),
        None
    );
}
