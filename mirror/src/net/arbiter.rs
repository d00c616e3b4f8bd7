//! Third places that decide who goes on with a disk: a directory that both hosts reach, or etcd.
//!
//! What is decided, and what for, is in [`crate::arbiter`]. Calls block for seconds at most and may be repeated.
//! Must never let two callers of one ballot hear different sides: an arbiter that is lost and made anew has another
//! name, and a host that knew the old one is not answered by it.

mod etcd;
mod file;
mod tls;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use uuid::Uuid;

use self::etcd::Etcd;
use self::file::Folder;
use crate::arbiter::{ArbiterName, Ballot, Side};
use crate::error::{Error, ErrorKind, Result};

/// A third place. See the [module](self).
pub trait Arbiter: Send + Sync {
    /// What it calls itself. Fails with [`io::ErrorKind::NotFound`] when nobody made an arbiter of that place.
    fn id(&self) -> io::Result<Uuid>;

    /// Make an arbiter of that place, durably. Fails with [`io::ErrorKind::AlreadyExists`] when it is one.
    fn establish(&self, id: Uuid) -> io::Result<()>;

    /// Whether it is the arbiter `id` and could decide now: tries all that a decision takes.
    fn reach(&self, id: Uuid) -> io::Result<()>;

    /// Ask for a ballot as `side`: who has it, from now on and durably. Fails when this is not the arbiter `id`, or does
    /// not answer; then it may be decided or not.
    fn decide(&self, id: Uuid, ballot: Ballot, side: Side) -> io::Result<Side>;

    /// All that was decided.
    fn decided(&self) -> io::Result<Vec<(Ballot, Side)>>;
}

/// The arbiter at `at`: `file:DIRECTORY`, or `etcd:http://HOST:PORT[,http://HOST:PORT…]`.
///
/// Fails with [`ErrorKind::InvalidArgument`] when it is written in no such way. Whether it is there is not asked.
pub fn at(at: &str) -> Result<Box<dyn Arbiter>> {
    if let Some(folder) = at.strip_prefix("file:") {
        // Records keep what is written here: it has to mean the same wherever they are read.
        if folder.starts_with('/') {
            return Ok(Box::new(Folder::new(folder)));
        }
        let what = format!("{at}: the directory of an arbiter has to be an absolute path");
        return Err(Error::new(ErrorKind::InvalidArgument, what));
    }
    if let Some(endpoints) = at.strip_prefix("etcd:") {
        return Ok(Box::new(Etcd::parse(endpoints)?));
    }
    let what = format!("{at} is no arbiter: say file:/DIRECTORY or etcd:http://HOST:PORT");
    Err(Error::new(ErrorKind::InvalidArgument, what))
}

/// The arbiter at that place, by its name. Fails as [`at`] and [`Arbiter::id`].
pub fn find(place: &str) -> Result<ArbiterName> {
    let arbiter = at(place)?;
    let failed = |e| Error::io(ErrorKind::Io, format!("the arbiter at {place}"), e);
    Ok(ArbiterName {
        id: arbiter.id().map_err(failed)?,
        at: place.to_owned(),
    })
}

/// Whether that arbiter is there, and is the one so named.
pub fn reach(name: &ArbiterName) -> io::Result<()> {
    at(&name.at).map_err(io::Error::other)?.reach(name.id)
}

/// Questions under way in this process.
static ASKED: AtomicUsize = AtomicUsize::new(0);
/// More than that are not asked: the place hangs.
const MOST_ASKED: usize = 32;

/// Ask on a thread of its own, since a file server that is gone keeps whoever asks for as long as it likes; `tell` hears
/// the answer.
pub(super) fn apart<T: Send + 'static>(
    ask: impl FnOnce() -> io::Result<T> + Send + 'static,
    tell: impl FnOnce(io::Result<T>) + Send + 'static,
) {
    if ASKED.fetch_add(1, Ordering::Relaxed) >= MOST_ASKED {
        ASKED.fetch_sub(1, Ordering::Relaxed);
        return tell(Err(io::Error::other(
            "it has not answered earlier questions",
        )));
    }
    let run = move || {
        let answer = ask();
        ASKED.fetch_sub(1, Ordering::Relaxed);
        tell(answer);
    };
    let thread = std::thread::Builder::new().name("arbiter".into());
    if let Err(e) = thread.spawn(run) {
        // The one who asked gives up in time.
        ASKED.fetch_sub(1, Ordering::Relaxed);
        tracing::error!("cannot start a thread to ask the arbiter: {e}");
    }
}

/// Ask that arbiter. Fails as [`Arbiter::decide`].
pub fn ask(name: &ArbiterName, ballot: Ballot, side: Side) -> io::Result<Side> {
    let arbiter = at(&name.at).map_err(io::Error::other)?;
    let decided = arbiter.decide(name.id, ballot, side)?;
    tracing::info!(
        "the arbiter at {} says that attempt {} is the {decided}'s",
        name.at,
        ballot.attempt
    );
    Ok(decided)
}

fn is_the_one(wanted: Uuid, found: Uuid) -> io::Result<()> {
    if wanted == found {
        return Ok(());
    }
    let what = format!("it is arbiter {found}, not {wanted}: both hosts have to mean the same one");
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}

fn none_there() -> io::Error {
    let what = "nobody made an arbiter of that place: `diskferry arbiter new` does";
    io::Error::new(io::ErrorKind::NotFound, what)
}

fn already_there(id: Uuid) -> io::Error {
    let what = format!("that place is arbiter {id} already");
    io::Error::new(io::ErrorKind::AlreadyExists, what)
}
