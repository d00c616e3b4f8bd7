//! What the clients were promised, sector by sector. Must never be told anything by a machine.

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
