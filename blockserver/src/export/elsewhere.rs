//! A disk whose bytes are an export of an NBD server elsewhere.
//!
//! Driver: it hands requests on and takes answers. The way there ([`Forwarder`]) sends again what a lost connection left
//! unanswered, in order, and what a server that crashed may have lost. Must never ask anything of an export that was handed
//! over, and never call zero what the server does not say is zero.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::forward::{ForwardReply, ForwardRequest, Forwarder, Terms};
use crate::nbd::blocking_client::{ConnectOptions, PipelinedClient};
use crate::nbd::uri::Address;
use crate::worker::Action;

/// The longest range that is asked about at once: the largest 32-bit multiple of 64 KiB.
const LONGEST: u64 = 0xffff_0000;

/// An export that was looked at and can be a disk.
#[derive(Clone, Debug)]
pub struct Elsewhere {
    address: Address,
    terms: Terms,
}

impl Elsewhere {
    /// Look at an export, which nothing is asked of yet; it is to be read only if `read_only` says so or it says so itself.
    ///
    /// # Errors
    /// There is no connection, or it cannot be a disk: it takes requests of more than 4 KiB only, or shorter ones than
    /// clients here may send, or is to be written and has no flush.
    pub fn look(address: &Address, read_only: bool) -> io::Result<Self> {
        let client = PipelinedClient::connect(address, &ConnectOptions::default());
        let client = client.map_err(io::Error::other)?;
        let terms = Terms::of(client.remote(), read_only);
        Ok(Self {
            address: address.clone(),
            terms: terms.map_err(|why| io::Error::new(io::ErrorKind::Unsupported, why))?,
        })
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.terms.size
    }

    /// Whether nothing is written to it.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.terms.read_only
    }
}

/// How a disk reaches its bytes elsewhere.
#[derive(Debug)]
pub(crate) struct There {
    /// None to what was handed over.
    line: Option<(Forwarder, Terms)>,
    /// Whether something was changed that no flush has covered, as far as this process knows.
    changed: Arc<AtomicBool>,
}

impl There {
    /// The way to an export; `rested` says that a process before this one may have sent it what is still under way.
    pub(super) fn begin(found: Elsewhere, rested: bool) -> Self {
        let Elsewhere { address, terms } = found;
        let line = Forwarder::start_as_disk(address, terms, rested);
        Self {
            line: Some((line, terms)),
            changed: Arc::new(AtomicBool::new(rested)),
        }
    }

    /// No way at all.
    pub(super) fn gone() -> Self {
        Self {
            line: None,
            changed: Arc::default(),
        }
    }

    /// Which export it leads to.
    pub(super) fn address(&self) -> Option<&Address> {
        self.line.as_ref().map(|(line, _)| line.address())
    }

    /// The smallest unit of a request, bytes.
    pub(super) fn min_block(&self) -> u32 {
        self.line.as_ref().map_or(1, |(_, terms)| terms.min_block)
    }

    /// Whether a range can be made zero without sending the zeroes.
    pub(crate) fn has_zeroes(&self) -> bool {
        self.line.as_ref().is_some_and(|(_, terms)| terms.zeroes)
    }

    /// Have a request carried out; `done` is called on another thread, or at once.
    pub(crate) fn ask(
        &self,
        mut request: ForwardRequest,
        done: impl FnOnce(io::Result<ForwardReply>) + Send + 'static,
    ) {
        let parks = matches!(request.action, Action::Park { .. });
        if parks && !self.changed.load(Ordering::SeqCst) {
            return done(Ok(ForwardReply::Done));
        }
        let Some((line, _)) = &self.line else {
            let what = "the disk was handed over";
            return done(Err(io::Error::new(io::ErrorKind::PermissionDenied, what)));
        };
        match as_asked(&mut request) {
            Ok(()) => {}
            Err(error) => return done(Err(error)),
        }
        let flushes = request.action == Action::Flush;
        if flushes {
            // What changes from now on it need not cover; what did before it does.
            self.changed.store(false, Ordering::SeqCst);
        }
        let (alters, changed) = (request.action.changes(), Arc::clone(&self.changed));
        line.submit(request, move |result| {
            if alters || (flushes && result.is_err()) {
                changed.store(true, Ordering::SeqCst);
            }
            done(result.map(as_of_disk));
        });
    }
}

/// Make a request one that an NBD server can be asked.
fn as_asked(request: &mut ForwardRequest) -> io::Result<()> {
    match request.action {
        // There is no image that a mark could be left in; all is durable, which is the rest of it.
        Action::Park { .. } => request.action = Action::Flush,
        // A shorter answer is one as well.
        Action::Status => request.len = request.len.min(LONGEST),
        Action::Resize { .. } | Action::Compact { .. } | Action::Checkpoint { .. } => {
            let what = "the disk is an export of another server, which cannot be asked for that";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        _ => {}
    }
    if request.len > u64::from(u32::MAX) {
        let what = format!("{} bytes are too many for one request", request.len);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(())
}

/// What a server calls a hole may read as anything, unless it says that it is zero; a hole of a disk reads as zero.
fn as_of_disk(reply: ForwardReply) -> ForwardReply {
    let ForwardReply::Extents(mut extents) = reply else {
        return reply;
    };
    for extent in &mut extents {
        extent.allocated |= !extent.zero;
    }
    ForwardReply::Extents(extents)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use vdisk::engine::Extent;

    use super::*;

    fn request(action: Action, len: u64) -> ForwardRequest {
        ForwardRequest {
            action,
            offset: 0,
            len,
            data: Bytes::new(),
        }
    }

    #[test]
    fn a_hole_that_may_hold_anything_is_data() {
        let extent = |allocated, zero| Extent {
            len: 4096,
            allocated,
            zero,
        };
        let told = [(false, false), (false, true), (true, false), (true, true)];
        let told = told.map(|(allocated, zero)| extent(allocated, zero));
        let ForwardReply::Extents(taken) = as_of_disk(ForwardReply::Extents(told.to_vec())) else {
            panic!("extents stay extents");
        };
        let expected = [(true, false), (false, true), (true, false), (true, true)];
        assert_eq!(taken, expected.map(|(a, z)| extent(a, z)));
    }

    #[test]
    fn what_does_not_fit_a_request_is_asked_in_part_or_refused() {
        let mut status = request(Action::Status, 4 << 30);
        as_asked(&mut status).expect("a part of it");
        assert_eq!(status.len, LONGEST);
        let zero = Action::Zero {
            unmap: true,
            fua: false,
        };
        assert!(as_asked(&mut request(zero, 4 << 30)).is_err());
        let resize = Action::Resize {
            size: 0,
            discard_data: true,
        };
        let refused = as_asked(&mut request(resize, 0)).expect_err("nobody can do that");
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn of_what_was_handed_over_nothing_is_asked() {
        let gone = There::gone();
        let (say, heard) = std::sync::mpsc::channel();
        for action in [Action::Read, Action::Flush, Action::Park { mark: None }] {
            let say = say.clone();
            gone.ask(request(action, 0), move |result| {
                say.send(result.is_ok()).expect("somebody listens");
            });
        }
        let all: Vec<bool> = heard.try_iter().collect();
        assert_eq!(all, [false, false, true]);
    }
}
