//! Disks that are found bound to the record of a machine: whose they are.
//!
//! The rule is [`mirror::joint::resolve`]. Must never serve such a disk before what it comes to is durable: the record
//! that decides may be another one later.

use std::path::Path;

use mirror::files::{RecordStore, load_record};
use mirror::joint::resolve;
use mirror::record::{Ownership, State};

/// What a record comes to now; nothing is written. The text says why that cannot be told.
pub(crate) fn told(record: Option<Ownership>) -> Result<Option<Ownership>, String> {
    let Some(record) = record else {
        return Ok(None);
    };
    let State::Bound { lead, .. } = &record.state else {
        return Ok(Some(record));
    };
    let lead = load_record(Path::new(&lead.record)).map_err(|error| error.to_string())?;
    resolve(&record, lead.as_ref()).map(Some)
}

/// The same, durably. Only by who has the disk open for itself.
pub(crate) fn settle(
    store: &RecordStore,
    record: Option<&Ownership>,
) -> Result<Option<Ownership>, String> {
    let told = told(record.cloned())?;
    if let Some(settled) = &told
        && told.as_ref() != record
    {
        let written = store.persist_and_wait(settled);
        written.map_err(|error| error.to_string())?;
    }
    Ok(told)
}
