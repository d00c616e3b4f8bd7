//! A machine moves to another host, cold but quick: it stands still while its memory is sent.
//!
//! | module | what |
//! |---|---|
//! | [`passport`] | what a target is told of a machine before anything is begun, and whether it would take it |
//! | [`volume`] | codec: the state of a machine as one more volume |
//! | [`given`] | that volume at the source: read out of the machine's own memory |
//! | [`source`] | drives a move at the source, by the rules of [`mirror::joint`] |
//! | [`arrivals`] | the target: volume and disks as they come in |
//! | [`arrived`] | what has arrived, until it is used |
//! | [`standing`] | whether a machine may run here at all |
//!
//! Order of things and what a crash leaves: `docs/vm-migration.md`.

pub(crate) mod arrivals;
pub(crate) mod arrived;
mod given;
pub(crate) mod passport;
pub(crate) mod source;
pub(crate) mod standing;
pub(crate) mod volume;

use std::fs;
use std::path::{Path, PathBuf};

use mirror::files::{RecordStore, sidecar_path};

use crate::failure::{Failure, Result};

/// What the volume is called between the two hosts.
pub(crate) const STATE: &str = "machine";
/// What the names of disks begin with there.
const DISK: &str = "disk:";
/// What the target's address begins with in the record of a disk that went with its machine.
const WITH_MACHINE: &str = "machine:";

/// What a disk is called between the two hosts.
pub(crate) fn disk_name(name: &str) -> String {
    format!("{DISK}{name}")
}

/// A disk's name, of what it is called between the two hosts.
pub(crate) fn disk_of(name: &str) -> Option<&str> {
    name.strip_prefix(DISK)
}

/// What is recorded of a target that gets more than a disk.
pub(crate) fn recorded(to: &str) -> String {
    format!("{WITH_MACHINE}{to}")
}

/// The target of a disk that went with its machine.
pub(crate) fn went_with_machine(recorded: &str) -> Option<&str> {
    recorded.strip_prefix(WITH_MACHINE)
}

/// The file itself that describes a machine, whatever leads to it: its record lies beside it.
pub(crate) fn described(machine: &Path) -> Result<PathBuf> {
    let found = fs::canonicalize(machine);
    found.map_err(|e| Failure::io(format!("{}: cannot be found", machine.display()), &e))
}

/// A step of a move is reached. A test names one by `DISKFERRY_DIE_AT`, and the process ends there, like one that is killed;
/// programs that are built for use do not look.
pub(crate) fn reached(step: &str) {
    #[cfg(debug_assertions)]
    if std::env::var_os("DISKFERRY_DIE_AT").is_some_and(|wanted| wanted == step) {
        // Nothing is put in order, and a process that is confined may do this; `kill` it may not.
        std::process::abort();
    }
    #[cfg(not(debug_assertions))]
    let _ = step;
}

/// Where the record of a machine lies; `described` is the file itself.
pub(crate) fn record(described: &Path) -> RecordStore {
    RecordStore::open(sidecar_path(described))
}
