//! What a disk may hold: for each sector, the versions written to it and when.
//!
//! A version is *superseded* when another was issued after it completed and has completed itself; it
//! is *durably superseded* when that other one is durable. A read may see any version not superseded
//! when it began; a power cut may leave any version not durably superseded. Nothing else may appear.
//!
//! A disk that becomes smaller has zeros from there on, in case it grows again. Until that is
//! acknowledged, what it cuts off may be gone already; the size may be the old or the new one.

use std::collections::BTreeMap;

pub const SECTOR: u64 = 512;

/// The stamp that fills a sector; 0 is a sector of zeros.
pub type Stamp = u64;

#[derive(Clone, Debug)]
struct Version {
    stamp: Stamp,
    issued: u64,
    completed: Option<u64>,
    durable: bool,
    /// A discard: it may or may not have taken effect, and supersedes nothing.
    weak: bool,
    request: u64,
}

/// Whether scenarios write to `sector` at all: they write near both ends of blocks of 1 MiB or more.
/// To zero any other sector changes nothing, and to remember it would only cost time.
fn written(sector: u64) -> bool {
    let within = sector % ((1 << 20) / SECTOR);
    !(256..2048 - 32).contains(&within)
}

/// What the parent of a differencing disk holds in `sector`: stamps of its own, zeros here and there
/// and from its end on, which comes before the child's.
pub fn parent_stamp(sector: u64) -> Stamp {
    if sector >= PARENT_SECTORS || (sector / 16).is_multiple_of(3) || !written(sector) {
        return 0;
    }
    1 << 63 | sector
}

/// Read that parent; both numbers are multiples of a sector.
pub fn parent_read(offset: u64, buffer: &mut [u8]) {
    let whole = (offset | buffer.len() as u64).is_multiple_of(SECTOR);
    assert!(whole, "a part of a sector of the parent");
    for (number, place) in buffer.chunks_exact_mut(SECTOR as usize).enumerate() {
        let stamp = parent_stamp(offset / SECTOR + number as u64);
        place.as_chunks_mut::<8>().0.fill(stamp.to_le_bytes());
    }
}

/// Sectors of that parent.
pub const PARENT_SECTORS: u64 = (4199 << 20) / SECTOR + 40;

/// All that may be seen of one disk.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Whether the disk has a parent.
    child: bool,
    sectors: BTreeMap<u64, Vec<Version>>,
    next_stamp: Stamp,
    /// Sectors from here on may be lost: resizes that may discard, open or failed half-way.
    cutting: Vec<u64>,
    /// The shortest the disk ever was, in sectors, and since when: nobody sees the parent from there on.
    cut: (u64, u64),
    /// From here on a resize that discards ended half-way once: the parent may be hidden.
    half_cut: u64,
    /// Bytes of the disk, and what they may be after a power cut besides.
    size: u64,
    may_be: Vec<(u64, u64)>,
}

impl Model {
    /// The disk has so many bytes.
    pub fn set_size(&mut self, size: u64) {
        self.size = size;
    }

    /// `request` will resize the disk.
    pub fn resizes(&mut self, request: u64, size: u64, discard: bool) {
        self.may_be.push((request, size));
        if discard {
            self.cutting.push(size / SECTOR);
        }
    }

    /// It has: what was cut off is gone for good.
    pub fn resized(&mut self, request: u64, size: u64, now: u64) {
        self.may_be.retain(|(of, _)| *of != request);
        self.size = size;
        if size / SECTOR < self.cut.0 {
            self.cut = (size / SECTOR, now);
        }
        for versions in self.sectors.range_mut(size / SECTOR..).map(|(_, all)| all) {
            // What was under way then touched nothing there, or it came before.
            for version in versions.iter_mut() {
                version.completed.get_or_insert(now - 1);
            }
            versions.push(Version {
                issued: now,
                completed: Some(now),
                ..Version::initial(0)
            });
        }
    }

    /// It was refused before it changed anything.
    pub fn not_resized(&mut self, request: u64) {
        self.may_be.retain(|(of, _)| *of != request);
    }

    /// Whether a power cut now may leave a disk of `size` bytes.
    pub fn may_have_size(&self, size: u64) -> bool {
        size == self.size || self.may_be.iter().any(|(_, other)| *other == size)
    }

    fn may_be_cut(&self, sector: u64, stamp: Stamp) -> bool {
        stamp == 0 && self.cutting.iter().any(|first| sector >= *first)
    }

    /// The model of a new disk, with or without a parent.
    pub fn new(child: bool) -> Self {
        Self {
            child,
            cut: (u64::MAX, 0),
            half_cut: u64::MAX,
            ..Self::default()
        }
    }

    /// What `sector` held before anything was written to it.
    pub fn base(&self, sector: u64) -> Stamp {
        if self.child && sector < self.cut.0 {
            parent_stamp(sector)
        } else {
            0
        }
    }

    /// Whether a sector that nothing was ever written to may hold `stamp`.
    fn may_show(&self, sector: u64, stamp: Stamp) -> bool {
        stamp == self.base(sector)
            || stamp == 0 && sector >= self.half_cut
            || self.may_be_cut(sector, stamp)
    }

    /// From this sector on the parent may be hidden: a resize that discards began once.
    pub fn half_cut(&self) -> u64 {
        let now = self.cutting.iter().copied().min();
        now.map_or(self.half_cut, |now| now.min(self.half_cut))
    }

    /// A stamp that no version has.
    pub fn stamp(&mut self) -> Stamp {
        self.next_stamp += 1;
        self.next_stamp
    }

    /// A change was issued: `request` names it; a `weak` one (a discard) may have no effect.
    pub fn issue(
        &mut self,
        (request, weak): (u64, bool),
        (first, count): (u64, u64),
        stamp: Stamp,
        now: u64,
    ) {
        for sector in (first..first + count).filter(|sector| stamp != 0 || written(*sector)) {
            let mut bases = vec![Version::initial(self.base(sector))];
            if sector >= self.half_cut {
                bases.push(Version::initial(0));
            }
            let versions = self.sectors.entry(sector).or_insert(bases);
            versions.push(Version {
                stamp,
                issued: now,
                completed: None,
                durable: false,
                weak,
                request,
            });
        }
    }

    /// The change `request` completed.
    pub fn complete(&mut self, request: u64, (first, count): (u64, u64), now: u64, durable: bool) {
        let issued = self
            .sectors
            .range_mut(first..first + count)
            .flat_map(|(_, versions)| versions);
        for version in issued.filter(|version| version.request == request) {
            version.completed = Some(now);
            version.durable |= durable;
        }
    }

    /// A flush that was issued at `issued` completed.
    pub fn flushed(&mut self, issued: u64) {
        for versions in self.sectors.values_mut() {
            for version in versions.iter_mut() {
                version.durable |= version.completed.is_some_and(|at| at <= issued);
            }
        }
    }

    /// Sectors that anything was ever written to.
    pub fn touched(&self) -> impl Iterator<Item = u64> {
        self.sectors.keys().copied()
    }

    /// Whether anything was ever written to `sector`.
    pub fn knows(&self, sector: u64) -> bool {
        self.sectors.contains_key(&sector)
    }

    /// Whether a read that began at `began` may see `stamp` in `sector`.
    pub fn may_read(&self, sector: u64, stamp: Stamp, began: u64) -> bool {
        let Some(versions) = self.sectors.get(&sector) else {
            let before = self.child && began <= self.cut.1 && stamp == parent_stamp(sector);
            return before || self.may_show(sector, stamp);
        };
        let seen = versions.iter().any(|version| {
            version.stamp == stamp
                && !versions.iter().any(|newer| {
                    newer.supersedes(version) && newer.completed.is_some_and(|at| at < began)
                })
        });
        seen || self.may_be_cut(sector, stamp)
    }

    /// Whether a power cut now may leave `stamp` in `sector`.
    pub fn may_survive(&self, sector: u64, stamp: Stamp) -> bool {
        let Some(versions) = self.sectors.get(&sector) else {
            return self.may_show(sector, stamp);
        };
        let survives = versions
            .iter()
            .any(|version| version.stamp == stamp && version.may_survive(versions));
        survives || self.may_be_cut(sector, stamp)
    }

    /// After a power cut: what is there is what there is.
    pub fn settle(&mut self, size: u64, mut content: impl FnMut(u64) -> Stamp) {
        self.size = size;
        self.cut = (self.cut.0.min(size / SECTOR), 0);
        let half_cut = self.cutting.iter().copied().min();
        self.half_cut = self.half_cut.min(half_cut.unwrap_or(u64::MAX));
        self.may_be.clear();
        self.cutting.clear();
        for (sector, versions) in &mut self.sectors {
            *versions = vec![Version::initial(content(*sector))];
        }
    }

    pub fn describe(&self, sector: u64) -> String {
        format!("{:#?}", self.sectors.get(&sector))
    }
}

impl Version {
    fn initial(stamp: Stamp) -> Self {
        Self {
            stamp,
            issued: 0,
            completed: Some(0),
            durable: true,
            weak: false,
            request: u64::MAX,
        }
    }

    fn supersedes(&self, older: &Self) -> bool {
        !self.weak && older.completed.is_some_and(|at| at < self.issued)
    }

    fn may_survive(&self, versions: &[Self]) -> bool {
        !versions
            .iter()
            .any(|newer| newer.durable && newer.supersedes(self))
    }
}
