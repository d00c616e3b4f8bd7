//! One client: bytes in, requests, replies out.
//!
//! The protocol is decided by [`Connection`]; this moves its bytes. Payloads of writes go straight
//! into the request's own buffer as far as they were not received along with other input, payloads
//! of reads go out from the buffer they were read into unless they are small. A client that has too
//! much in flight, or does not take its replies, is not read from until that has changed.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::net::{Shutdown, shutdown, sockopt};

use crate::nbd::{Command, Connection, ConnectionState, Event, NbdRequest};
use crate::uring::{Descriptor, Finished, IoBuffer, Op, Outgoing, Reception};

use super::answer::{Answer, Reply, action_of, carried, errno_of, extents_told};
use super::task::{Asked, From};
use super::{Token, Worker};

/// Bytes of input taken from the kernel at once.
const INPUT: usize = 256 << 10;
/// Bytes that the kernel may keep of what was sent on a unix socket.
const SEND_BUFFER: usize = 4 << 20;
/// The longest payload that is copied behind its head rather than sent from where it is.
const COPY_LIMIT: usize = 2048;
/// Bytes of replies not taken by the client at which it is not read from any more.
const UNSENT_LIMIT: usize = 64 << 20;

/// Bytes received and not yet taken by the protocol.
struct Input {
    /// Not here while it is being received into.
    buffer: Option<IoBuffer>,
    start: usize,
    end: usize,
}

/// A write whose payload is coming in.
struct Incoming {
    request: NbdRequest,
    buffer: IoBuffer,
    filled: usize,
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Not yet.
    Open,
    /// Nothing more is taken; what is in flight is answered, then the socket is closed.
    Polite,
    /// The socket is of no use any more.
    Broken,
}

/// What is in flight for a client.
#[derive(Default)]
struct Load {
    requests: usize,
    bytes: usize,
}

/// What the ring is doing for a session.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about one socket"
)]
struct Wire {
    receiving: bool,
    sending: bool,
    /// On the agenda, to be attended to or to be sent.
    noted: bool,
    /// The socket was found empty last time.
    drained: bool,
    /// Bytes handed to the kernel and not sent yet.
    unsent: usize,
}

/// A client.
pub(super) struct Session {
    socket: OwnedFd,
    descriptor: Descriptor,
    serial: u64,
    connection: Connection,
    input: Input,
    incoming: Option<Incoming>,
    /// Replies that wait for the send in flight, if there is one.
    outgoing: Box<Outgoing>,
    /// Kept for the next batch.
    spare: Option<Box<Outgoing>>,
    export: Option<u32>,
    load: Load,
    wire: Wire,
    end: End,
}

impl Session {
    /// The export here that it is attached to.
    pub(super) fn export(&self) -> Option<u32> {
        self.export
    }
}

impl Worker {
    /// Serve a new client.
    pub(super) fn open_session(&mut self, socket: OwnedFd) {
        // TCP: replies are batched here already, so Nagle's wait would only cost. Unix sockets do
        // not know the option.
        if sockopt::set_tcp_nodelay(&socket, true).is_ok() {
            // A client whose host has gone is noticed some time.
            let _ = sockopt::set_socket_keepalive(&socket, true);
        } else {
            let _ = sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER);
        }
        self.life.serial += 1;
        let serial = self.life.serial;
        let session = Session {
            descriptor: Descriptor::of(&socket),
            socket,
            serial,
            connection: Connection::new(),
            input: Input {
                buffer: Some(self.pool.take(INPUT)),
                start: 0,
                end: 0,
            },
            incoming: None,
            outgoing: Box::default(),
            spare: None,
            export: None,
            load: Load::default(),
            wire: Wire::default(),
            end: End::Open,
        };
        let session = self.sessions.insert(session);
        let after = self.crew.limits.handshake;
        self.ring
            .submit(Op::Timer { after }, Token::Handshake { session, serial });
        self.note(session);
        if self.life.draining {
            self.see_off(session);
        }
    }

    /// The time for a handshake is over.
    pub(super) fn handshake_limit(&mut self, session: u32, serial: u64) {
        let late = self.sessions.get(session).is_some_and(|s| {
            s.serial == serial && s.connection.state() == ConnectionState::Handshake
        });
        if late {
            tracing::info!("a client did not end its handshake in time");
            self.break_off(session);
        }
    }

    /// Put a session on the agenda.
    fn note(&mut self, session: u32) {
        if let Some(s) = self.sessions.get_mut(session)
            && !s.wire.noted
        {
            s.wire.noted = true;
            self.agenda.sessions.push(session);
        }
    }

    /// Take nothing more from a client; answer what is in flight, then close.
    pub(super) fn see_off(&mut self, session: u32) {
        if let Some(s) = self.sessions.get_mut(session)
            && s.end == End::Open
        {
            s.end = End::Polite;
            if s.wire.receiving {
                // Ends the receive that is in flight; replies can still be sent.
                let _ = shutdown(&s.socket, Shutdown::Read);
            }
            self.note(session);
        }
    }

    /// Give a client up.
    pub(super) fn break_off(&mut self, session: u32) {
        if let Some(s) = self.sessions.get_mut(session)
            && s.end != End::Broken
        {
            s.end = End::Broken;
            let _ = shutdown(&s.socket, Shutdown::Both);
            let export = s.export();
            self.note(session);
            if let Some(export) = export {
                self.fail_all_of_session(export, session);
            }
        }
    }

    /// A receive ended.
    pub(super) fn received(&mut self, session: u32, one: &mut Finished<Token>) {
        let Some(s) = self.sessions.get_mut(session) else {
            return;
        };
        s.wire.receiving = false;
        s.wire.drained = !one.more_input;
        let buffer = one.buffer();
        let mut broken = false;
        match (one.result(), &mut s.incoming) {
            (Ok(0), _) => {
                s.end = if s.end == End::Broken {
                    End::Broken
                } else {
                    End::Polite
                }
            }
            (Ok(len), Some(incoming)) if s.input.buffer.is_some() => incoming.filled += len,
            (Ok(len), _) => {
                s.input.start = 0;
                s.input.end = len;
            }
            (Err(error), _) if error.kind() == io::ErrorKind::Interrupted => {}
            (Err(_), _) => broken = true,
        }
        if s.input.buffer.is_none() {
            s.input.buffer = buffer;
        }
        if broken {
            self.break_off(session);
        }
        self.note(session);
    }

    /// A send ended.
    pub(super) fn sent(&mut self, session: u32, one: &mut Finished<Token>) {
        let Some(s) = self.sessions.get_mut(session) else {
            return;
        };
        s.wire.sending = false;
        if let Some(mut outgoing) = one.outgoing() {
            let mut broken = s.end == End::Broken;
            match one.result() {
                Ok(len) => outgoing.advance(len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => broken = true,
            }
            s.wire.unsent = outgoing.left();
            if outgoing.is_empty() || broken {
                s.wire.unsent = 0;
                let freed = outgoing.clear(&mut self.pool);
                s.spare = Some(outgoing);
                self.free(session, freed);
                if broken {
                    self.break_off(session);
                }
            } else {
                s.wire.sending = true;
                let socket = s.descriptor;
                self.ring
                    .submit(Op::Send { socket, outgoing }, Token::Send(session));
            }
        }
        self.note(session);
    }

    /// Hand what there is to send to the kernel.
    pub(super) fn send(&mut self, session: u32) {
        let Some(s) = self.sessions.get_mut(session) else {
            return;
        };
        if s.wire.sending || s.outgoing.is_empty() || s.end == End::Broken {
            return;
        }
        s.wire.sending = true;
        s.wire.unsent = s.outgoing.left();
        let next = s.spare.take().unwrap_or_default();
        let outgoing = std::mem::replace(&mut s.outgoing, next);
        let socket = s.descriptor;
        self.ring
            .submit(Op::Send { socket, outgoing }, Token::Send(session));
    }

    /// Do what there is to do for a session: take input, send, receive, close.
    pub(super) fn attend(&mut self, session: u32) {
        if let Some(s) = self.sessions.get_mut(session) {
            s.wire.noted = false;
        }
        self.feed(session);
        let Some(s) = self.sessions.get_mut(session) else {
            return;
        };
        let output = s.connection.output();
        if !output.is_empty() {
            s.outgoing.head(|out| out.append(output));
        }
        if s.end == End::Broken && !s.wire.sending {
            let freed = s.outgoing.clear(&mut self.pool);
            self.free(session, freed);
        }
        let Some(s) = self.sessions.get_mut(session) else {
            return;
        };
        if s.end != End::Open
            && !s.wire.receiving
            && let Some(Incoming {
                request, buffer, ..
            }) = s.incoming.take()
        {
            // The rest of its payload will never come.
            s.load.requests -= 1;
            self.pool.give(buffer);
            self.free(session, request.len as usize);
        }
        let Some(s) = self.sessions.get_mut(session) else {
            return;
        };
        if !s.wire.sending && !s.outgoing.is_empty() {
            self.agenda.sends.push(session);
        }
        let over = s.end != End::Open && s.load.requests == 0 && s.outgoing.is_empty();
        if over && !s.wire.receiving && !s.wire.sending {
            self.close(session);
        } else {
            self.receive(session);
        }
    }

    fn close(&mut self, session: u32) {
        let Some(s) = self.sessions.remove(session) else {
            return;
        };
        self.crew.connections.fetch_sub(1, Ordering::Relaxed);
        let buffers = s
            .input
            .buffer
            .into_iter()
            .chain(s.incoming.map(|incoming| incoming.buffer));
        buffers.for_each(|buffer| self.pool.give(buffer));
        if let Some(export) = s.export
            && let Some(here) = self.exports.get_mut(export)
        {
            here.attached -= 1;
            self.release_export(export);
        }
    }

    /// Whether a client has so much in flight that it is not read from.
    fn is_loaded(&self, session: u32) -> bool {
        let Some(s) = self.sessions.get(session) else {
            return true;
        };
        let limits = &self.crew.limits;
        // Who has nothing in flight may always go on, so that nobody waits for others for ever.
        (self.life.carried >= limits.worker_bytes && s.load.requests > 0)
            || s.load.requests >= limits.requests
            || s.load.bytes >= limits.bytes
            || s.outgoing.left() + s.wire.unsent >= UNSENT_LIMIT
    }

    /// Bytes of a client's requests are not needed any more.
    fn free(&mut self, session: u32, bytes: usize) {
        if let Some(s) = self.sessions.get_mut(session) {
            s.load.bytes -= bytes;
        }
        self.life.carried -= bytes;
    }

    /// Receive more, if more can be taken.
    fn receive(&mut self, session: u32) {
        let Some(s) = self.sessions.get(session) else {
            return;
        };
        if s.end != End::Open || s.wire.receiving || s.input.start < s.input.end {
            return;
        }
        let loaded = s.incoming.is_none() && self.is_loaded(session);
        let Some(s) = self.sessions.get_mut(session) else {
            return;
        };
        let (buffer, range, whole) = match &s.incoming {
            Some(incoming) => {
                let range = incoming.filled..incoming.request.len as usize;
                (incoming.buffer.clone(), range, true)
            }
            None if loaded => return,
            None => match s.input.buffer.take() {
                Some(buffer) => (buffer, 0..INPUT, false),
                None => return,
            },
        };
        let (socket, idle) = (s.descriptor, s.wire.drained);
        s.wire.receiving = true;
        let op = Op::Receive {
            socket,
            buffer,
            range,
            how: Reception { whole, idle },
        };
        self.ring.submit(op, Token::Receive(session));
    }

    /// Let the protocol take the input, and act on what it finds.
    fn feed(&mut self, session: u32) {
        loop {
            if !self.act(session) || !self.take_payload(session) {
                return;
            }
            let exports = Arc::clone(&self.crew);
            let Some(s) = self.sessions.get_mut(session) else {
                return;
            };
            if s.end != End::Open || s.input.start == s.input.end {
                return;
            }
            let Some(bytes) = s.input.buffer.as_mut().and_then(IoBuffer::unique) else {
                return;
            };
            let input = &bytes[s.input.start..s.input.end];
            match s.connection.receive(input, &exports.exports) {
                // Its answers have to be sent before it takes more: the end of that send goes on.
                Ok(0) => return,
                Ok(taken) => s.input.start += taken,
                Err(error) => {
                    tracing::warn!(%error, "a client is sent away");
                    s.end = End::Polite;
                }
            }
            if s.connection.state() == ConnectionState::Closing {
                s.input.start = s.input.end;
            }
        }
    }

    /// Act on what the protocol has found; false when the client has too much in flight to go on.
    fn act(&mut self, session: u32) -> bool {
        loop {
            let Some(s) = self.sessions.get(session) else {
                return false;
            };
            if s.end == End::Broken || s.incoming.is_some() {
                return true;
            }
            if self.is_loaded(session) {
                return false;
            }
            let Some(s) = self.sessions.get_mut(session) else {
                return false;
            };
            match s.connection.next_event() {
                None => return true,
                Some(Event::Disconnect) => s.end = End::Polite,
                Some(Event::Attached { export }) => self.attach(session, export),
                Some(Event::Request(request)) => self.begin_request(session, request),
            }
        }
    }

    fn attach(&mut self, session: u32, export: u64) {
        let Some(export) = self.crew.exports.get(export) else {
            // Removed between the handshake's last question and now.
            return self.break_off(session);
        };
        let index = self.export_here(&export);
        if let (Some(here), Some(s)) = (self.exports.get_mut(index), self.sessions.get_mut(session))
        {
            here.attached += 1;
            s.export = Some(index);
        }
    }

    /// A request has been announced; a write's payload follows.
    fn begin_request(&mut self, session: u32, request: NbdRequest) {
        let Some(s) = self.sessions.get_mut(session) else {
            return;
        };
        let action = action_of(&request);
        s.load.requests += 1;
        let bytes = carried(action, request.len.into());
        s.load.bytes += bytes;
        self.life.carried += bytes;
        if request.command == Command::Write {
            let buffer = self.pool.take(request.len as usize);
            s.incoming = Some(Incoming {
                request,
                buffer,
                filled: 0,
            });
        } else {
            self.request(session, &request, None);
        }
    }

    /// Move what the input holds of a payload to its buffer; false when more has to be received.
    fn take_payload(&mut self, session: u32) -> bool {
        let Some(s) = self.sessions.get_mut(session) else {
            return false;
        };
        let Some(incoming) = &mut s.incoming else {
            return true;
        };
        let missing = incoming.request.len as usize - incoming.filled;
        let here = missing.min(s.input.end - s.input.start);
        if here > 0
            && let Some(input) = &s.input.buffer
        {
            let range = s.input.start..s.input.start + here;
            incoming.buffer.copy_from(incoming.filled, input, range);
            incoming.filled += here;
            s.input.start += here;
        }
        if here < missing {
            return false;
        }
        if let Some(Incoming {
            request, buffer, ..
        }) = s.incoming.take()
        {
            s.connection.payload_taken();
            self.request(session, &request, Some(buffer));
        }
        true
    }

    fn request(&mut self, session: u32, request: &NbdRequest, buffer: Option<IoBuffer>) {
        let Some(export) = self.sessions.get(session).and_then(|s| s.export) else {
            return;
        };
        let (cookie, one) = (request.cookie, request.flags.req_one);
        let from = From::Session {
            session,
            cookie,
            one,
        };
        let asked = Asked {
            from,
            action: action_of(request),
            offset: request.offset,
            len: request.len.into(),
            buffer,
        };
        self.take_on(export, asked);
    }

    /// Answer a request.
    pub(super) fn reply(&mut self, session: u32, reply: &Reply, result: io::Result<Answer>) {
        let Some(s) = self.sessions.get_mut(session) else {
            return;
        };
        s.load.requests -= 1;
        let mut freed = reply.carried;
        let style = s.connection.reply_style();
        let (cookie, offset, len) = (reply.cookie, reply.offset, reply.len);
        let out = &mut s.outgoing;
        match result {
            Err(error) => out.head(|out| style.reply_error(out, cookie, errno_of(&error))),
            // Only this process compacts.
            Ok(Answer::Done | Answer::Compacted(_)) => {
                out.head(|out| style.reply_done(out, cookie));
            }
            Ok(Answer::Extents(extents)) => {
                let told = extents_told(&extents, reply.one);
                out.head(|out| style.reply_block_status(out, cookie, &told));
            }
            Ok(Answer::Hole) => {
                let mut told = false;
                out.head(|out| told = style.reply_read_hole(out, cookie, offset, len as u32));
                if !told {
                    let zeros = self.pool.take(len as usize);
                    zeros.zero(0..len as usize);
                    out.head(|out| style.reply_read_header(out, cookie, offset, len as u32));
                    out.payload(zeros, 0..len as usize);
                    freed = 0;
                }
            }
            Ok(Answer::Data(buffer, _)) => {
                out.head(|out| style.reply_read_header(out, cookie, offset, len as u32));
                if len as usize <= COPY_LIMIT {
                    out.head(|out| buffer.copy_out(0..len as usize, out));
                    self.pool.give(buffer);
                } else {
                    out.payload(buffer, 0..len as usize);
                    freed = 0;
                }
            }
        }
        self.free(session, freed);
        self.note(session);
    }
}
