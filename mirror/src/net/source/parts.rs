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
use crate::session::{Progress, Source, SourceConfig};
use crate::switchover::Phase;
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
        let shared = begun(&self.config, self.machine.progress(), self.machine.phase());
        let handle = SourceHandle {
            shared: Arc::clone(&shared),
            orders: orders.clone(),
        };
        on_a_thread(&Arc::clone(&shared), move || async move {
            let (inbox, heard) = mpsc::channel(INBOX);
            let session = Session::new(self, shared, orders, inbox);
            Box::pin(session.run(incoming, heard)).await;
        })?;
        Ok(handle)
    }
}

/// What is known of a session that begins.
pub(super) fn begun(config: &SourceConfig, progress: Progress, phase: Phase) -> Arc<Shared> {
    let arbiter = config.handover.arbiter.as_ref();
    let status = SourceStatus {
        name: config.description.name.clone(),
        to: config.to.clone(),
        session: config.session,
        arbiter: arbiter.map(|arbiter| arbiter.at.clone()),
        not_promised: None,
        awaits: Vec::new(),
        progress,
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
        phase,
        tapped: false,
        stopped: false,
        last: Picture::default(),
    };
    Arc::new(Shared {
        state: Mutex::new(state),
        changed: Condvar::new(),
    })
}

/// Run a session to its end on a thread of its own.
pub(super) fn on_a_thread<F: Future<Output = ()>>(
    shared: &Arc<Shared>,
    session: impl FnOnce() -> F + Send + 'static,
) -> Result<()> {
    let failure = |e| Error::io(ErrorKind::Io, "cannot start the session's thread", e);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failure)?;
    let shared = Arc::clone(shared);
    let run = move || {
        // Said last, when the connections have ended, too.
        let _stopped = SayStopped(shared);
        runtime.block_on(session());
        // A name that is being looked up is not waited for.
        runtime.shutdown_background();
    };
    let thread = std::thread::Builder::new().name("mirror-source".into());
    thread.spawn(run).map_err(failure)?;
    Ok(())
}
