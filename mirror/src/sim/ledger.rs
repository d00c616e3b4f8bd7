//! What the clients were promised, sector by sector. Must never be told anything by a machine.

use std::collections::BTreeMap;
use std::rc::Rc;

use uuid::Uuid;

use super::disk::SECTOR;

#[derive(Clone, Debug)]
struct Sector {
    /// Every content it was given, oldest first.
    history: Vec<u64>,
    /// The last one acknowledged, and the last one covered by an acknowledged flush.
    acked: usize,
    secure: usize,
}

/// The promises of one disk.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    sectors: Vec<Sector>,
}

/// The content of a sector: the same number in every eight bytes.
fn tag(data: &[u8]) -> Option<u64> {
    let first: [u8; 8] = data.first_chunk().copied()?;
    data.chunks(8)
        .all(|c| c == first)
        .then(|| u64::from_le_bytes(first))
}

impl Ledger {
    pub(super) fn new(content: &[u8]) -> Self {
        let sector = |data: &[u8]| Sector {
            history: vec![tag(data).unwrap_or(u64::MAX)],
            acked: 0,
            secure: 0,
        };
        Self {
            sectors: content.chunks(SECTOR).map(sector).collect(),
        }
    }

    fn range(offset: u64, len: u64) -> std::ops::Range<usize> {
        offset as usize / SECTOR..(offset + len) as usize / SECTOR
    }

    /// A write of `tag` begins; those that overlap are in order. Its places in the histories.
    pub(super) fn begin(&mut self, offset: u64, len: u64, tag: u64) -> Vec<usize> {
        let sectors = &mut self.sectors[Self::range(offset, len)];
        sectors
            .iter_mut()
            .map(|sector| {
                sector.history.push(tag);
                sector.history.len() - 1
            })
            .collect()
    }

    /// That write was acknowledged.
    pub(super) fn ack(&mut self, offset: u64, len: u64, places: &[usize]) {
        for (sector, place) in self.sectors[Self::range(offset, len)]
            .iter_mut()
            .zip(places)
        {
            sector.acked = sector.acked.max(*place);
        }
    }

    /// What is acknowledged now.
    pub(super) fn acked(&self) -> Vec<usize> {
        self.sectors.iter().map(|sector| sector.acked).collect()
    }

    /// A flush that began when `acked` was acknowledged is acknowledged.
    pub(super) fn secure(&mut self, acked: &[usize]) {
        for (sector, acked) in self.sectors.iter_mut().zip(acked) {
            sector.secure = sector.secure.max(*acked);
        }
    }

    /// Check `data` at `offset`: each sector holds what `from` promises, or something later.
    pub(super) fn check(&self, offset: u64, data: &[u8], from: Promise<'_>) -> Result<(), String> {
        let first = offset as usize / SECTOR;
        for (i, content) in data.chunks(SECTOR).enumerate() {
            let sector = &self.sectors[first + i];
            let least = match from {
                Promise::Acked => sector.acked,
                Promise::Secure => sector.secure,
                Promise::At(acked) => acked[first + i],
            };
            let found = tag(content);
            let fits = found.is_some_and(|tag| sector.history[least..].contains(&tag));
            if !fits {
                let known = &sector.history[least..];
                return Err(format!(
                    "sector {}: holds {found:?}, promised is one of {known:?} ({from:?})",
                    first + i
                ));
            }
        }
        Ok(())
    }

    /// The power of the owner went: what is there now is all that counts.
    pub(super) fn restart_from(&mut self, content: &[u8]) {
        *self = Self::new(content);
    }
}

/// What was acknowledged, and how many contents had been begun, sector by sector, at one moment.
pub(super) type Moment = (Vec<usize>, Vec<usize>);

impl Ledger {
    fn moment(&self) -> Moment {
        let begun = self.sectors.iter().map(|sector| sector.history.len());
        (self.acked(), begun.collect())
    }

    /// Check that the power could have left `data` at that moment, had every write begun till then been on its way.
    fn check_moment(&self, data: &[u8], (acked, begun): &Moment) -> Result<(), String> {
        for (i, content) in data.chunks(SECTOR).enumerate() {
            let known = &self.sectors[i].history[acked[i]..begun[i]];
            let found = tag(content);
            if !found.is_some_and(|tag| known.contains(&tag)) {
                return Err(format!(
                    "sector {i}: holds {found:?}, it was one of {known:?}"
                ));
            }
        }
        Ok(())
    }
}

/// The last moment before each number of a session was followed by the next, for all sessions.
#[derive(Debug, Default)]
pub(super) struct Moments {
    current: Option<Life>,
    lives: BTreeMap<Life, Kept>,
    /// Names under which sessions go on if their targets have nothing of them.
    spares: BTreeMap<Uuid, Uuid>,
}

/// A session and which of its lives.
type Life = (Uuid, u64);

/// Those of one session, and what the ledger was when it ceased to count.
#[derive(Debug, Default)]
struct Kept {
    moments: BTreeMap<u64, Moment>,
    ledger: Option<Rc<Ledger>>,
}

impl Moments {
    /// A session begins to count, or to count on after `number`.
    pub(super) fn begin(&mut self, session: Uuid, number: u64) {
        let life = (session, number >> 40);
        self.current = Some(life);
        self.lives.insert(life, Kept::default());
    }

    /// It may go on by the name `spare`.
    pub(super) fn also(&mut self, session: Uuid, spare: Uuid) {
        self.spares.insert(spare, session);
    }

    /// What the disk holds is another matter from now on; what sessions did till now is held against what was so.
    pub(super) fn freeze(&mut self, ledger: &Ledger) {
        self.current = None;
        let ledger = Rc::new(ledger.clone());
        for kept in self.lives.values_mut() {
            kept.ledger.get_or_insert_with(|| Rc::clone(&ledger));
        }
    }

    /// The next number is about to be given out; `last` was the last one.
    pub(super) fn keep(&mut self, last: u64, ledger: &Ledger) {
        let current = self.current.and_then(|now| self.lives.get_mut(&now));
        if let Some(kept) = current {
            kept.moments.insert(last, ledger.moment());
        }
    }

    /// Check that the power could have left `data` when `number` was the last one given out in a session; `last` is
    /// now, in the session at hand. `None` when nothing is known of that moment.
    pub(super) fn check(
        &self,
        (session, number): (Uuid, u64),
        last: Option<u64>,
        ledger: &Ledger,
        data: &[u8],
    ) -> Option<Result<(), String>> {
        let session = self.spares.get(&session).copied().unwrap_or(session);
        let life = (session, number >> 40);
        let kept = self.lives.get(&life).filter(|_| number > 0)?;
        let now = || {
            let is_now = self.current == Some(life) && last == Some(number);
            is_now.then(|| ledger.moment())
        };
        // What was kept when the number was not the last one for long is of before what began since.
        let moment = now().or_else(|| kept.moments.get(&number).cloned())?;
        let ledger = kept.ledger.as_deref().unwrap_or(ledger);
        Some(ledger.check_moment(data, &moment))
    }
}

/// Which promise to hold a content to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Promise<'a> {
    /// Everything acknowledged.
    Acked,
    /// Everything acknowledged before a flush.
    Secure,
    /// Everything acknowledged at a moment.
    At(&'a [usize]),
}
