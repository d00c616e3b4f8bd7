//! A session is started: its thread, and what is known of it from outside.
//!
//! Must never start a thread for what cannot be gone on with.

use std::sync::{Arc, Condvar, Mutex};

use tokio::sync::mpsc;

use super::handle::{SayStopped, Shared, SharedState};
use super::{Session, SourceHandle, SourceStatus};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{RecordStore, SessionStore};
use crate::history::Report;
use crate::net::lane::INBOX;
use crate::net::port::ServedDisk;
use crate::picture::Picture;
use crate::session::{Source, SourceConfig};
use crate::tracker::Tracker;

/// What a session is started with.
pub(super) struct Parts {
    pub(super) machine: Source,
    pub(super) config: SourceConfig,
    pub(super) disk: Arc<dyn ServedDisk>,
    pub(super) store: Option<RecordStore>,
    pub(super) kept: Option<SessionStore>,
    pub(super) tracker: Arc<Tracker>,
}

impl Parts {
    pub(super) fn start(self) -> Result<SourceHandle> {
        let (orders, incoming) = mpsc::unbounded_channel();
        let status = SourceStatus {
            name: self.config.description.name.clone(),
            to: self.config.to.clone(),
            session: self.config.session,
            arbiter: self
                .config
                .handover
                .arbiter
                .as_ref()
                .map(|arbiter| arbiter.at.clone()),
            progress: self.machine.progress(),
            sent: 0,
            elapsed: 0,
            dirty_rate: 0,
            behind: None,
            report: Report::default(),
            ended: false,
            error: None,
        };
        let state = SharedState {
            status,
            failed: None,
            phase: self.machine.phase(),
            tapped: false,
            stopped: false,
            last: Picture::default(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let handle = SourceHandle {
            shared: Arc::clone(&shared),
            orders: orders.clone(),
        };
        let failure = |e| Error::io(ErrorKind::Io, "cannot start the session's thread", e);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failure)?;
        let run = move || {
            // Said last, when the connections have ended, too.
            let _stopped = SayStopped(Arc::clone(&shared));
            runtime.block_on(async move {
                let (inbox, heard) = mpsc::channel(INBOX);
                let session = Session::new(self, shared, orders, inbox);
                Box::pin(session.run(incoming, heard)).await;
            });
            // A name that is being looked up is not waited for.
            runtime.shutdown_background();
        };
        std::thread::Builder::new()
            .name("mirror-source".into())
            .spawn(run)
            .map_err(failure)?;
        Ok(handle)
    }
}
