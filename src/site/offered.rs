//! Disks that were offered to another host when their server ended: the arbiter says whose they are.
//!
//! Must never serve such a disk before the arbiter's word is in its record.

use std::io;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use mirror::arbiter::{ArbiterName, Ballot, Side};
use mirror::files::RecordStore;
use mirror::net::arbiter::ask;
use mirror::record::Ownership;

use crate::interrupt;

/// How long an arbiter that does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(500);

/// What the record of an offered disk comes to, durably; any other record as it is. The text says why that cannot be
/// told. Only by who has the disk open for itself, to write to it.
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
        match answer(arbiter, ballot, Side::Source) {
            Ok(side) => return Ok(side),
            Err(error) if since.elapsed() > PATIENCE || interrupt::requested() => {
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

/// Ask once, and wait no longer than that for an answer, whatever the place does.
fn answer(arbiter: &ArbiterName, ballot: Ballot, side: Side) -> io::Result<Side> {
    let (tell, told) = channel();
    let asked = arbiter.clone();
    thread::spawn(move || {
        let _ = tell.send(ask(&asked, ballot, side));
    });
    let since = Instant::now();
    loop {
        match told.recv_timeout(AGAIN) {
            Ok(answer) => return answer,
            Err(_) if since.elapsed() > PATIENCE || interrupt::requested() => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(_) => {}
        }
    }
}

/// A user takes the disk by force: what an arbiter decides about it is decided first, so that the other host cannot have
/// it later. What stands in the way, if that host has it.
pub(crate) fn close_ballot(store: &RecordStore, record: &Ownership) -> Result<(), String> {
    let Some((arbiter, ballot)) = record.ballot() else {
        return Ok(());
    };
    let offered = record.settled(Side::Target);
    let side = if offered.is_some() {
        Side::Source
    } else {
        Side::Target
    };
    match (answer(arbiter, ballot, side), offered) {
        (Ok(winner), _) if winner == side => Ok(()),
        (Ok(_), Some(gone)) => {
            let written = store.persist_and_wait(&gone);
            written.map_err(|error| error.to_string())?;
            Err("the arbiter says that the other host has taken the disk; if that host is lost for good, say \
                 --take-over once more"
                .into())
        }
        (Ok(_), None) => Err(
            "the arbiter says that the source has taken the disk back: it may have served it since, and what is here \
             is older"
                .into(),
        ),
        (Err(error), _) => {
            tracing::warn!(
                "the arbiter at {} cannot be asked ({error}): the other host may still take the disk when it can",
                arbiter.at
            );
            Ok(())
        }
    }
}
