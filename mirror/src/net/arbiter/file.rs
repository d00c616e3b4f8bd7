//! A directory that both hosts reach, as on a file server at a third place.
//!
//! Each ballot is a file that appears whole or not at all, by a hard link from a file that is durable: of two hosts that
//! make it at once one succeeds, also over NFS, and both then read what the file says.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Arbiter, already_there, is_the_one, none_there};
use crate::arbiter::{Ballot, Side};

/// Version of the files.
const VERSION: u32 = 1;
/// The file that makes a directory an arbiter.
const NAME: &str = "arbiter.json";
/// How the name of a ballot's file ends.
const SUFFIX: &str = ".ballot.json";
/// The longest file that is read.
const MAX_LEN: u64 = 4096;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Established {
    diskferry_arbiter: u32,
    id: Uuid,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decided {
    diskferry_ballot: u32,
    disk: Uuid,
    session: Uuid,
    attempt: u64,
    winner: Side,
}

impl Decided {
    fn ballot(&self) -> Ballot {
        Ballot {
            disk: self.disk,
            session: self.session,
            attempt: self.attempt,
        }
    }
}

/// The directory.
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Have a file with that content and name, durably, unless there is one of that name; whether it was made.
    fn make(&self, name: &str, content: &impl Serialize) -> io::Result<bool> {
        let mut bytes = serde_json::to_vec(content)?;
        bytes.push(b'\n');
        let new = self.path.join(format!(".{}.new", Uuid::new_v4().simple()));
        let linked = write_durably(&new, &bytes).and_then(|()| {
            let linked = fs::hard_link(&new, self.path.join(name));
            match linked {
                Ok(()) => Ok(true),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                Err(e) => Err(e),
            }
        });
        let _ = fs::remove_file(&new);
        // Whoever made it: it has to be there for good before anybody acts on it.
        let made = linked?;
        File::open(&self.path)?.sync_all()?;
        Ok(made)
    }
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<T> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_LEN).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(|e| damaged(path, &e.to_string()))
}

fn read_ballot(path: &Path) -> io::Result<(Ballot, Side)> {
    let decided: Decided = read(path)?;
    if decided.diskferry_ballot != VERSION {
        return Err(damaged(path, "it is of another version"));
    }
    if path.file_name().and_then(|name| name.to_str()) != Some(&name_of(decided.ballot())) {
        return Err(damaged(path, "it speaks of another attempt than its name"));
    }
    Ok((decided.ballot(), decided.winner))
}

fn name_of(ballot: Ballot) -> String {
    let (disk, session) = (ballot.disk, ballot.session);
    format!("{disk}.{session}.{}{SUFFIX}", ballot.attempt)
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn damaged(path: &Path, why: &str) -> io::Error {
    let what = format!("{} is damaged: {why}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Arbiter for Folder {
    fn id(&self) -> io::Result<Uuid> {
        let path = self.path.join(NAME);
        let found: Established = match read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(none_there()),
            found => found?,
        };
        if found.diskferry_arbiter != VERSION {
            return Err(damaged(&path, "it is of another version"));
        }
        Ok(found.id)
    }

    fn establish(&self, id: Uuid) -> io::Result<()> {
        let established = Established {
            diskferry_arbiter: VERSION,
            id,
        };
        if self.make(NAME, &established)? {
            return Ok(());
        }
        Err(already_there(self.id()?))
    }

    fn decide(&self, id: Uuid, ballot: Ballot, side: Side) -> io::Result<Side> {
        is_the_one(id, self.id()?)?;
        let decided = Decided {
            diskferry_ballot: VERSION,
            disk: ballot.disk,
            session: ballot.session,
            attempt: ballot.attempt,
            winner: side,
        };
        let name = name_of(ballot);
        self.make(&name, &decided)?;
        Ok(read_ballot(&self.path.join(name))?.1)
    }

    fn decided(&self) -> io::Result<Vec<(Ballot, Side)>> {
        self.id()?;
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.to_string_lossy().ends_with(SUFFIX) {
                all.push(read_ballot(&path)?);
            }
        }
        all.sort_unstable_by_key(|(ballot, _)| *ballot);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(attempt: u64) -> Ballot {
        Ballot {
            disk: Uuid::from_u128(1),
            session: Uuid::from_u128(2),
            attempt,
        }
    }

    fn established(folder: &Path) -> (Folder, Uuid) {
        let (arbiter, id) = (Folder::new(folder), Uuid::from_u128(9));
        arbiter.establish(id).unwrap();
        (arbiter, id)
    }

    #[test]
    fn of_many_that_ask_at_once_all_hear_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (_, id) = established(dir.path());
        for attempt in 1..40 {
            let ask = |side| {
                let path = dir.path().to_owned();
                std::thread::spawn(move || Folder::new(path).decide(id, ballot(attempt), side))
            };
            let asked = [Side::Source, Side::Target, Side::Source, Side::Target].map(ask);
            let said = asked.map(|thread| thread.join().unwrap().unwrap());
            assert!(said.iter().all(|side| *side == said[0]), "{said:?}");
            let again = Folder::new(dir.path()).decide(id, ballot(attempt), Side::Source);
            assert_eq!(again.unwrap(), said[0]);
        }
        let arbiter = Folder::new(dir.path());
        assert_eq!(arbiter.decided().unwrap().len(), 39);
        // Nothing else is left behind.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 40);
    }

    #[test]
    fn a_directory_that_is_none_or_another_one_decides_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let arbiter = Folder::new(dir.path());
        let asked = arbiter.decide(Uuid::from_u128(9), ballot(1), Side::Source);
        assert_eq!(asked.unwrap_err().kind(), io::ErrorKind::NotFound);
        let (arbiter, id) = established(dir.path());
        let other = arbiter.decide(Uuid::from_u128(8), ballot(1), Side::Source);
        assert!(other.unwrap_err().to_string().contains(&id.to_string()));
        let again = arbiter.establish(Uuid::from_u128(8)).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_ballot_that_is_damaged_is_an_error_and_nobody_s() {
        let dir = tempfile::tempdir().unwrap();
        let (arbiter, id) = established(dir.path());
        arbiter.decide(id, ballot(1), Side::Target).unwrap();
        let path = dir.path().join(name_of(ballot(1)));
        let text = fs::read_to_string(&path).unwrap();
        for damage in [
            "",
            "{}",
            &text.replace("target", "tarjet"),
            &text.replace(":1,", ":2,"),
        ] {
            fs::write(&path, damage).unwrap();
            let asked = arbiter.decide(id, ballot(1), Side::Source).unwrap_err();
            assert_eq!(asked.kind(), io::ErrorKind::InvalidData, "{damage}");
        }
    }
}
