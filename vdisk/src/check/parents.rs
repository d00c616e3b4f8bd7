//! The disks that a disk is built on: whether they are found, and fit (MS-VHDX 2.6.2.6).
//!
//! Opens files, as [`crate::chain`] does and under its rules; changes nothing.

use std::path::{Path, PathBuf};

use crate::chain::{ParentSearch, open_chain};
use crate::disk::{ImageFormat, OpenOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Code, Finding, Severity};

use super::{CheckReport, check};

/// What there is to say of the disks beneath one.
#[derive(Clone, Debug, Default)]
pub struct Parents {
    /// What keeps the disk from being opened with them.
    pub findings: Vec<Finding>,
    /// Each of them with its own examination, the nearest first, if that was asked for and all of
    /// them were found.
    pub disks: Vec<(PathBuf, CheckReport)>,
}

/// Looks for the disks that the one at `path` is built on, and examines them too if `each`.
///
/// `marked` says that the disk itself is marked, and is looked at all the same. Fails when the host
/// does; a parent that is missing, in use or wrong is a finding.
pub fn check_parents(
    path: &Path,
    search: &ParentSearch,
    (marked, each): (bool, bool),
) -> Result<Parents> {
    let options = OpenOptions {
        read_only: true,
        allow_marked: marked,
        format: Some(ImageFormat::Vhdx),
        ..OpenOptions::default()
    };
    let chain = match open_chain(path, &options, search) {
        Ok(chain) => chain,
        Err(error) => {
            return Ok(Parents {
                findings: vec![judged(error)?],
                disks: Vec::new(),
            });
        }
    };
    let mut found = Parents::default();
    let examined = chain.parents.into_iter().filter(|_| each);
    for mut parent in examined {
        let path = parent.storage.path().to_owned();
        let report = check(&mut parent.storage).map_err(|error| error.in_file(&path))?;
        found.disks.push((path, report));
    }
    Ok(found)
}

/// Why a chain could not be opened, as a finding; failures of the host are the caller's.
fn judged(error: Error) -> Result<Finding> {
    let of_chain = error.code().filter(|code| *code >= Code::ParentNotFound);
    let code = match (of_chain, error.kind()) {
        (Some(code), _) => code,
        (None, ErrorKind::NoParent) => Code::ParentNotFound,
        (None, ErrorKind::Locked) => Code::ParentInUse,
        (
            None,
            ErrorKind::Corrupt
            | ErrorKind::Unsupported
            | ErrorKind::NeedsRepair
            | ErrorKind::NotOwned,
        ) => Code::ParentUnusable,
        (None, _) => return Err(error),
    };
    let (severity, follows) = match code {
        Code::ParentNotFound => (
            Severity::Warning,
            "this image is as it should be; it cannot be opened until its parent is where it may be \
             found",
        ),
        Code::ParentInUse => (
            Severity::Warning,
            "whether this disk still fits it was not seen; a parent that is written loses its \
             children",
        ),
        Code::ParentChanged => (
            Severity::Error,
            "what this disk would read is not what was written; it is refused",
        ),
        _ => (Severity::Error, "the disk cannot be opened"),
    };
    let what = error.to_string();
    Ok(Finding::new(code, severity, "parent", what, follows))
}
