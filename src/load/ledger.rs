//! The ledger: a line for each write and each flush when it is sent, and when it is acknowledged.
//!
//! ```text
//! diskferry-ledger 1 seed=7 block=4096 offset=0 length=1073741824
//! i 12 300        write 12 goes to block 300 of the area
//! a 12            it was acknowledged
//! s 13            flush 13 was sent: it covers every write acknowledged above this line
//! f 13            it was acknowledged
//! r 13            the load began anew: what was under way above this line stays unknown, and no
//!                 flush below it covers what was acknowledged above it
//! ```
//!
//! Writes and flushes share one sequence, from 1. Two writes to one block are never in flight at
//! once, so the greatest acknowledged number of a block is what it must hold.

use std::collections::BTreeMap;
use std::fmt;

use super::pattern::Found;

/// What a load writes, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) seed: u64,
    /// Bytes of one write.
    pub(crate) block: u64,
    /// First byte of the disk that is written.
    pub(crate) offset: u64,
    /// How many bytes may be written from there.
    pub(crate) length: u64,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            block,
            offset,
            length,
        } = self;
        write!(
            f,
            "diskferry-ledger 1 seed={seed} block={block} offset={offset} length={length}"
        )
    }
}

impl Area {
    fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("diskferry-ledger 1 ")?;
        let fields: BTreeMap<&str, u64> = rest
            .split(' ')
            .filter_map(|field| field.split_once('='))
            .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect();
        let field = |name| fields.get(name).copied();
        let area = Self {
            seed: field("seed")?,
            block: field("block")?,
            offset: field("offset")?,
            length: field("length")?,
        };
        (area.block >= super::pattern::HEADER as u64).then_some(area)
    }

    /// How many blocks it has.
    pub(crate) fn blocks(&self) -> u64 {
        self.length / self.block
    }

    /// Where block `index` of the area lies on the disk.
    pub(crate) fn place(&self, index: u64) -> u64 {
        self.offset + index * self.block
    }
}

/// One line of the ledger after the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Write `sequence` to block `index` was sent.
    Issued { sequence: u64, index: u64 },
    /// It was acknowledged.
    Acknowledged { sequence: u64 },
    /// Flush `sequence` was sent.
    FlushSent { sequence: u64 },
    /// It was acknowledged.
    Flushed { sequence: u64 },
    /// The load began anew after this number; the server may have been killed in between.
    Restarted { sequence: u64 },
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Issued { sequence, index } => write!(f, "i {sequence} {index}"),
            Self::Acknowledged { sequence } => write!(f, "a {sequence}"),
            Self::FlushSent { sequence } => write!(f, "s {sequence}"),
            Self::Flushed { sequence } => write!(f, "f {sequence}"),
            Self::Restarted { sequence } => write!(f, "r {sequence}"),
        }
    }
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        let sequence = words.next()?.parse().ok()?;
        match kind {
            "i" => Some(Self::Issued {
                sequence,
                index: words.next()?.parse().ok()?,
            }),
            "a" => Some(Self::Acknowledged { sequence }),
            "s" => Some(Self::FlushSent { sequence }),
            "f" => Some(Self::Flushed { sequence }),
            "r" => Some(Self::Restarted { sequence }),
            _ => None,
        }
    }
}

/// Which writes of one block are known of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    /// The last one sent.
    pub(crate) issued: u64,
    /// The last one acknowledged; 0 for none.
    pub(crate) acknowledged: u64,
    /// The last one that a flush made durable; 0 for none.
    pub(crate) flushed: u64,
}

impl Block {
    /// Whether `found` keeps the promise: at least the last acknowledged write, or only the last
    /// flushed one if the server may have been killed; and nothing that was never sent.
    pub(crate) fn keeps(&self, found: Found, flushed_only: bool) -> bool {
        let least = if flushed_only {
            self.flushed
        } else {
            self.acknowledged
        };
        match found {
            Found::Nothing => least == 0,
            Found::Write(sequence) => (least..=self.issued).contains(&sequence),
            Found::Foreign => false,
        }
    }
}

/// All that a ledger says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) area: Area,
    /// Every block that was written, by its number in the area.
    pub(crate) blocks: BTreeMap<u64, Block>,
    /// The greatest sequence number.
    pub(crate) last: u64,
    /// How many writes were acknowledged.
    pub(crate) acknowledged: u64,
}

/// What is under way at one line of a ledger.
#[derive(Default)]
struct UnderWay {
    /// Where each write not yet acknowledged goes.
    writes: BTreeMap<u64, u64>,
    /// Writes acknowledged and not covered by a flush: sequence and block.
    unflushed: Vec<(u64, u64)>,
    /// What each flush that was sent covers.
    flushes: BTreeMap<u64, Vec<(u64, u64)>>,
}

impl Ledger {
    /// Reads a ledger; a last line without its end, as a killed client leaves, is not one.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut lines = whole.lines();
        let head = lines.next().unwrap_or_default();
        let area = Area::parse(head).ok_or("line 1: not the head of a ledger")?;
        let mut ledger = Self {
            area,
            blocks: BTreeMap::new(),
            last: 0,
            acknowledged: 0,
        };
        let mut under_way = UnderWay::default();
        for (number, line) in lines.enumerate() {
            let bad = |why: &str| format!("line {}: `{line}`: {why}", number + 2);
            let entry = Entry::parse(line).ok_or_else(|| bad("not an entry"))?;
            let known = ledger.note(entry, &mut under_way);
            known.ok_or_else(|| bad("was never sent"))?;
        }
        Ok(ledger)
    }

    /// Takes up one entry; `None` if it acknowledges what was never sent.
    fn note(&mut self, entry: Entry, under_way: &mut UnderWay) -> Option<()> {
        match entry {
            Entry::Issued { sequence, index } => {
                self.last = self.last.max(sequence);
                under_way.writes.insert(sequence, index);
                self.blocks.entry(index).or_default().issued = sequence;
            }
            Entry::Acknowledged { sequence } => {
                let index = under_way.writes.remove(&sequence)?;
                self.blocks.get_mut(&index)?.acknowledged = sequence;
                self.acknowledged += 1;
                under_way.unflushed.push((sequence, index));
            }
            Entry::FlushSent { sequence } => {
                self.last = self.last.max(sequence);
                let covered = under_way.unflushed.clone();
                under_way.flushes.insert(sequence, covered);
            }
            Entry::Flushed { sequence } => {
                for (write, index) in under_way.flushes.remove(&sequence)? {
                    let block = self.blocks.get_mut(&index)?;
                    block.flushed = block.flushed.max(write);
                    under_way.unflushed.retain(|(other, _)| *other != write);
                }
            }
            Entry::Restarted { .. } => *under_way = UnderWay::default(),
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Area = Area {
        seed: 7,
        block: 4096,
        offset: 1 << 20,
        length: 1 << 20,
    };

    fn ledger(lines: &str) -> Ledger {
        Ledger::parse(&format!("{AREA}\n{lines}")).unwrap()
    }

    #[test]
    fn an_acknowledged_write_that_is_missing_is_seen() {
        let ledger = ledger("i 1 5\na 1\ns 2\nf 2\ni 3 5\na 3\ni 4 5\n");
        let block = ledger.blocks[&5];
        assert_eq!((block.issued, block.acknowledged, block.flushed), (4, 3, 1));
        assert!(block.keeps(Found::Write(3), false));
        assert!(
            block.keeps(Found::Write(4), false),
            "sent, and perhaps done"
        );
        assert!(!block.keeps(Found::Write(1), false));
        assert!(block.keeps(Found::Write(1), true), "not flushed after that");
        assert!(!block.keeps(Found::Write(8), false), "never sent");
        assert!(!block.keeps(Found::Nothing, true));
        assert!(!block.keeps(Found::Foreign, true));
    }

    #[test]
    fn a_flush_covers_what_was_acknowledged_before_it_was_sent() {
        let ledger = ledger("i 1 5\na 1\ni 2 9\ns 3\na 2\nf 3\n");
        assert_eq!(ledger.blocks[&5].flushed, 1);
        assert_eq!(
            ledger.blocks[&9].flushed, 0,
            "acknowledged after the flush was sent"
        );
        assert_eq!((ledger.last, ledger.acknowledged), (3, 2));
        assert_eq!(self::ledger("i 1 5\na 1\ns 2\n").blocks[&5].flushed, 0);
    }

    #[test]
    fn a_flush_covers_nothing_from_before_a_restart() {
        let ledger = ledger("i 1 5\na 1\nr 1\ni 2 9\na 2\ns 3\nf 3\n");
        assert_eq!(ledger.blocks[&5].flushed, 0);
        assert_eq!(ledger.blocks[&9].flushed, 2);
    }

    #[test]
    fn a_torn_last_line_is_no_entry_and_a_wrong_one_is_refused() {
        assert_eq!(ledger("i 2 5\na 2\ni 4").last, 2);
        assert!(Ledger::parse("hello\n").is_err());
        assert!(Ledger::parse(&format!("{AREA}\na 9\n")).is_err());
        assert!(Ledger::parse(&format!("{AREA}\nf 9\n")).is_err());
        assert!(Ledger::parse(&format!("{AREA}\nx 9\n")).is_err());
    }
}
