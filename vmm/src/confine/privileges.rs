//! Privileges of a process of root, given up for good.
//!
//! Driver. Holds for the thread that calls it and for all that it starts afterwards.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs,
};

use crate::{Error, Result};

/// What is kept: files of others, which Landlock bounds, and memory that is locked for rings and huge pages.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::IPC_LOCK);

/// Get no more privileges by running a program, and give up those that are not needed.
pub(super) fn give_up() -> Result<()> {
    let failed = |error| Error::host("privileges cannot be given up", error);
    set_no_new_privs(true).map_err(failed)?;
    let had = capabilities(None).map_err(failed)?;
    let now = CapabilitySets {
        effective: had.effective & KEPT,
        permitted: had.permitted & KEPT,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, now).map_err(failed)
}
