//! A directory that both hosts reach, as on a file server at a third place.
//!
//! Each ballot is a file that appears whole or not at all, by a hard link from a file that is durable: of two hosts that
//! make it at once one succeeds, also over NFS, and both then read what the file says.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags, linkat, openat, unlinkat};
use rustix::io::Errno;
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

    /// The directory as it is now: all of one question is asked there, whatever is mounted on its path meanwhile.
    fn open(&self) -> io::Result<Place> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&self.path, flags, Mode::empty())?;
        Ok(Place {
            folder: File::from(folder),
        })
    }
}

struct Place {
    folder: File,
}

impl Place {
    /// Have a file with that content and name, durably, unless there is one of that name.
    fn make(&self, name: &str, content: &impl Serialize) -> io::Result<Made> {
        let mut bytes = serde_json::to_vec(content)?;
        bytes.push(b'\n');
        let new = format!(".{}.new", Uuid::new_v4().simple());
        let linked = self.write_durably(&new, &bytes).and_then(|()| {
            match linkat(&self.folder, &new, &self.folder, name, AtFlags::empty()) {
                Ok(()) => Ok(Made::Now),
                Err(Errno::EXIST) => Ok(Made::Before),
                Err(e) => Err(e.into()),
            }
        });
        let _ = unlinkat(&self.folder, &new, AtFlags::empty());
        // Whoever made it: it has to be there for good before anybody acts on it.
        let made = linked?;
        self.folder.sync_all()?;
        Ok(made)
    }

    fn write_durably(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.folder, name, flags, READABLE)?);
        // The other host may come as somebody else, and this process may be told to hide what it makes.
        rustix::fs::fchmod(&file, READABLE)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, name: &str) -> io::Result<T> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&self.folder, name, flags, Mode::empty())?);
        let mut bytes = Vec::new();
        file.take(MAX_LEN).read_to_end(&mut bytes)?;
        serde_json::from_slice(&bytes).map_err(|e| damaged(name, &e.to_string()))
    }

    fn id(&self) -> io::Result<Uuid> {
        let found: Established = match self.read(NAME) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(none_there()),
            found => found?,
        };
        if found.diskferry_arbiter != VERSION {
            return Err(damaged(NAME, "it is of another version"));
        }
        Ok(found.id)
    }

    fn read_ballot(&self, name: &str) -> io::Result<(Ballot, Side)> {
        let decided: Decided = self.read(name)?;
        if decided.diskferry_ballot != VERSION {
            return Err(damaged(name, "it is of another version"));
        }
        if name != name_of(decided.ballot()) {
            return Err(damaged(name, "it speaks of another attempt than its name"));
        }
        Ok((decided.ballot(), decided.winner))
    }
}

/// Whether this call made a file.
#[derive(Debug, PartialEq, Eq)]
enum Made {
    Now,
    Before,
}

/// For everybody to read.
const READABLE: Mode = Mode::from_raw_mode(0o644);

fn name_of(ballot: Ballot) -> String {
    let (disk, session) = (ballot.disk, ballot.session);
    format!("{disk}.{session}.{}{SUFFIX}", ballot.attempt)
}

fn damaged(name: &str, why: &str) -> io::Error {
    let what = format!("its file {name} is damaged: {why}");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Arbiter for Folder {
    fn id(&self) -> io::Result<Uuid> {
        self.open()?.id()
    }

    fn establish(&self, id: Uuid) -> io::Result<()> {
        let established = Established {
            diskferry_arbiter: VERSION,
            id,
        };
        let place = self.open()?;
        match place.make(NAME, &established)? {
            Made::Now => Ok(()),
            Made::Before => Err(already_there(place.id()?)),
        }
    }

    fn reach(&self, id: Uuid) -> io::Result<()> {
        let place = self.open()?;
        is_the_one(id, place.id()?)?;
        // All that a decision takes, and nothing of it stays.
        let name = format!(".{}.probe", Uuid::new_v4().simple());
        let probe = Established {
            diskferry_arbiter: VERSION,
            id,
        };
        place.make(&name, &probe)?;
        let read = place.read::<Established>(&name).map(drop);
        unlinkat(&place.folder, &name, AtFlags::empty())?;
        read
    }

    fn decide(&self, id: Uuid, ballot: Ballot, side: Side) -> io::Result<Side> {
        let place = self.open()?;
        is_the_one(id, place.id()?)?;
        let decided = Decided {
            diskferry_ballot: VERSION,
            disk: ballot.disk,
            session: ballot.session,
            attempt: ballot.attempt,
            winner: side,
        };
        let name = name_of(ballot);
        place.make(&name, &decided)?;
        Ok(place.read_ballot(&name)?.1)
    }

    fn decided(&self) -> io::Result<Vec<(Ballot, Side)>> {
        let place = self.open()?;
        place.id()?;
        let mut all = Vec::new();
        for entry in rustix::fs::Dir::read_from(&place.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if name.ends_with(SUFFIX) {
                all.push(place.read_ballot(&name)?);
            }
        }
        all.sort_unstable_by_key(|(ballot, _)| *ballot);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

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

    #[test]
    fn an_arbiter_that_could_not_decide_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let (arbiter, id) = established(dir.path());
        arbiter.reach(id).unwrap();
        assert!(arbiter.reach(Uuid::from_u128(8)).is_err());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "a probe stays"
        );
        // What it makes is for the other host to read, whoever that comes as.
        arbiter.decide(id, ballot(1), Side::Target).unwrap();
        for entry in fs::read_dir(dir.path()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o644);
        }
    }
}
