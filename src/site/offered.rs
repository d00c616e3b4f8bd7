//! Disks that were offered to another host when their server ended: the arbiter says whose they are.
//!
//! Must never serve such a disk before the arbiter's word is in its record.

use std::thread;
use std::time::{Duration, Instant};

use mirror::arbiter::Side;
use mirror::files::RecordStore;
use mirror::net::arbiter::ask;
use mirror::record::Ownership;

/// How long an arbiter that does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(500);

/// What the record of an offered disk comes to, durably; any other record as it is. The text says why that cannot be
/// told. Only by who has the disk open for itself.
pub(crate) fn settle(
    store: &RecordStore,
    record: Option<Ownership>,
) -> Result<Option<Ownership>, String> {
    let Some(offered) = record
        .as_ref()
        .filter(|record| record.settled(Side::Source).is_some())
    else {
        return Ok(record);
    };
    let side = whose(offered)?;
    let settled = offered.settled(side);
    if let Some(settled) = &settled {
        let written = store.persist_and_wait(settled);
        written.map_err(|error| error.to_string())?;
    }
    Ok(settled)
}

/// Ask for it, for a while.
fn whose(offered: &Ownership) -> Result<Side, String> {
    let Some((arbiter, ballot)) = offered.ballot() else {
        return Ok(Side::Source);
    };
    let since = Instant::now();
    loop {
        match ask(arbiter, ballot, Side::Source) {
            Ok(side) => return Ok(side),
            Err(error) if since.elapsed() > PATIENCE => {
                return Err(format!(
                    "the disk was offered to another host, and the arbiter at {} cannot be asked whether that has taken \
                     it: {error}; start again when it can",
                    arbiter.at
                ));
            }
            Err(error) => tracing::warn!("the arbiter at {} cannot be asked: {error}", arbiter.at),
        }
        thread::sleep(AGAIN);
    }
}
