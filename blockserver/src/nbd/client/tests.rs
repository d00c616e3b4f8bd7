//! The client machine against the server machine in memory, and against servers that lie.

mod agreement;
mod handshake;
mod replies;

use super::*;
use crate::nbd::connection::{Connection, Event, ExportInfo, ExportTable, NbdRequest};
use crate::nbd::wire::{
    ChunkHeader, Command, CommandFlags, Errno, allocation, chunk, info, option, reply, transmission,
};

const SIZE: usize = 64 << 10;

struct Table;

impl ExportTable for Table {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        (name == "disk").then(|| ExportInfo {
            id: 0,
            size: SIZE as u64,
            read_only: false,
            min_block: 1,
            preferred_block: 4096,
            max_payload: 1 << 20,
            can_multi_conn: true,
            rotational: false,
            description: String::new(),
        })
    }

    fn names(&self) -> Vec<(String, String)> {
        vec![("disk".into(), String::new())]
    }
}

/// A server machine over bytes in memory.
struct Server {
    machine: Connection,
    disk: Vec<u8>,
    unread: Vec<u8>,
    waiting: Vec<(NbdRequest, Vec<u8>)>,
}

impl Server {
    fn new() -> Self {
        Self {
            machine: Connection::new(),
            disk: vec![0; SIZE],
            unread: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// Take bytes; requests wait until they are answered.
    fn receive(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        loop {
            let taken = self
                .machine
                .receive(&self.unread, &Table)
                .expect("a client");
            self.unread.drain(..taken);
            let mut paid = false;
            while let Some(event) = self.machine.next_event() {
                if let Event::Request(request) = event {
                    self.waiting.push((request, Vec::new()));
                }
            }
            if let Some(len) = self.machine.payload_pending()
                && self.unread.len() >= len as usize
            {
                let payload = self.unread.drain(..len as usize).collect();
                self.waiting.last_mut().expect("a write").1 = payload;
                self.machine.payload_taken();
                paid = true;
            }
            if taken == 0 && !paid {
                return;
            }
        }
    }

    /// Answer the request that waits at `index`; a run of zeros is answered as a hole.
    fn answer(&mut self, index: usize) {
        let (request, payload) = self.waiting.remove(index);
        let style = self.machine.reply_style();
        let out = self.machine.output();
        let range = request.offset as usize..request.offset as usize + request.len as usize;
        match request.command {
            Command::Read => {
                let data = &self.disk[range];
                let zero = data.iter().all(|byte| *byte == 0);
                let hole =
                    zero && style.reply_read_hole(out, request.cookie, request.offset, request.len);
                if !hole {
                    style.reply_read_header(out, request.cookie, request.offset, request.len);
                    out.extend_from_slice(data);
                }
                return;
            }
            Command::BlockStatus => {
                let zero = self.disk[range].iter().all(|byte| *byte == 0);
                let flags = if zero { allocation::ZERO } else { 0 };
                style.reply_block_status(out, request.cookie, &[(request.len, flags)]);
                return;
            }
            Command::Write => self.disk[range].copy_from_slice(&payload),
            Command::WriteZeroes => self.disk[range].fill(0),
            Command::Trim | Command::Flush => {}
        }
        style.reply_done(out, request.cookie);
    }
}

/// Carry bytes both ways, `piece` at a time, until nothing moves.
fn shuttle(client: &mut Client, server: &mut Server, piece: usize) {
    loop {
        let to_client = std::mem::take(server.machine.output());
        for bytes in to_client.chunks(piece) {
            client.receive(bytes).expect("an honest server");
        }
        let to_server = std::mem::take(client.output());
        for bytes in to_server.chunks(piece) {
            server.receive(bytes);
        }
        if to_client.is_empty() && to_server.is_empty() {
            return;
        }
    }
}

fn attached(structured: bool, piece: usize) -> (Client, Server) {
    let wanted = Wanted {
        structured,
        allocation: structured,
    };
    let mut client = Client::new("disk", wanted, 64);
    let mut server = Server::new();
    shuttle(&mut client, &mut server, piece);
    let remote = client.remote().expect("attached");
    assert_eq!(remote.size, SIZE as u64);
    assert_eq!(remote.structured, structured);
    assert_eq!(remote.allocation.is_some(), structured);
    assert_eq!(remote.max_payload, 1 << 20);
    (client, server)
}

#[test]
fn requests_that_cannot_be_are_not_sent() {
    let (mut client, _) = attached(true, 999);
    let flags = CommandFlags {
        fast_zero: true,
        ..CommandFlags::default()
    };
    let mut short = ClientRequest::write(0, b"abc");
    short.len = 4;
    for (request, error) in [
        (short, SubmitError::WrongPayload),
        (
            ClientRequest::read(0, (1 << 20) + 1),
            SubmitError::TooLong { max: 1 << 20 },
        ),
        (
            ClientRequest::plain(Command::WriteZeroes, 0, 1).with(flags),
            SubmitError::NotOffered(Command::WriteZeroes),
        ),
    ] {
        assert_eq!(client.submit(&request), Err(error));
    }
    assert!(client.output().is_empty());
    let mut early = Client::new("disk", Wanted::default(), 1);
    let error = early.submit(&ClientRequest::flush());
    assert_eq!(error, Err(SubmitError::NotAttached));
}

#[test]
fn recycled_buffers_never_show_old_bytes() {
    let (mut client, mut server) = attached(true, 999);
    server.disk[..100].fill(7);
    for (offset, len, expected) in [(0, 100, 7), (200, 50, 0), (0, 80, 7), (300, 100, 0)] {
        client
            .submit(&ClientRequest::read(offset, len))
            .expect("room");
        server.receive(&std::mem::take(client.output()));
        server.answer(0);
        shuttle(&mut client, &mut server, 7);
        let completion = client.next_completion().expect("an answer");
        let Ok(Answer::Data(data)) = completion.result else {
            panic!("data");
        };
        assert_eq!(data, vec![expected; len as usize]);
        let Phase::Attached { in_flight, .. } = &mut client.phase else {
            panic!("attached");
        };
        in_flight.recycle(data);
    }
}
