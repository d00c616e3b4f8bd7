//! The client's side of NBD: handshake, requests out, completions in.
//!
//! Machine: bytes of the server in; completions and bytes for the server out. A server is not
//! trusted: whatever it sends leads to a completion or to an error that names the field, and what
//! is held of it is bounded by what was asked for. Specified in `doc/proto.md`.
//!
//! [`Client`] is the whole machine. A driver that sends and receives on two threads uses its parts:
//! [`Attach`] first, then [`InFlight`] for what is outstanding (shared) and [`ReplyReader`] for the
//! incoming bytes.

mod attach;
mod coverage;
mod in_flight;
mod replies;

pub use attach::{Attach, RemoteExport, Wanted};
pub use in_flight::{
    Answer, ClientRequest, Completion, DEFAULT_MAX_IN_FLIGHT, InFlight, Refusal, RemoteExtent,
    SubmitError,
};
pub use replies::ReplyReader;

use std::fmt;

use super::error::ProtocolError;
use super::wire::{self, RequestHeader};

/// Why a connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFault {
    /// The server broke the protocol.
    Protocol(ProtocolError),
    /// The server refused the handshake.
    Refused {
        /// The type of its reply, one of [`wire::reply`].
        kind: u32,
        /// What it said about it; may be empty.
        message: String,
    },
}

impl From<ProtocolError> for ClientFault {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

impl fmt::Display for ClientFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(error) => error.fmt(f),
            Self::Refused { kind, message } => {
                let reason = match *kind {
                    wire::reply::ERR_UNKNOWN => "there is no such export",
                    wire::reply::ERR_POLICY => "its policy forbids it",
                    wire::reply::ERR_SHUTDOWN => "it is shutting down",
                    wire::reply::ERR_TLS_REQD => "it wants TLS: say nbds:",
                    wire::reply::ERR_BLOCK_SIZE_REQD => "it insists on block sizes",
                    _ => "it gave no known reason",
                };
                write!(f, "the NBD server refused the export: {reason}")?;
                if message.is_empty() {
                    Ok(())
                } else {
                    write!(f, " ({})", super::error::Quoted(message))
                }
            }
        }
    }
}

impl std::error::Error for ClientFault {}

/// The client's side of one connection.
#[derive(Debug)]
pub struct Client {
    phase: Phase,
    output: Vec<u8>,
    max_in_flight: usize,
}

#[derive(Debug)]
enum Phase {
    Attaching(Attach),
    Attached {
        remote: RemoteExport,
        in_flight: InFlight,
        replies: ReplyReader,
    },
}

impl Client {
    /// A client of the export `export` that asks for `wanted` and keeps at most `max_in_flight`
    /// requests outstanding.
    #[must_use]
    pub fn new(export: &str, wanted: Wanted, max_in_flight: usize) -> Self {
        Self {
            phase: Phase::Attaching(Attach::new(export, wanted)),
            output: Vec::new(),
            max_in_flight,
        }
    }

    /// Take bytes of the server. All are taken, unless there is an error, after which the
    /// connection is of no use.
    pub fn receive(&mut self, input: &[u8]) -> Result<(), ClientFault> {
        let mut rest = input;
        if let Phase::Attaching(attach) = &mut self.phase {
            let taken = attach.receive(rest)?;
            rest = rest.get(taken..).unwrap_or_default();
            self.output.append(attach.output());
            if let Some(remote) = attach.remote() {
                self.phase = Phase::Attached {
                    remote: remote.clone(),
                    in_flight: InFlight::new(self.max_in_flight),
                    replies: ReplyReader::new(remote, attach.position()),
                };
            }
        }
        if let Phase::Attached {
            in_flight, replies, ..
        } = &mut self.phase
        {
            replies.receive(rest, in_flight)?;
        }
        Ok(())
    }

    /// Bytes to send; the driver takes them out.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// What the server told about the export, once the handshake is over.
    #[must_use]
    pub fn remote(&self) -> Option<&RemoteExport> {
        match &self.phase {
            Phase::Attaching(_) => None,
            Phase::Attached { remote, .. } => Some(remote),
        }
    }

    /// Put a request, with its payload, into the output; answers its cookie.
    pub fn submit(&mut self, request: &ClientRequest<'_>) -> Result<u64, SubmitError> {
        let Phase::Attached {
            remote, in_flight, ..
        } = &mut self.phase
        else {
            return Err(SubmitError::NotAttached);
        };
        let cookie = in_flight.submit(remote, request, &mut self.output)?;
        self.output.extend_from_slice(request.data);
        Ok(cookie)
    }

    /// The next request that was answered.
    pub fn next_completion(&mut self) -> Option<Completion> {
        match &mut self.phase {
            Phase::Attaching(_) => None,
            Phase::Attached { replies, .. } => replies.next_completion(),
        }
    }

    /// How many requests are outstanding.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        match &self.phase {
            Phase::Attaching(_) => 0,
            Phase::Attached { in_flight, .. } => in_flight.len(),
        }
    }

    /// Say goodbye; what is outstanding is still answered.
    pub fn disconnect(&mut self) {
        match &self.phase {
            Phase::Attaching(_) => wire::put_option(&mut self.output, wire::option::ABORT, &[]),
            Phase::Attached { .. } => put_disconnect(&mut self.output),
        }
    }
}

/// The request that ends transmission.
pub fn put_disconnect(out: &mut Vec<u8>) {
    RequestHeader {
        flags: 0,
        command: wire::CMD_DISC,
        cookie: 0,
        offset: 0,
        len: 0,
    }
    .encode(out);
}

#[cfg(test)]
mod tests;
