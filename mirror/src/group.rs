//! Disks that follow together: which moment all of them have, durably, and who is told so.
//!
//! The source places a *cut* in the streams of all disks of a group: a marker with the same number in each
//! ([`crate::sequence`]). A disk that has one durably in its journal says so here, and goes on without carrying it over. Once
//! every disk that the cut goes through has said so, the *group's record* is written, one small file for all of them; when it
//! is durable each of them is told that it may carry over that far. So at every moment each disk and its journal hold the
//! moment that the record names, for the same number.
//!
//! A cut that some disk let go by never completes; a later one takes its place. Must never name a moment that some disk does
//! not have durably, and never tell a disk of one before the record of it is durable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::{MAX_DISKS, MAX_NAME};

/// Version of the record's form.
pub const VERSION: u32 = 1;
/// The longest record that is read, in bytes.
pub const MAX_LEN: usize = 64 * 1024;
/// Cuts of one disk that are remembered until all disks have one of them.
pub const MOST_CUTS: usize = 4096;

/// The moment that all disks of a group have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRecord {
    /// The group.
    pub group: Uuid,
    /// The number of the cut, the same in the journal of each disk.
    pub cut: u64,
    /// The disks, in the order of their names; at least one.
    pub disks: Vec<Member>,
}

/// A disk of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name: of a file in the same folder.
    pub name: String,
    /// The session whose journal has the cut.
    pub session: Uuid,
}

/// The file's outer form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    diskferry_group: u32,
    check: String,
    record: GroupRecord,
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::Record, format!("the group's record {what}"))
}

fn check_of(record: &GroupRecord) -> Result<String> {
    let bytes = serde_json::to_vec(record).map_err(|e| bad(&format!("has no form: {e}")))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

/// The group of disks of these lineages: the same for the same disks, wherever they are.
#[must_use]
pub fn of_lineages(mut disks: Vec<Uuid>) -> Uuid {
    disks.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"diskferry group");
    for disk in disks {
        hasher.update(disk.as_bytes());
    }
    let bytes: [u8; 16] = hasher
        .finalize()
        .as_bytes()
        .first_chunk()
        .copied()
        .unwrap_or_default();
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

impl GroupRecord {
    /// The session and the number of the cut for the disk of that name, if it is one of the group.
    #[must_use]
    pub fn cut_of(&self, name: &str) -> Option<(Uuid, u64)> {
        let mut disks = self.disks.iter();
        let member = disks.find(|member| member.name == name)?;
        Some((member.session, self.cut))
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let envelope = Envelope {
            diskferry_group: VERSION,
            check: check_of(self)?,
            record: self.clone(),
        };
        let bytes = serde_json::to_vec_pretty(&envelope);
        let mut bytes = bytes.map_err(|e| bad(&format!("has no form: {e}")))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The record in the bytes of a file.
    ///
    /// Fails with [`ErrorKind::Record`] when they are damaged, of another version, or say what cannot be.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_LEN {
            return Err(bad(&format!("is longer than {MAX_LEN} bytes")));
        }
        let envelope: Envelope =
            serde_json::from_slice(bytes).map_err(|e| bad(&format!("is damaged: {e}")))?;
        if envelope.diskferry_group != VERSION {
            let version = envelope.diskferry_group;
            return Err(bad(&format!(
                "has version {version}; this program knows version {VERSION}"
            )));
        }
        let record = envelope.record;
        if check_of(&record)? != envelope.check {
            return Err(bad("is damaged: its check does not match its content"));
        }
        let count = record.disks.len();
        let ordered = record.disks.is_sorted_by(|a, b| a.name < b.name);
        let named = |member: &Member| {
            let name = &member.name;
            !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with('.')
        };
        // They become parts of paths.
        let within = |member: &Member| !member.name.contains(['/', '\\', '\0']);
        let sound = record.disks.iter().all(|one| named(one) && within(one));
        if count == 0 || count > usize::from(MAX_DISKS) || !ordered || !sound {
            return Err(bad("names disks that cannot be"));
        }
        Ok(record)
    }
}

/// What one disk has of the group's cuts.
#[derive(Debug, Default)]
struct Has {
    session: Uuid,
    /// What its cuts are numbered by.
    sequence: Uuid,
    /// Durably, the oldest first.
    cuts: VecDeque<u64>,
    /// Through how many disks the last of them goes.
    disks: u16,
}

/// What came of a record's being written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupAction {
    /// Make this the group's durable record, and say how that ended.
    Write(GroupRecord),
    /// Tell the disk of that name that in that session it may carry over up to that cut.
    Tell(Member, u64),
    /// Tell the disk of that name that the record, which is durable, names this cut of it, or none, and that no other one is
    /// being written.
    Settled(String, Option<(Uuid, u64)>),
}

/// What the disks of one group have, as far as it is known since this process began.
#[derive(Debug)]
pub struct Gathering {
    group: Uuid,
    has: BTreeMap<String, Has>,
    writing: Option<GroupRecord>,
    /// The one that is durable.
    written: Option<GroupRecord>,
    /// Disks that wait until it is known what the record says of them.
    leaving: Vec<String>,
    actions: VecDeque<GroupAction>,
    /// A rule that a test breaks.
    #[cfg(test)]
    pub(crate) of_one: bool,
}

impl Gathering {
    /// Of that group nothing is known but its durable record, if there is one.
    #[must_use]
    pub fn new(group: Uuid, written: Option<GroupRecord>) -> Self {
        Self {
            group,
            has: BTreeMap::new(),
            writing: None,
            written,
            leaving: Vec::new(),
            actions: VecDeque::new(),
            #[cfg(test)]
            of_one: false,
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<GroupAction> {
        self.actions.pop_front()
    }

    /// The disk of that name has the cut of that sequence and number, which goes through so many disks, durably in the
    /// journal of that session.
    pub fn reached(&mut self, member: Member, (sequence, cut): (Uuid, u64), disks: u16) {
        // No more disks than a group may have: who brings more has no moments.
        let full = self.has.len() >= usize::from(MAX_DISKS);
        if full && !self.has.contains_key(&member.name) {
            return;
        }
        let has = self.has.entry(member.name).or_default();
        if (has.session, has.sequence) != (member.session, sequence) {
            *has = Has {
                session: member.session,
                sequence,
                ..Has::default()
            };
        }
        has.disks = disks;
        has.cuts.push_back(cut);
        if has.cuts.len() > MOST_CUTS {
            has.cuts.pop_front();
        }
        self.look(sequence, cut);
    }

    /// What was said of that disk does not hold any more: it goes its own way, or its journal begins anew. It is told once
    /// no record that names it is being written.
    pub fn leave(&mut self, name: &str) {
        self.has.remove(name);
        self.leaving.push(name.to_owned());
        self.settle();
    }

    fn settle(&mut self) {
        if self.writing.is_some() {
            return;
        }
        for name in std::mem::take(&mut self.leaving) {
            let cut = self
                .written
                .as_ref()
                .and_then(|record| record.cut_of(&name));
            self.actions.push_back(GroupAction::Settled(name, cut));
        }
    }

    /// Write the record of a cut if all have it.
    fn look(&mut self, sequence: Uuid, cut: u64) {
        if self.writing.is_some() {
            return;
        }
        let has = |has: &Has| has.sequence == sequence && has.cuts.contains(&cut);
        let having = self.has.iter().filter(|(_, one)| has(one));
        let needed = having.clone().map(|(_, has)| has.disks).max().unwrap_or(1);
        #[cfg(test)]
        let needed = if self.of_one { 1 } else { needed };
        let member = |(name, has): (&String, &Has)| Member {
            name: name.clone(),
            session: has.session,
        };
        let disks: Vec<Member> = having.map(member).collect();
        if disks.len() < usize::from(needed.max(1)) {
            return;
        }
        let record = GroupRecord {
            group: self.group,
            cut,
            disks,
        };
        self.writing = Some(record.clone());
        self.actions.push_back(GroupAction::Write(record));
    }

    /// The record is durable; if not it may or may not be, and only writing it again leads anywhere.
    pub fn recorded(&mut self, ok: bool) {
        let Some(record) = self.writing.take() else {
            return;
        };
        if !ok {
            self.actions.push_back(GroupAction::Write(record.clone()));
            self.writing = Some(record);
            return;
        }
        for member in &record.disks {
            let tell = GroupAction::Tell(member.clone(), record.cut);
            self.actions.push_back(tell);
            let has = self.has.get_mut(&member.name);
            if let Some(has) = has.filter(|has| has.session == member.session) {
                has.cuts.retain(|cut| *cut > record.cut);
            }
        }
        self.written = Some(record);
        self.settle();
        // What was reached meanwhile, the newest first.
        let all = self.has.values();
        let cuts = all.flat_map(|has| has.cuts.iter().map(|cut| (*cut, has.sequence)));
        let cuts: BTreeSet<(u64, Uuid)> = cuts.collect();
        for (cut, sequence) in cuts.into_iter().rev() {
            self.look(sequence, cut);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEQUENCE: Uuid = Uuid::from_u128(8);

    fn member(name: &str, session: u128) -> Member {
        Member {
            name: name.into(),
            session: Uuid::from_u128(session),
        }
    }

    fn sample() -> GroupRecord {
        GroupRecord {
            group: Uuid::from_u128(3),
            cut: 77,
            disks: vec![member("data.vhdx", 1), member("log.vhdx", 2)],
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written_and_a_damaged_one_is_an_error() {
        let bytes = sample().to_bytes().unwrap();
        assert_eq!(GroupRecord::from_bytes(&bytes).unwrap(), sample());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            if let Ok(read) = GroupRecord::from_bytes(&damaged) {
                assert_eq!(read, sample(), "byte {at} changed the record unnoticed");
            }
        }
    }

    #[test]
    fn a_record_that_leads_out_of_its_folder_or_names_a_disk_twice_is_refused() {
        for names in [
            vec!["../a"],
            vec!["a", "a"],
            vec!["b", "a"],
            vec![],
            vec![".a"],
        ] {
            let disks = names.into_iter().map(|name| member(name, 1)).collect();
            let record = GroupRecord { disks, ..sample() };
            let bytes = record.to_bytes().unwrap();
            assert!(GroupRecord::from_bytes(&bytes).is_err(), "{record:?}");
        }
    }

    #[test]
    fn a_cut_is_a_moment_when_all_its_disks_have_it_and_is_told_when_its_record_is_durable() {
        let mut group = Gathering::new(Uuid::from_u128(3), None);
        group.reached(member("log.vhdx", 2), (SEQUENCE, 70), 2);
        group.reached(member("log.vhdx", 2), (SEQUENCE, 77), 2);
        assert_eq!(group.poll_action(), None);
        group.reached(member("data.vhdx", 1), (SEQUENCE, 77), 2);
        assert_eq!(group.poll_action(), Some(GroupAction::Write(sample())));
        // Another that completes meanwhile waits.
        group.reached(member("data.vhdx", 1), (SEQUENCE, 80), 2);
        group.reached(member("log.vhdx", 2), (SEQUENCE, 80), 2);
        assert_eq!(group.poll_action(), None);
        group.recorded(true);
        let told = |name: &str, session| Some(GroupAction::Tell(member(name, session), 77));
        assert_eq!(group.poll_action(), told("data.vhdx", 1));
        assert_eq!(group.poll_action(), told("log.vhdx", 2));
        assert!(
            matches!(group.poll_action(), Some(GroupAction::Write(record)) if record.cut == 80)
        );
        group.recorded(false);
        // It is tried again.
        assert!(
            matches!(group.poll_action(), Some(GroupAction::Write(record)) if record.cut == 80)
        );
    }

    #[test]
    fn a_disk_that_goes_its_own_way_is_in_no_moment() {
        let mut group = Gathering::new(Uuid::from_u128(3), None);
        group.reached(member("log.vhdx", 2), (SEQUENCE, 77), 2);
        group.leave("log.vhdx");
        let settled = GroupAction::Settled("log.vhdx".into(), None);
        assert_eq!(group.poll_action(), Some(settled));
        group.reached(member("data.vhdx", 1), (SEQUENCE, 77), 2);
        assert_eq!(group.poll_action(), None);
    }

    #[test]
    fn who_leaves_hears_what_the_record_says_of_him_when_none_is_being_written() {
        let mut group = Gathering::new(Uuid::from_u128(3), None);
        group.reached(member("log.vhdx", 2), (SEQUENCE, 77), 2);
        group.reached(member("data.vhdx", 1), (SEQUENCE, 77), 2);
        assert_eq!(group.poll_action(), Some(GroupAction::Write(sample())));
        group.leave("log.vhdx");
        assert_eq!(group.poll_action(), None);
        group.recorded(true);
        let settled = std::iter::from_fn(|| group.poll_action()).last();
        let cut = Some((Uuid::from_u128(2), 77));
        assert_eq!(settled, Some(GroupAction::Settled("log.vhdx".into(), cut)));
    }

    #[test]
    fn the_same_number_of_another_sequence_is_another_cut() {
        let mut group = Gathering::new(Uuid::from_u128(3), None);
        group.reached(member("log.vhdx", 2), (SEQUENCE, 77), 2);
        group.reached(member("data.vhdx", 1), (Uuid::from_u128(9), 77), 2);
        assert_eq!(group.poll_action(), None);
    }

    #[test]
    fn the_group_of_the_same_disks_is_the_same_in_whatever_order() {
        let disks = [1, 2, 3].map(Uuid::from_u128);
        let turned = [3, 1, 2].map(Uuid::from_u128);
        assert_eq!(of_lineages(disks.into()), of_lineages(turned.into()));
        assert_ne!(of_lineages(disks.into()), of_lineages(disks[..2].into()));
    }
}
