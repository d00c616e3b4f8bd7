//! A disk that follows another one becomes this host's own: for when the source is lost.
//!
//! Must never leave the disk between two states of the source's: what is sealed in the journal is in it before the record
//! changes, and can be carried over again until then.

use std::io;
use std::path::Path;

use super::journal::{recover, remove};
use super::port::DiskPort;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{journal_paths, load_record, write_record};
use crate::record::{Ownership, State};

/// Make the disk behind `port`, whose ownership record lies at `record`, this host's own, as the source's disk was at
/// the last consistent marker. The new record, durably; the mark is still in the image. Blocks; `port` answers on other
/// threads.
///
/// Whoever calls this has to know that the source will not serve the disk again.
///
/// Fails with [`ErrorKind::NotOwned`] when the disk does not follow another one, [`ErrorKind::Disk`] when what is in the
/// journal could not be carried over (the same again goes on), [`ErrorKind::Record`].
pub fn promote(record: &Path, port: &dyn DiskPort) -> Result<Ownership> {
    let known = load_record(record)?;
    let Some(State::Following { session, .. }) = known.as_ref().map(|known| &known.state) else {
        let what = "the disk does not follow another one, so it has no state to fall back to";
        return Err(Error::new(ErrorKind::NotOwned, what));
    };
    let paths = journal_paths(record);
    let what = "cannot carry the journal over into the disk";
    // A receiving site that began meanwhile may have written another.
    let agreed = || match load_record(record) {
        Ok(now) if now == known => Ok(()),
        Ok(_) => Err(io::Error::other("the ownership record has changed")),
        Err(e) => Err(io::Error::other(e)),
    };
    let recovered = recover(&paths, *session, port, agreed);
    let recovered = recovered.map_err(|e| Error::io(ErrorKind::Disk, what, e))?;
    let forced = known.as_ref().map(Ownership::forced);
    let Some(forced) = forced else {
        return Err(Error::new(
            ErrorKind::Record,
            "the ownership record is gone",
        ));
    };
    write_record(record, &forced)?;
    if let Err(e) = remove(&paths) {
        tracing::warn!("{}: its journal is left behind: {e}", record.display());
    }
    // Kept to the end: whoever gets it then finds it gone, and the record changed.
    drop(recovered);
    Ok(forced)
}
