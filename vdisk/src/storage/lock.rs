//! Locks on image files, so that two writers never meet.
//!
//! Driver. Two kinds are taken, each for what the other cannot do:
//!
//! - `flock` on the file, which decides between programs of this kind: one of two that come at the same
//!   time gets it. Not on NFS, which has only the other kind.
//! - Locks on single bytes, of the open file and not of the process (`F_OFD_SETLK`), by the convention of
//!   QEMU: byte `100 + n` is locked by whoever uses permission `n`, byte `200 + n` by whoever lets nobody
//!   else use it; all of them are read locks, and whoever has taken its own looks for contrary ones of
//!   others. So programs of QEMU refuse what is open here, and the other way round. Not on SMB.
//!
//! A lock belongs to the open file and ends with it: with the last of the processes that share it, or
//! earlier by [`unlock`]. What is promised on which file system is in `docs/locking.md`. Must never break a
//! lock of another, and never be without a lock between two states of it: see [`share`].

use std::fs::File;
use std::io;
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{FlockOperation, flock, fstatfs};
use rustix::io::Errno;

/// What an open file is to be kept from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Others may read, nobody may write.
    Shared,
    /// Nobody else may do anything.
    Exclusive,
}

/// QEMU's permissions, as bits (`BLK_PERM_*`): to read what is consistent, to write, to write without
/// changing what is read, to change the length.
const CONSISTENT_READ: u8 = 1;
const WRITE: u8 = 2;
const RESIZE: u8 = 8;
const ALL: u8 = 15;
const PERMISSIONS: i64 = 4;
/// First byte of those that say what is used, and of those that say what nobody else may use.
const USED: i64 = 100;
const DENIED: i64 = 200;

/// File systems on which a lock of a byte keeps everybody from writing it, whoever has the lock: a guest
/// could not write the first sector of a raw disk (`SMB_SUPER_MAGIC`, `CIFS_SUPER_MAGIC`,
/// `SMB2_SUPER_MAGIC`).
const MANDATORY: [u32; 3] = [0x517B, 0xFF53_4D42, 0xFE53_4D42];
/// NFS makes of `flock` a lock of all bytes (`NFS_SUPER_MAGIC`; flock(2), "NFS details"): a reader's would
/// look like one that lets nobody read.
const WHOLE_FILE: u32 = 0x6969;

/// Which kinds of locks a file system has that do not get into each other's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kinds {
    whole: bool,
    bytes: bool,
}

impl Kinds {
    #[expect(
        clippy::cast_sign_loss,
        reason = "numbers of 32 bits, whatever their type here"
    )]
    fn of(file: &File) -> io::Result<Self> {
        Ok(Self::on(fstatfs(file)?.f_type as u32))
    }

    /// On the file system with this magic number (statfs(2)).
    fn on(system: u32) -> Self {
        Self {
            whole: system != WHOLE_FILE,
            bytes: !MANDATORY.contains(&system),
        }
    }
}

/// How often, and how far apart, a lock is tried for that another takes only to give it back.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(5);

impl Hold {
    /// What is used, and what nobody else may use.
    fn permissions(self) -> (u8, u8) {
        match self {
            Self::Shared => (CONSISTENT_READ, WRITE | RESIZE),
            Self::Exclusive => (ALL, ALL),
        }
    }

    fn flock(self) -> FlockOperation {
        match self {
            Self::Shared => FlockOperation::NonBlockingLockShared,
            Self::Exclusive => FlockOperation::NonBlockingLockExclusive,
        }
    }
}

/// Lock a file that is open for reading, and to be held exclusively for writing too; does not wait.
///
/// # Errors
/// `WouldBlock`: another open file has a lock that does not agree with this one. Others: the file system
/// cannot lock.
pub fn lock(file: &File, hold: Hold) -> io::Result<()> {
    lock_by(file, hold, Kinds::of(file)?)
}

fn lock_by(file: &File, hold: Hold, kinds: Kinds) -> io::Result<()> {
    if kinds.whole {
        flock(file, hold.flock())?;
    }
    let claimed = if kinds.bytes {
        claim(file, hold)
    } else {
        Ok(())
    };
    if claimed.is_err() {
        // That it was refused says more than that what was taken cannot be given back.
        let _ = unlock_by(file, kinds);
    }
    claimed
}

/// Turn the exclusive lock of `file` into a shared one; no writer can come in between.
///
/// # Errors
/// The lock could not be turned.
pub fn share(file: &File) -> io::Result<()> {
    let kinds = Kinds::of(file)?;
    if kinds.whole {
        flock_again(file, Hold::Shared)?;
    }
    if kinds.bytes {
        let (used, denied) = Hold::Shared.permissions();
        for byte in bytes(USED, ALL & !used).chain(bytes(DENIED, ALL & !denied)) {
            set(file, libc::F_UNLCK, byte, 1)?;
        }
    }
    Ok(())
}

/// Turn the shared lock of `file` into an exclusive one. It stays shared if this fails, so that nobody
/// else can write in any case.
///
/// # Errors
/// `WouldBlock`: another reads.
pub fn exclude(file: &File) -> io::Result<()> {
    let kinds = Kinds::of(file)?;
    let claimed = if kinds.bytes {
        claim(file, Hold::Exclusive)
    } else {
        Ok(())
    };
    let whole = |()| flock_again(file, Hold::Exclusive);
    let excluded = if kinds.whole {
        claimed.and_then(whole)
    } else {
        claimed
    };
    if excluded.is_err() {
        // That it was refused says more than that it could not be turned back.
        let _ = share(file);
    }
    excluded
}

/// `flock` gives the one lock back before it takes the other: who slips in is refused by the bytes, and
/// goes.
fn flock_again(file: &File, hold: Hold) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match flock(file, hold.flock()) {
            Err(Errno::WOULDBLOCK) if tries < TRIES => tries += 1,
            result => return Ok(result?),
        }
        thread::sleep(PAUSE);
    }
}

/// Give the lock of `file` back, for all who share the open file.
pub fn unlock(file: &File) -> io::Result<()> {
    unlock_by(file, Kinds::of(file)?)
}

fn unlock_by(file: &File, kinds: Kinds) -> io::Result<()> {
    let mut given_back = Ok(());
    if kinds.bytes {
        let used = set(file, libc::F_UNLCK, USED, PERMISSIONS);
        given_back = used.and(set(file, libc::F_UNLCK, DENIED, PERMISSIONS));
    }
    if kinds.whole {
        flock(file, FlockOperation::Unlock)?;
    }
    given_back
}

/// The bytes of these permissions.
fn bytes(first: i64, permissions: u8) -> impl Iterator<Item = i64> {
    let wanted = move |n: &i64| permissions & (1 << n) != 0;
    (0..PERMISSIONS).filter(wanted).map(move |n| first + n)
}

/// Lock the bytes for `hold`, then look whether others agree. Two that come at once may both be refused;
/// they never both succeed.
fn claim(file: &File, hold: Hold) -> io::Result<()> {
    let (used, denied) = hold.permissions();
    for byte in bytes(USED, used).chain(bytes(DENIED, denied)) {
        set(file, libc::F_RDLCK, byte, 1)?;
    }
    for byte in bytes(DENIED, used).chain(bytes(USED, denied)) {
        if taken(file, byte)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
    }
    Ok(())
}

fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn set(file: &File, kind: i32, start: i64, len: i64) -> io::Result<()> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, start, len))) {
        Ok(_) => Ok(()),
        // What stands for "another has it" is left to the system.
        Err(nix::errno::Errno::EACCES) => Err(io::ErrorKind::WouldBlock.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether another open file has any lock of this byte.
fn taken(file: &File, byte: i64) -> io::Result<bool> {
    let mut found = range(libc::F_WRLCK, byte, 1);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    fn open(path: &Path) -> File {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .open(path)
            .expect("it is there")
    }

    fn locked(path: &Path, hold: Hold) -> Option<File> {
        let file = open(path);
        match lock(&file, hold) {
            Ok(()) => Some(file),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                None
            }
        }
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let place = tempfile::NamedTempFile::new().expect("a temporary file");
        let path = place.path();
        let (one, two) = (locked(path, Hold::Shared), locked(path, Hold::Shared));
        assert!(one.is_some() && two.is_some());
        assert!(locked(path, Hold::Exclusive).is_none());
        drop((one, two));
        let writer = locked(path, Hold::Exclusive);
        assert!(writer.is_some());
        assert!(locked(path, Hold::Shared).is_none());
        assert!(locked(path, Hold::Exclusive).is_none());
    }

    #[test]
    fn bytes_alone_keep_writers_apart_where_the_other_kind_would_be_in_their_way() {
        let nfs = Kinds::on(WHOLE_FILE);
        assert!(nfs.bytes && !nfs.whole);
        let place = tempfile::NamedTempFile::new().expect("a temporary file");
        let by = |hold| {
            let file = open(place.path());
            lock_by(&file, hold, nfs).map(|()| file)
        };
        let refused = |hold| {
            let error = by(hold).expect_err("another has it");
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
        };
        let readers = (
            by(Hold::Shared).expect("one"),
            by(Hold::Shared).expect("two"),
        );
        refused(Hold::Exclusive);
        unlock_by(&readers.0, nfs).expect("unlocked");
        refused(Hold::Exclusive);
        unlock_by(&readers.1, nfs).expect("unlocked");
        let writer = by(Hold::Exclusive).expect("nobody else");
        refused(Hold::Shared);
        refused(Hold::Exclusive);
        drop(writer);
        by(Hold::Exclusive).expect("nobody else");
    }

    #[test]
    fn no_byte_is_locked_where_that_would_keep_a_guest_from_writing_it() {
        for system in MANDATORY {
            let kinds = Kinds::on(system);
            assert!(kinds.whole && !kinds.bytes);
        }
        let place = tempfile::NamedTempFile::new().expect("a temporary file");
        let (held, other) = (open(place.path()), open(place.path()));
        lock_by(&held, Hold::Exclusive, Kinds::on(MANDATORY[0])).expect("nobody else");
        assert!(!(0..300).any(|byte| taken(&other, byte).expect("asked")));
        assert!(locked(place.path(), Hold::Shared).is_none());
    }

    #[test]
    fn what_the_bytes_say_is_obeyed_without_any_other_lock() {
        let place = tempfile::NamedTempFile::new().expect("a temporary file");
        let path = place.path();
        for (byte, shared, exclusive) in [
            // Another reads; writes; lets nobody read; lets nobody write.
            (100, true, false),
            (101, false, false),
            (200, false, false),
            (201, true, false),
        ] {
            let other = open(path);
            set(&other, libc::F_RDLCK, byte, 1).expect("locked");
            assert_eq!(locked(path, Hold::Shared).is_some(), shared, "{byte}");
            assert_eq!(locked(path, Hold::Exclusive).is_some(), exclusive, "{byte}");
        }
    }

    #[test]
    fn whoever_is_refused_leaves_no_lock() {
        let place = tempfile::NamedTempFile::new().expect("a temporary file");
        let path = place.path();
        let other = open(path);
        set(&other, libc::F_RDLCK, DENIED + 1, 1).expect("locked");
        let refused = open(path);
        lock(&refused, Hold::Exclusive).expect_err("it is in use");
        drop(other);
        assert!(locked(path, Hold::Exclusive).is_some());
    }

    #[test]
    fn no_writer_comes_in_while_a_lock_becomes_a_shared_one_and_back() {
        let place = tempfile::NamedTempFile::new().expect("a temporary file");
        let path = place.path();
        let intrude = || (0..50).any(|_| locked(path, Hold::Exclusive).is_some());
        for _ in 0..50 {
            let held = locked(path, Hold::Exclusive).expect("nobody else");
            thread::scope(|scope| {
                let intruder = scope.spawn(intrude);
                share(&held).expect("shared");
                assert!(!intruder.join().expect("a thread"), "a writer came in");
            });
            let reader = locked(path, Hold::Shared).expect("others may read");
            exclude(&held).expect_err("there is a reader");
            drop((reader, locked(path, Hold::Shared).expect("still shared")));
            exclude(&held).expect("nobody else");
            assert!(locked(path, Hold::Shared).is_none());
            unlock(&held).expect("unlocked");
        }
    }

    #[test]
    fn a_process_that_shares_the_open_file_does_not_keep_its_lock() {
        let place = tempfile::NamedTempFile::new().expect("a temporary file");
        let path = place.path();
        let held = locked(path, Hold::Exclusive).expect("nobody else");
        let mut child = Command::new("sleep")
            .arg("600")
            .stdin(held.try_clone().expect("a descriptor"))
            .spawn()
            .expect("sleep can be run");
        unlock(&held).expect("unlocked");
        assert!(locked(path, Hold::Exclusive).is_some());
        child.kill().expect("it runs");
        child.wait().expect("it ends");
    }
}
