//! Which files this process may open from now on (Landlock), and whom it may reach.
//!
//! Driver. Holds for the thread that calls it and for all that it starts afterwards. What this host's kernel
//! cannot hold is left out and said.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
};

use crate::{Error, Result};

/// Files and folders that are needed, each with all that is below it. One that is not there is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// To be read.
    pub read: Vec<PathBuf>,
    /// To be read and written; in folders, files, sockets and folders are also made and removed.
    pub write: Vec<PathBuf>,
    /// Folders in which sockets, and links to them, are made and removed; nothing in them is read or written.
    pub sockets: Vec<PathBuf>,
}

/// The newest version of Landlock whose rights are known here.
const NEWEST: ABI = ABI::V6;

/// What a kernel with an older version of Landlock than this does not hold.
const MISSING: [(i32, &str); 6] = [
    (1, "files: any may be opened"),
    (2, "renames between folders, which are all refused"),
    (3, "truncation of files by name"),
    (4, "TCP: any port may be listened on"),
    (5, "ioctl on devices that are open"),
    (6, "signals and abstract sockets of other processes"),
];

/// What a kernel of this version cannot hold.
pub(super) fn missing(version: i32) -> Vec<&'static str> {
    let missing = MISSING.into_iter().filter(|(since, _)| version < *since);
    missing.map(|(_, what)| what).collect()
}

/// Rights to a folder or file to be written; nothing is ever to be executed, and no device be made.
fn writing() -> BitFlags<AccessFs> {
    let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock;
    AccessFs::from_all(NEWEST) & !never
}

fn reading() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

fn listening() -> BitFlags<AccessFs> {
    AccessFs::MakeSock | AccessFs::MakeSym | AccessFs::RemoveFile
}

/// Rights that mean something for what is no folder.
fn of_file(rights: BitFlags<AccessFs>) -> BitFlags<AccessFs> {
    rights & AccessFs::from_file(NEWEST)
}

fn failed(what: impl Into<String>) -> impl FnOnce(landlock::RulesetError) -> Error {
    let what = what.into();
    move |error| Error::host(what, std::io::Error::other(error))
}

/// A port that the kernel chooses: a disk that is mirrored to another path of this host is received by the same
/// process, which both ends talk to by TCP.
const ANY_PORT: u16 = 0;

/// Allow these files and nothing else, no port that somebody chooses to listen on, and no process outside of this one. Says which
/// version of Landlock this host has, 0 for none.
pub(super) fn restrict(paths: &Paths) -> Result<i32> {
    let cannot = || failed("Landlock cannot be set up");
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::BindTcp))
        .and_then(|rules| rules.scope(Scope::AbstractUnixSocket | Scope::Signal))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.add_rule(NetPort::new(ANY_PORT, AccessNet::BindTcp)))
        .map_err(cannot())?;
    let reading = paths.read.iter().map(|path| (path, reading()));
    let writing = paths.write.iter().map(|path| (path, writing()));
    let sockets = paths.sockets.iter().map(|path| (path, listening()));
    for (path, rights) in reading.chain(writing).chain(sockets) {
        if let Some(beneath) = beneath(path, rights) {
            let failed = failed(format!("Landlock refuses {}", path.display()));
            rules = rules.add_rule(beneath).map_err(failed)?;
        }
    }
    let status = rules.restrict_self().map_err(cannot())?;
    Ok(match status.landlock {
        LandlockStatus::Available {
            effective_abi,
            kernel_abi,
        } => kernel_abi.unwrap_or(effective_abi as i32),
        _ => 0,
    })
}

fn beneath(path: &Path, rights: BitFlags<AccessFs>) -> Option<PathBeneath<PathFd>> {
    let folder = path.metadata().ok()?.is_dir();
    let rights = if folder { rights } else { of_file(rights) };
    let place = PathFd::new(path);
    if let Err(error) = &place {
        tracing::debug!(path = %path.display(), %error, "not allowed, since it cannot be found");
    }
    Some(PathBeneath::new(place.ok()?, rights))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_old_kernel_lacks_is_named() {
        assert_eq!(missing(0).len(), MISSING.len());
        assert_eq!(missing(3), [MISSING[3].1, MISSING[4].1, MISSING[5].1]);
        assert!(missing(6).is_empty() && missing(9).is_empty());
    }
}
