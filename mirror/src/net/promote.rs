//! A disk that follows another one becomes this host's own: for when the source is lost.
//!
//! Must never leave the disk between two states of the source's: what is sealed in the journal is in it before the record
//! changes, and can be carried over again until then. Must never carry a disk of a group beyond the cut that the group's
//! record names, unless it is promoted apart from the others.

use std::io;
use std::path::{Path, PathBuf};

use super::journal::{recover, remove};
use super::port::DiskPort;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{
    GroupStore, groups_beside, journal_paths, load_record, sidecar_path, write_record,
};
use crate::group::GroupRecord;
use crate::record::{Membership, Ownership, State};
use crate::session::Upto;

/// Which disks are to be promoted together with `disk`: its own path, or those of all disks of its group that are not this
/// host's own yet. Nothing is changed.
///
/// Fails with [`ErrorKind::NotOwned`] when the disk does not follow another one, or when one of its group is missing or is not
/// at the moment that the group's record names; with [`ErrorKind::Record`].
pub fn promoted_together(disk: &Path) -> Result<Vec<PathBuf>> {
    let own = sidecar_path(disk);
    let name = name_of(disk)?;
    let record = match load_record(&own)?.map(|known| known.state) {
        Some(State::Following { group: None, .. }) => return Ok(vec![disk.to_owned()]),
        Some(State::Following {
            group: Some(group), ..
        }) => group_record(&own, &name, group)?,
        Some(State::Owner { .. }) => unfinished(&own, &name)?,
        _ => return Err(does_not_follow()),
    };
    let mut disks = Vec::new();
    for member in &record.disks {
        let disk = disk.with_file_name(&member.name);
        if !disk.exists() {
            let what = format!(
                "{} of its group is not here: promote what there is with --apart",
                member.name
            );
            return Err(Error::new(ErrorKind::NotOwned, what));
        }
        match load_record(&sidecar_path(&disk))?.map(|known| known.state) {
            Some(State::Owner { .. }) => {}
            Some(State::Following {
                group: Some(Membership { id, joined: true }),
                ..
            }) if id == record.group => disks.push(disk),
            other => {
                let state = other.map_or("has no record", |state| state_of(&state));
                let what = format!(
                    "{} of its group {state}, and is not at the moment that the others are at: finish with that one first, \
                     or promote each disk by itself with --apart",
                    member.name
                );
                return Err(Error::new(ErrorKind::NotOwned, what));
            }
        }
    }
    if disks.is_empty() {
        return Err(does_not_follow());
    }
    Ok(disks)
}

/// Take the record of a group away of which this disk is, once all its disks are this host's own.
pub fn forget_group(disk: &Path) -> Result<()> {
    let own = sidecar_path(disk);
    let name = name_of(disk)?;
    for record in groups_beside(&own)? {
        let mut owned = record.cut_of(&name).is_some();
        for member in &record.disks {
            let known = load_record(&sidecar_path(&disk.with_file_name(&member.name)))?;
            let state = known.map(|known| known.state);
            owned &= matches!(state, Some(State::Owner { .. }));
        }
        if owned {
            GroupStore::beside(&own, record.group).remove()?;
        }
    }
    Ok(())
}

fn state_of(state: &State) -> &'static str {
    match state {
        State::Following { .. } => "follows by itself",
        State::Prepared { .. } => "waits for its source's word",
        State::Emptying { .. } | State::Receiving { .. } => "is not complete",
        _ => "was handed over",
    }
}

fn does_not_follow() -> Error {
    let what = "the disk does not follow another one, so it has no state to fall back to";
    Error::new(ErrorKind::NotOwned, what)
}

fn name_of(disk: &Path) -> Result<String> {
    let name = disk.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "that is no disk's name"))
}

/// The record of the group that a disk is of.
fn group_record(own: &Path, name: &str, group: Membership) -> Result<GroupRecord> {
    let apart = |what: &str| {
        let what =
            format!("{what}: promote each disk by itself with --apart, to moments that differ");
        Error::new(ErrorKind::NotOwned, what)
    };
    if !group.joined {
        return Err(apart(
            "the disk is of a group of disks, and was not at a moment of all of them when the source was lost",
        ));
    }
    let record = GroupStore::beside(own, group.id).load()?;
    let record = record.filter(|record| record.cut_of(name).is_some());
    // How far the disk is nobody knows then: it may be in the middle of being carried over.
    record.ok_or_else(|| {
        let what = "the record of the disk's group does not say how far the disk is";
        Error::new(ErrorKind::NotOwned, what)
    })
}

/// The record of a group of which this disk was promoted, and another one was not when a promotion broke off.
fn unfinished(own: &Path, name: &str) -> Result<GroupRecord> {
    for record in groups_beside(own)? {
        let follows = |name: &str| {
            let disk = own.with_file_name(name);
            let known = load_record(&sidecar_path(&disk)).ok().flatten();
            matches!(
                known.map(|known| known.state),
                Some(State::Following { group: Some(Membership { id, joined: true }), .. }) if id == record.group
            )
        };
        let left = record.disks.iter().any(|member| follows(&member.name));
        if record.cut_of(name).is_some() && left {
            return Ok(record);
        }
    }
    Err(does_not_follow())
}

/// How far the journal of the disk with that record is carried over.
fn how_far(own: &Path, known: &Ownership, apart: bool) -> Result<(uuid::Uuid, Upto)> {
    let State::Following { session, group, .. } = &known.state else {
        return Err(does_not_follow());
    };
    let Some(group) = group else {
        return Ok((*session, Upto::Sealed));
    };
    if apart && !group.joined {
        return Ok((*session, Upto::Sealed));
    }
    let disk = own.with_extension("");
    let name = name_of(&disk)?;
    let upto = match group_record(own, &name, *group)?.cut_of(&name) {
        Some((of, cut)) if of == *session => Upto::Cut(cut),
        // The disk is where an earlier session left all of them.
        _ => Upto::Nothing,
    };
    Ok((*session, upto))
}

/// Make the disk behind `port`, whose ownership record lies at `record`, this host's own, as the source's disk was at
/// the last consistent marker; a disk of a group, as all of them were at the cut that the group's record names, or `apart`
/// from the others also if it has no such moment. The new record, durably; the mark is still in the image. Blocks; `port`
/// answers on other threads.
///
/// Whoever calls this has to know that the source will not serve the disk again.
///
/// Fails with [`ErrorKind::NotOwned`] when the disk does not follow another one, [`ErrorKind::Disk`] when what is in the
/// journal could not be carried over (the same again goes on), [`ErrorKind::Record`].
pub fn promote(record: &Path, port: &dyn DiskPort, apart: bool) -> Result<Ownership> {
    let known = load_record(record)?;
    let Some(following) = &known else {
        return Err(does_not_follow());
    };
    let journal = how_far(record, following, apart)?;
    let paths = journal_paths(record);
    let what = "cannot carry the journal over into the disk";
    // A receiving site that began meanwhile may have written another, or carried the disk over further.
    let agreed = || match load_record(record) {
        Ok(now) if now == known => match how_far(record, following, apart) {
            Ok(now) if now == journal => Ok(()),
            Ok(_) => Err(io::Error::other("the record of its group has changed")),
            Err(e) => Err(io::Error::other(e)),
        },
        Ok(_) => Err(io::Error::other("the ownership record has changed")),
        Err(e) => Err(io::Error::other(e)),
    };
    let recovered = recover(&paths, journal, port, agreed);
    let recovered = recovered.map_err(|e| Error::io(ErrorKind::Disk, what, e))?;
    let forced = following.forced();
    write_record(record, &forced)?;
    if let Err(e) = remove(&paths) {
        tracing::warn!("{}: its journal is left behind: {e}", record.display());
    }
    // Kept to the end: whoever gets it then finds it gone, and the record changed.
    drop(recovered);
    Ok(forced)
}
