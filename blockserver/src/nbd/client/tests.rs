//! The client machine against the server machine in memory, and against servers that lie.

use proptest::prelude::*;

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

#[derive(Clone, Debug)]
struct Op {
    command: Command,
    offset: u32,
    len: u32,
    fill: u8,
    /// Which of the waiting requests is answered after it, if any.
    answer: Option<usize>,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let command = prop_oneof![
        Just(Command::Read),
        Just(Command::Write),
        Just(Command::WriteZeroes),
        Just(Command::BlockStatus),
        Just(Command::Flush),
    ];
    let op = (
        command,
        0..SIZE as u32,
        1u32..9000,
        any::<u8>(),
        prop::option::of(0usize..8),
    );
    prop::collection::vec(
        op.prop_map(|(command, offset, len, fill, answer)| Op {
            command,
            offset,
            len,
            fill,
            answer,
        }),
        1..60,
    )
}

fn check(completion: &Completion, model: &[u8]) {
    let start = completion.offset as usize;
    let end = start + completion.len as usize;
    match (&completion.result, completion.command) {
        (Err(refusal), Command::Write | Command::WriteZeroes) => {
            assert_eq!(refusal.errno, Errno::NoSpace);
            assert!(end > SIZE);
        }
        (Err(refusal), _) => {
            assert_eq!(refusal.errno, Errno::Invalid);
            assert!(end > SIZE);
        }
        (Ok(Answer::Data(data)), Command::Read) => assert_eq!(data, &model[start..end]),
        (Ok(Answer::Extents(extents)), Command::BlockStatus) => {
            assert_eq!(extents.len(), 1);
            assert_eq!(extents[0].len, completion.len);
        }
        (Ok(Answer::Done), Command::Write | Command::WriteZeroes | Command::Flush) => {}
        other => panic!("{other:?}"),
    }
}

/// Answer the request at `index` and compare what the client makes of it with the model.
fn answer_one(client: &mut Client, server: &mut Server, index: usize, piece: usize) {
    server.answer(index);
    let model = server.disk.clone();
    shuttle(client, server, piece);
    while let Some(completion) = client.next_completion() {
        check(&completion, &model);
    }
}

fn run_against_server(ops: &[Op], structured: bool, piece: usize) {
    let (mut client, mut server) = attached(structured, piece);
    for op in ops {
        let data = vec![op.fill; op.len as usize];
        let request = match op.command {
            Command::Write => ClientRequest::write(op.offset.into(), &data),
            Command::Flush => ClientRequest::flush(),
            command => ClientRequest::plain(command, op.offset.into(), op.len),
        };
        match client.submit(&request) {
            Ok(_) => {}
            Err(SubmitError::NotOffered(Command::BlockStatus)) => assert!(!structured),
            Err(SubmitError::Full) => assert_eq!(client.in_flight(), 64),
            Err(error) => panic!("{error}"),
        }
        shuttle(&mut client, &mut server, piece);
        let model = server.disk.clone();
        while let Some(completion) = client.next_completion() {
            check(&completion, &model);
        }
        if let Some(index) = op.answer
            && index < server.waiting.len()
        {
            answer_one(&mut client, &mut server, index, piece);
        }
    }
    while !server.waiting.is_empty() {
        answer_one(&mut client, &mut server, 0, piece);
    }
    assert_eq!(client.in_flight(), 0);
}

proptest! {
    #[test]
    fn client_and_server_agree_whatever_the_order_and_the_cuts(
        ops in ops(),
        structured: bool,
        piece in prop_oneof![1usize..64, Just(usize::MAX)],
    ) {
        run_against_server(&ops, structured, piece);
    }

    #[test]
    fn arbitrary_bytes_of_a_server_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        stage in 0usize..3,
    ) {
        let mut client = match stage {
            0 => Client::new("disk", Wanted::default(), 4),
            1 => attached(false, 999).0,
            _ => attached(true, 999).0,
        };
        if stage > 0 {
            client.submit(&ClientRequest::read(0, 4096)).expect("room");
        }
        let _ = client.receive(&bytes);
    }

    #[test]
    fn a_flipped_byte_never_gives_more_answers_than_questions(
        at in 0usize..10_000,
        flip in 1u8..,
        structured: bool,
    ) {
        let (mut client, mut server) = attached(structured, 4096);
        server.disk[100..2000].fill(9);
        for offset in [0, 4096, 100] {
            client.submit(&ClientRequest::read(offset, 2000)).expect("room");
        }
        client.submit(&ClientRequest::flush()).expect("room");
        server.receive(&std::mem::take(client.output()));
        while !server.waiting.is_empty() {
            server.answer(0);
        }
        let mut bytes = std::mem::take(server.machine.output());
        let at = at % bytes.len();
        bytes[at] ^= flip;
        let fine = client.receive(&bytes).is_ok();
        let mut answers = 0;
        while client.next_completion().is_some() {
            answers += 1;
        }
        prop_assert!(answers <= 4);
        prop_assert!(!fine || answers + client.in_flight() == 4);
    }
}

/// Everything that a client of a made-up server says and is told.
struct Scripted {
    client: Client,
    said: Vec<u8>,
}

impl Scripted {
    fn new(flags: u16) -> Self {
        let mut client = Client::new("disk", Wanted::default(), 4);
        let mut greeting = b"NBDMAGICIHAVEOPT".to_vec();
        greeting.extend_from_slice(&flags.to_be_bytes());
        client.receive(&greeting).expect("a greeting");
        let said = std::mem::take(client.output());
        Self { client, said }
    }

    fn reply(&mut self, option: u32, kind: u32, payload: &[u8]) -> Result<(), ClientFault> {
        let mut bytes = Vec::new();
        wire::put_option_reply(&mut bytes, option, kind, &[payload]);
        let result = self.client.receive(&bytes);
        self.said = std::mem::take(self.client.output());
        result
    }

    fn asked(&self) -> u32 {
        let at = self.said.len().min(12);
        u32::from_be_bytes(self.said[at - 4..at].try_into().expect("an option"))
    }
}

fn export_info() -> Vec<u8> {
    let mut payload = info::EXPORT.to_be_bytes().to_vec();
    payload.extend_from_slice(&(1u64 << 20).to_be_bytes());
    let flags = transmission::HAS_FLAGS | transmission::SEND_FLUSH;
    payload.extend_from_slice(&flags.to_be_bytes());
    payload
}

#[test]
fn a_server_without_structured_replies_or_go_is_used_all_the_same() {
    let mut server = Scripted::new(3);
    server
        .reply(option::STRUCTURED_REPLY, reply::ERR_UNSUP, b"no")
        .expect("goes on");
    assert_eq!(server.asked(), option::GO);
    server
        .reply(option::GO, reply::ERR_UNSUP, b"")
        .expect("goes on");
    assert_eq!(server.asked(), option::EXPORT_NAME);
    assert!(server.said.ends_with(b"disk"));
    let mut answer = (1u64 << 20).to_be_bytes().to_vec();
    answer.extend_from_slice(&1u16.to_be_bytes());
    server.client.receive(&answer).expect("attached");
    let remote = server.client.remote().expect("attached");
    assert_eq!((remote.size, remote.structured), (1 << 20, false));
    let flush = server.client.submit(&ClientRequest::flush());
    assert_eq!(flush, Err(SubmitError::NotOffered(Command::Flush)));
}

#[test]
fn a_server_of_the_first_newstyle_is_asked_by_name_and_pads() {
    let mut server = Scripted::new(0);
    assert_eq!(&server.said[..4], &[0; 4]);
    let mut answer = vec![0; 134];
    answer[9] = 1;
    server.client.receive(&answer).expect("attached");
    assert!(server.client.remote().is_some());
}

#[test]
fn a_refused_export_says_why() {
    let mut server = Scripted::new(3);
    server
        .reply(option::STRUCTURED_REPLY, reply::ACK, b"")
        .expect("goes on");
    server
        .reply(option::SET_META_CONTEXT, reply::ERR_UNKNOWN, b"")
        .expect("goes on");
    let refused = server
        .reply(option::GO, reply::ERR_UNKNOWN, b"no disk")
        .expect_err("refused");
    assert_eq!(
        refused.to_string(),
        "the NBD server refused the export: there is no such export (\"no disk\")"
    );
}

#[test]
fn a_handshake_that_breaks_the_rules_is_an_error_with_its_place() {
    let mut client = Client::new("disk", Wanted::default(), 4);
    let error = client
        .receive(b"HTTP/1.1 400 Bad Request\r\n")
        .expect_err("not NBD");
    assert!(error.to_string().contains("greeting magic is 0x48545450"));

    let mut server = Scripted::new(3);
    let wrong = server
        .reply(option::GO, reply::ACK, b"")
        .expect_err("not asked");
    assert!(wrong.to_string().contains("at byte 18"), "{wrong}");

    let mut server = Scripted::new(3);
    let refused = server.reply(option::STRUCTURED_REPLY, reply::ERR_UNSUP, b"");
    refused.expect("goes on");
    let early = server
        .reply(option::GO, reply::ACK, b"")
        .expect_err("no size");
    assert!(early.to_string().contains("export info"));

    let mut server = Scripted::new(3);
    let refused = server.reply(option::STRUCTURED_REPLY, reply::ERR_UNSUP, b"");
    refused.expect("goes on");
    server
        .reply(option::GO, reply::INFO, &export_info())
        .expect("a fact");
    let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [3u32, 4096, 1 << 25] {
        sizes.extend_from_slice(&size.to_be_bytes());
    }
    let odd = server
        .reply(option::GO, reply::INFO, &sizes)
        .expect_err("no power of two");
    assert!(odd.to_string().contains("block size info"));
}

/// A client with one request outstanding, and the beginning of a chunk that answers it.
fn with_request(request: &ClientRequest<'_>) -> (Client, u64) {
    let (mut client, _) = attached(true, 999);
    let cookie = client.submit(request).expect("room");
    (client, cookie)
}

fn chunk_bytes(kind: u16, cookie: u64, done: bool, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    ChunkHeader {
        flags: if done { chunk::DONE } else { 0 },
        kind,
        cookie,
        len: payload.len() as u32,
    }
    .encode(&mut out);
    out.extend_from_slice(payload);
    out
}

fn data_chunk(cookie: u64, offset: u64, data: &[u8], done: bool) -> Vec<u8> {
    let payload = [&offset.to_be_bytes(), data].concat();
    chunk_bytes(chunk::OFFSET_DATA, cookie, done, &payload)
}

#[test]
fn a_read_in_chunks_of_any_order_with_holes_is_put_together() {
    let (mut client, cookie) = with_request(&ClientRequest::read(1000, 30));
    let hole = [&1010u64.to_be_bytes()[..], &10u32.to_be_bytes()].concat();
    for bytes in [
        data_chunk(cookie, 1020, &[3; 10], false),
        data_chunk(cookie, 1000, &[1; 10], false),
        chunk_bytes(chunk::OFFSET_HOLE, cookie, false, &hole),
    ] {
        client.receive(&bytes).expect("legal");
        assert_eq!(client.next_completion(), None);
    }
    let end = chunk_bytes(chunk::NONE, cookie, true, &[]);
    client.receive(&end).expect("legal");
    let completion = client.next_completion().expect("an answer");
    let expected = [[1; 10], [0; 10], [3; 10]].concat();
    assert_eq!(completion.result, Ok(Answer::Data(expected)));
    assert_eq!(completion.cookie, cookie);
}

#[test]
fn a_read_that_lies_about_its_bytes_is_an_error() {
    let none = |cookie| chunk_bytes(chunk::NONE, cookie, true, &[]);
    let empty_hole = [&1000u64.to_be_bytes()[..], &0u32.to_be_bytes()].concat();
    for (name, lie) in [
        ("outside", vec![(1025, 10)]),
        ("before", vec![(999, 10)]),
        ("far", vec![(u64::MAX, 10)]),
        ("twice", vec![(1000, 10), (1005, 10)]),
        ("missing", vec![(1000, 10)]),
    ] {
        let (mut client, cookie) = with_request(&ClientRequest::read(1000, 30));
        let mut bytes = Vec::new();
        for (offset, len) in lie {
            bytes.extend(data_chunk(cookie, offset, &vec![1; len], false));
        }
        bytes.extend(none(cookie));
        assert!(client.receive(&bytes).is_err(), "{name}");
    }
    let (mut client, cookie) = with_request(&ClientRequest::read(1000, 30));
    let bytes = chunk_bytes(chunk::OFFSET_HOLE, cookie, false, &empty_hole);
    assert!(client.receive(&bytes).is_err());
}

#[test]
fn chunks_that_do_not_fit_their_request_are_errors() {
    let status = ClientRequest::plain(Command::BlockStatus, 0, 4096);
    let extents = |context: u32, lens: &[u32]| {
        let mut payload = context.to_be_bytes().to_vec();
        for len in lens {
            payload.extend_from_slice(&len.to_be_bytes());
            payload.extend_from_slice(&0u32.to_be_bytes());
        }
        payload
    };
    for (request, kind, payload) in [
        (status, chunk::BLOCK_STATUS, extents(9, &[4096])),
        (status, chunk::BLOCK_STATUS, extents(1, &[])),
        (status, chunk::BLOCK_STATUS, extents(1, &[0])),
        (status, chunk::BLOCK_STATUS, extents(1, &[4096, 1])),
        (status, chunk::BLOCK_STATUS, vec![0; 13]),
        (status, chunk::OFFSET_DATA, vec![0; 20]),
        (status, chunk::NONE, vec![]),
        (
            ClientRequest::flush(),
            chunk::BLOCK_STATUS,
            extents(1, &[1]),
        ),
        (ClientRequest::flush(), 77, vec![]),
        (ClientRequest::flush(), chunk::ERROR, vec![0; 5]),
        (ClientRequest::flush(), chunk::ERROR, vec![0, 0, 0, 5, 0, 9]),
        (ClientRequest::flush(), chunk::ERROR, vec![0; 6000]),
    ] {
        let (mut client, cookie) = with_request(&request);
        let bytes = chunk_bytes(kind, cookie, true, &payload);
        assert!(client.receive(&bytes).is_err(), "{kind} {payload:?}");
    }
}

#[test]
fn replies_to_nothing_and_in_the_wrong_style_are_errors() {
    let (mut client, cookie) = with_request(&ClientRequest::read(0, 10));
    for bad in [cookie + 1, cookie ^ (1 << 32), u64::MAX] {
        let bytes = chunk_bytes(chunk::NONE, bad, true, &[]);
        let error = client.receive(&bytes).expect_err("no such request");
        assert!(error.to_string().contains("reply cookie"));
    }
    let mut simple = Vec::new();
    wire::put_simple_reply(&mut simple, cookie, 0);
    assert!(client.receive(&simple).is_err());

    let (mut client, _) = attached(false, 999);
    let cookie = client.submit(&ClientRequest::read(0, 10)).expect("room");
    assert!(
        client
            .receive(&data_chunk(cookie, 0, &[0; 10], true))
            .is_err()
    );
}

#[test]
fn a_late_reply_to_an_old_request_is_not_taken_for_a_new_ones() {
    let (mut client, mut server) = attached(true, 999);
    let old = client.submit(&ClientRequest::flush()).expect("room");
    server.receive(&std::mem::take(client.output()));
    server.answer(0);
    shuttle(&mut client, &mut server, 999);
    client.next_completion().expect("an answer");
    let new = client.submit(&ClientRequest::flush()).expect("room");
    assert_ne!(old, new);
    let mut late = Vec::new();
    wire::put_simple_reply(&mut late, old, 0);
    assert!(client.receive(&late).is_err());
}

#[test]
fn an_error_chunk_carries_the_servers_words() {
    let (mut client, cookie) = with_request(&ClientRequest::read(0, 4096));
    let mut payload = 5u32.to_be_bytes().to_vec();
    payload.extend_from_slice(&4u16.to_be_bytes());
    payload.extend_from_slice(b"disk");
    payload.extend_from_slice(&512u64.to_be_bytes());
    let mut bytes = data_chunk(cookie, 0, &[0; 512], false);
    bytes.extend(chunk_bytes(chunk::ERROR_OFFSET, cookie, true, &payload));
    client.receive(&bytes).expect("legal");
    let refusal = client.next_completion().expect("an answer").result;
    let refusal = refusal.expect_err("failed");
    assert_eq!(
        (refusal.errno, refusal.message.as_str()),
        (Errno::Io, "disk")
    );
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
