//! What a disk's port is told while the disk may be granted: its clients may be sent elsewhere until then.

use std::time::Duration;

use super::disk::DiskTask;
use crate::record::State;
use crate::wire::Message;

/// Longer than a source holds requests for an attempt.
const ATTEMPT: Duration = Duration::from_secs(20);

impl DiskTask {
    /// An attempt is put off for which the port is not ready.
    pub(super) fn unless_busy(&self, message: Message) -> Message {
        let Message::Ready { attempt } = message else {
            return message;
        };
        let port = self.port();
        if port.is_none_or(|port| port.may_return(Some(ATTEMPT))) {
            return message;
        }
        Message::NotReady {
            attempt,
            text: "requests that were answered before a connection was lost are being repeated"
                .to_owned(),
        }
    }

    /// A record is about to be written.
    pub(super) fn tell_port(&self, state: &State) {
        let Some(port) = self.port() else {
            return;
        };
        match state {
            State::Prepared { .. } => {
                // It was asked before the attempt began.
                let _ = port.may_return(None);
            }
            State::Receiving { .. } | State::Following { .. } => port.stays_away(),
            _ => {}
        }
    }
}
