//! The rules of the server machine, one test each.

use proptest::prelude::*;

use super::super::wire::{
    BASE_ALLOCATION, Fields, OptionReplyHeader, chunk, command_flag, option, reply, transmission,
};
use super::*;

struct Table(ExportInfo);

impl ExportTable for Table {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        (name.is_empty() || name == "disk").then(|| self.0.clone())
    }

    fn names(&self) -> Vec<(String, String)> {
        vec![
            (String::new(), "the default".into()),
            ("disk".into(), "the same".into()),
        ]
    }
}

fn table() -> Table {
    Table(ExportInfo {
        id: 7,
        size: 1 << 30,
        read_only: false,
        min_block: 1,
        preferred_block: 4096,
        max_payload: DEFAULT_MAX_PAYLOAD,
        can_multi_conn: true,
        rotational: false,
        description: "a disk".into(),
    })
}

fn read_only_table() -> Table {
    let mut table = table();
    table.0.read_only = true;
    table
}

fn option_bytes(number: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    wire::put_option(&mut out, number, data);
    out
}

fn name_field(name: &str) -> Vec<u8> {
    let mut out = (name.len() as u32).to_be_bytes().to_vec();
    out.extend_from_slice(name.as_bytes());
    out
}

fn info_data(name: &str, facts: &[u16]) -> Vec<u8> {
    let mut data = name_field(name);
    data.extend_from_slice(&(facts.len() as u16).to_be_bytes());
    for fact in facts {
        data.extend_from_slice(&fact.to_be_bytes());
    }
    data
}

fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = name_field(name);
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&name_field(query));
    }
    data
}

/// A client in the handshake, its greeting dealt with.
fn greeted(table: &Table) -> Connection {
    let mut connection = Connection::new();
    assert_eq!(connection.output().len(), wire::GREETING_LEN);
    connection.output().clear();
    assert_eq!(connection.receive(&3u32.to_be_bytes(), table), Ok(4));
    connection
}

/// The replies in the output: option, kind, payload.
fn replies(connection: &mut Connection) -> Vec<(u32, u32, Vec<u8>)> {
    let output = std::mem::take(connection.output());
    let mut rest = output.as_slice();
    let mut found = Vec::new();
    while let Some(head) = rest.first_chunk::<20>() {
        let head = OptionReplyHeader::decode(head).expect("an option reply");
        let end = 20 + head.len as usize;
        found.push((head.option, head.kind, rest[20..end].to_vec()));
        rest = &rest[end..];
    }
    assert!(rest.is_empty(), "left over: {rest:?}");
    found
}

fn send(connection: &mut Connection, table: &Table, number: u32, data: &[u8]) -> Vec<u32> {
    let bytes = option_bytes(number, data);
    assert_eq!(connection.receive(&bytes, table), Ok(bytes.len()));
    replies(connection)
        .into_iter()
        .map(|(answered, kind, _)| {
            assert_eq!(answered, number);
            kind
        })
        .collect()
}

fn attached(table: &Table, structured: bool) -> Connection {
    let mut connection = greeted(table);
    if structured {
        let ack = send(&mut connection, table, option::STRUCTURED_REPLY, &[]);
        assert_eq!(ack, [reply::ACK]);
        let data = context_data("disk", &[BASE_ALLOCATION]);
        let chosen = send(&mut connection, table, option::SET_META_CONTEXT, &data);
        assert_eq!(chosen, [reply::META_CONTEXT, reply::ACK]);
    }
    send(&mut connection, table, option::GO, &info_data("disk", &[]));
    assert_eq!(connection.next_event(), Some(Event::Attached { export: 7 }));
    assert_eq!(connection.state(), State::Transmission);
    connection
}

fn request(command: u16, flags: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut out = Vec::new();
    RequestHeader {
        flags,
        command,
        cookie: 0x1122,
        offset,
        len,
    }
    .encode(&mut out);
    out
}

/// The errno of the one reply in the output, which must be a failure.
fn refused(table: &Table, structured: bool, bytes: &[u8]) -> u32 {
    let mut connection = attached(table, structured);
    assert_eq!(connection.receive(bytes, table), Ok(bytes.len()));
    assert_eq!(connection.next_event(), None);
    let output = std::mem::take(connection.output());
    let mut fields = Fields::new(&output);
    if structured {
        assert_eq!(fields.u32(), Some(wire::CHUNK_MAGIC));
        assert_eq!(fields.u16(), Some(chunk::DONE));
        assert_eq!(fields.u16(), Some(chunk::ERROR));
        assert_eq!(fields.u64(), Some(0x1122));
        assert_eq!(fields.u32(), Some(6));
        fields.u32().expect("an errno")
    } else {
        assert_eq!(fields.u32(), Some(wire::SIMPLE_REPLY_MAGIC));
        fields.u32().expect("an errno")
    }
}

#[test]
fn the_greeting_offers_fixed_newstyle_without_padding() {
    let mut connection = Connection::new();
    assert_eq!(
        connection.output().as_slice(),
        b"NBDMAGICIHAVEOPT\x00\x03".as_slice()
    );
}

#[test]
fn an_unknown_client_flag_ends_the_connection() {
    let mut connection = Connection::new();
    let error = connection
        .receive(&8u32.to_be_bytes(), &table())
        .expect_err("must drop");
    assert_eq!((error.field(), error.offset()), ("client flags", 0));
    assert_eq!(error.value(), "0x8");
    assert_eq!(connection.state(), State::Closing);
}

#[test]
fn a_client_without_fixed_newstyle_has_only_export_name() {
    let table = table();
    let mut connection = Connection::new();
    connection.receive(&[0; 4], &table).expect("flags");
    let error = connection.receive(&option_bytes(option::LIST, &[]), &table);
    assert_eq!(error.expect_err("must drop").field(), "option");

    let mut connection = Connection::new();
    connection.receive(&[0; 4], &table).expect("flags");
    connection.output().clear();
    connection
        .receive(&option_bytes(option::EXPORT_NAME, b"disk"), &table)
        .expect("attached");
    assert_eq!(connection.output().len(), 10 + 124);
    assert_eq!(connection.next_event(), Some(Event::Attached { export: 7 }));
}

#[test]
fn export_name_gives_size_and_flags_and_cannot_report_an_unknown_name() {
    let table = table();
    let mut connection = greeted(&table);
    connection
        .receive(&option_bytes(option::EXPORT_NAME, b"disk"), &table)
        .expect("attached");
    let output = std::mem::take(connection.output());
    let mut fields = Fields::new(&output);
    assert_eq!(fields.u64(), Some(1 << 30));
    let flags = fields.u16().expect("flags");
    assert_eq!(flags & transmission::HAS_FLAGS, transmission::HAS_FLAGS);
    assert_eq!(flags & transmission::SEND_DF, 0);
    assert!(fields.is_empty());

    let mut connection = greeted(&table);
    let error = connection
        .receive(&option_bytes(option::EXPORT_NAME, b"nothing"), &table)
        .expect_err("no such export");
    assert_eq!(error.value(), "\"nothing\"");
    assert_eq!(error.offset(), 20);
}

#[test]
fn list_names_every_export_and_takes_no_data() {
    let table = table();
    let mut connection = greeted(&table);
    let kinds = send(&mut connection, &table, option::LIST, &[]);
    assert_eq!(kinds, [reply::SERVER, reply::SERVER, reply::ACK]);
    let kinds = send(&mut connection, &table, option::LIST, b"x");
    assert_eq!(kinds, [reply::ERR_INVALID]);
}

#[test]
fn abort_is_acknowledged_and_ends() {
    let table = table();
    let mut connection = greeted(&table);
    assert_eq!(
        send(&mut connection, &table, option::ABORT, b"bye"),
        [reply::ACK]
    );
    assert_eq!(connection.next_event(), Some(Event::Disconnect));
    assert_eq!(connection.state(), State::Closing);
    assert_eq!(connection.receive(b"more", &table), Ok(0));
}

#[test]
fn unknown_and_overlong_options_are_skipped_and_the_stream_stays_in_step() {
    let table = table();
    let mut connection = greeted(&table);
    for (number, len, answer) in [
        (4, 0, reply::ERR_UNSUP),
        (11, 0, reply::ERR_UNSUP),
        (0xdead_beef, 100_000, reply::ERR_UNSUP),
        (option::GO, 100_000, reply::ERR_TOO_BIG),
        (option::STARTTLS, 0, reply::ERR_UNSUP),
        (option::STARTTLS, 1, reply::ERR_INVALID),
        (option::STRUCTURED_REPLY, 1, reply::ERR_INVALID),
    ] {
        let kinds = send(&mut connection, &table, number, &vec![0xaa; len]);
        assert_eq!(kinds, [answer], "option {number}");
    }
    let kinds = send(&mut connection, &table, option::LIST, &[]);
    assert_eq!(kinds.last(), Some(&reply::ACK));
}

#[test]
fn an_option_length_beyond_all_reason_ends_the_connection() {
    let table = table();
    for number in [option::EXPORT_NAME, option::GO, 99] {
        let mut connection = greeted(&table);
        let mut bytes = option_bytes(number, &[]);
        bytes[12..].copy_from_slice(&u32::MAX.to_be_bytes());
        let error = connection.receive(&bytes, &table).expect_err("too long");
        assert_eq!((error.field(), error.offset()), ("option length", 16));
    }
}

#[test]
fn a_wrong_option_magic_is_named_with_its_place() {
    let table = table();
    let mut connection = greeted(&table);
    let error = connection
        .receive(&[0x55; 16], &table)
        .expect_err("not IHAVEOPT");
    assert_eq!(
        error.to_string(),
        "NBD peer broke the protocol: option magic is 0x5555555555555555 at byte 4 of its stream \
         (an option opens with IHAVEOPT)"
    );
}

#[test]
fn info_answers_and_go_answers_the_same_and_attaches() {
    let table = table();
    let mut connection = greeted(&table);
    let data = info_data("disk", &[1, 2, 3, 77]);
    let mut answers = Vec::new();
    for number in [option::INFO, option::GO] {
        let bytes = option_bytes(number, &data);
        assert_eq!(connection.receive(&bytes, &table), Ok(bytes.len()));
        let found: Vec<_> = replies(&mut connection)
            .into_iter()
            .map(|(_, kind, payload)| (kind, payload))
            .collect();
        answers.push(found);
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].len(), 5);
    assert_eq!(answers[0][0].1.len(), 12);
    assert_eq!(answers[0][1].1.len(), 14);
    assert_eq!(connection.next_event(), Some(Event::Attached { export: 7 }));
}

#[test]
fn info_and_go_refuse_what_is_malformed_or_unknown() {
    let table = table();
    let mut connection = greeted(&table);
    let mut count_too_large = info_data("disk", &[1]);
    let at = count_too_large.len() - 3;
    count_too_large[at] = 9;
    for (data, answer) in [
        (Vec::new(), reply::ERR_INVALID),
        (vec![0xff; 6], reply::ERR_INVALID),
        (count_too_large, reply::ERR_INVALID),
        (info_data("a\0b", &[]), reply::ERR_INVALID),
        (info_data(&"n".repeat(4097), &[]), reply::ERR_INVALID),
        (info_data("nothing", &[]), reply::ERR_UNKNOWN),
    ] {
        for number in [option::INFO, option::GO] {
            assert_eq!(send(&mut connection, &table, number, &data), [answer]);
        }
    }
    assert_eq!(connection.state(), State::Handshake);
}

#[test]
fn contexts_need_structured_replies_and_an_export() {
    let table = table();
    let mut connection = greeted(&table);
    let data = context_data("disk", &[BASE_ALLOCATION]);
    let set = option::SET_META_CONTEXT;
    assert_eq!(
        send(&mut connection, &table, set, &data),
        [reply::ERR_INVALID]
    );
    send(&mut connection, &table, option::STRUCTURED_REPLY, &[]);
    for (queries, name, answer) in [
        (
            vec![BASE_ALLOCATION],
            "disk",
            vec![reply::META_CONTEXT, reply::ACK],
        ),
        (vec!["base:"], "disk", vec![reply::ACK]),
        (vec!["qemu:dirty-bitmap:x"], "disk", vec![reply::ACK]),
        (vec![], "disk", vec![reply::ACK]),
        (vec!["nocolon"], "disk", vec![reply::ERR_INVALID]),
        (vec![BASE_ALLOCATION], "nothing", vec![reply::ERR_UNKNOWN]),
    ] {
        let data = context_data(name, &queries);
        assert_eq!(send(&mut connection, &table, set, &data), answer);
    }
    let list = option::LIST_META_CONTEXT;
    for queries in [vec![], vec!["base:"], vec![BASE_ALLOCATION]] {
        let kinds = send(&mut connection, &table, list, &context_data("", &queries));
        assert_eq!(kinds, [reply::META_CONTEXT, reply::ACK]);
    }
    let kinds = send(&mut connection, &table, list, &context_data("", &["x-a:b"]));
    assert_eq!(kinds, [reply::ACK]);
}

#[test]
fn a_failed_choice_of_contexts_undoes_the_one_before() {
    let table = table();
    let mut connection = greeted(&table);
    send(&mut connection, &table, option::STRUCTURED_REPLY, &[]);
    let set = option::SET_META_CONTEXT;
    let good = context_data("disk", &[BASE_ALLOCATION]);
    send(&mut connection, &table, set, &good);
    send(&mut connection, &table, set, b"bad");
    send(&mut connection, &table, option::GO, &info_data("disk", &[]));
    assert!(!connection.reply_style().has_allocation());
}

#[test]
fn contexts_of_another_name_do_not_count() {
    let table = table();
    let mut connection = greeted(&table);
    send(&mut connection, &table, option::STRUCTURED_REPLY, &[]);
    let data = context_data("disk", &[BASE_ALLOCATION]);
    send(&mut connection, &table, option::SET_META_CONTEXT, &data);
    send(&mut connection, &table, option::GO, &info_data("", &[]));
    assert!(!connection.reply_style().has_allocation());
}

#[test]
fn a_write_stops_intake_until_its_payload_is_taken() {
    let table = table();
    let mut connection = attached(&table, true);
    let mut bytes = request(0, 0, 0, 512);
    bytes.extend(request(1, command_flag::FUA, 4096, 5));
    let heads = bytes.len();
    bytes.extend(b"hello");
    bytes.extend(request(3, 0, 0, 0));
    assert_eq!(connection.receive(&bytes, &table), Ok(heads));
    let Some(Event::Request(read)) = connection.next_event() else {
        panic!("a read");
    };
    assert_eq!((read.command, read.len), (Command::Read, 512));
    let Some(Event::Request(write)) = connection.next_event() else {
        panic!("a write");
    };
    assert!(write.flags.fua);
    assert_eq!((write.offset, write.len, write.cookie), (4096, 5, 0x1122));
    assert_eq!(connection.receive(&bytes[heads..], &table), Ok(0));
    assert_eq!(connection.payload_pending(), Some(5));
    connection.payload_taken();
    assert_eq!(connection.receive(&bytes[heads + 5..], &table), Ok(28));
    let Some(Event::Request(flush)) = connection.next_event() else {
        panic!("a flush");
    };
    assert_eq!(flush.command, Command::Flush);
    assert_eq!(connection.next_event(), None);
}

#[test]
fn bad_requests_get_their_errno_and_never_reach_the_driver() {
    let table = table();
    let end = 1u64 << 30;
    for structured in [false, true] {
        for (bytes, errno) in [
            (request(5, 0, 0, 512), 22),
            (request(8, 0, 0, 512), 22),
            (request(0, 1 << 6, 0, 512), 22),
            (request(0, command_flag::NO_HOLE, 0, 512), 22),
            (request(4, command_flag::DF, 0, 512), 22),
            (request(6, command_flag::FAST_ZERO, 0, 512), 22),
            (request(0, 0, end, 1), 22),
            (request(0, 0, u64::MAX, 512), 22),
            (request(4, 0, end - 1, 2), 22),
            (request(6, 0, end - 1, 2), 28),
            (request(6, 0, u64::MAX, u32::MAX), 28),
            (request(0, 0, 0, DEFAULT_MAX_PAYLOAD + 1), 22),
            (request(7, 0, 0, 0), 22),
            (request(7, 0, end, 1), 22),
        ] {
            assert_eq!(refused(&table, structured, &bytes), errno, "{bytes:x?}");
        }
    }
    assert_eq!(
        refused(&table, false, &request(0, command_flag::DF, 0, 512)),
        22
    );
    assert_eq!(refused(&table, false, &request(7, 0, 0, 512)), 22);
}

#[test]
fn a_refused_write_loses_its_payload_and_nothing_else() {
    let table = table();
    for (offset, len, errno) in [
        (1 << 30, 100, 28),
        (u64::MAX, 100, 28),
        (0, DEFAULT_MAX_PAYLOAD + 1, 22),
    ] {
        let mut bytes = request(1, 0, offset, len);
        bytes.resize(bytes.len() + len as usize, 0x25);
        assert_eq!(refused(&table, true, &bytes), errno);
        bytes.extend(request(3, 0, 0, 0));
        let mut connection = attached(&table, true);
        assert_eq!(connection.receive(&bytes, &table), Ok(bytes.len()));
        assert!(matches!(connection.next_event(), Some(Event::Request(_))));
    }
}

#[test]
fn a_write_beyond_all_limits_ends_the_connection() {
    let table = table();
    let mut connection = attached(&table, true);
    let error = connection
        .receive(&request(1, 0, 0, u32::MAX), &table)
        .expect_err("4 GiB");
    assert_eq!(error.field(), "request length");
}

#[test]
fn a_read_only_export_refuses_changes_with_eperm() {
    let table = read_only_table();
    for command in [4, 6] {
        assert_eq!(refused(&table, true, &request(command, 0, 0, 512)), 1);
    }
    let mut write = request(1, 0, 0, 3);
    write.extend(b"abc");
    assert_eq!(refused(&table, false, &write), 1);
}

#[test]
fn requests_below_the_smallest_unit_are_refused() {
    let mut table = table();
    table.0.min_block = 512;
    assert_eq!(refused(&table, true, &request(0, 0, 1, 512)), 22);
    assert_eq!(refused(&table, true, &request(0, 0, 512, 100)), 22);
}

#[test]
fn empty_requests_are_done_at_once() {
    let table = table();
    let mut connection = attached(&table, true);
    for command in [0, 1, 4, 6] {
        let bytes = request(command, 0, 512, 0);
        assert_eq!(connection.receive(&bytes, &table), Ok(28));
        assert_eq!(connection.next_event(), None);
        let len = if command == 0 { 20 } else { 16 };
        assert_eq!(connection.output().len(), len);
        connection.output().clear();
    }
}

#[test]
fn long_trims_and_zeroes_are_not_bound_by_the_payload_limit() {
    let mut table = table();
    table.0.size = 1 << 40;
    let mut connection = attached(&table, true);
    for command in [4, 6, 7] {
        connection
            .receive(&request(command, 0, 0, u32::MAX), &table)
            .expect("legal");
        let Some(Event::Request(request)) = connection.next_event() else {
            panic!("passed on");
        };
        assert_eq!(request.len, u32::MAX);
    }
}

#[test]
fn disconnect_ends_intake() {
    let table = table();
    let mut connection = attached(&table, true);
    let mut bytes = request(2, 0, 0, 0);
    bytes.extend(request(3, 0, 0, 0));
    assert_eq!(connection.receive(&bytes, &table), Ok(28));
    assert_eq!(connection.next_event(), Some(Event::Disconnect));
    assert_eq!(connection.state(), State::Closing);
}

#[test]
fn queues_are_bounded() {
    let table = table();
    let mut connection = attached(&table, true);
    let many = request(3, 0, 0, 0).repeat(MAX_QUEUED_EVENTS + 100);
    let taken = connection.receive(&many, &table).expect("flushes");
    assert_eq!(taken, MAX_QUEUED_EVENTS * REQUEST_LEN);
    connection.next_event();
    assert_eq!(connection.receive(&many[taken..], &table), Ok(28));

    let mut connection = greeted(&table);
    let many = option_bytes(option::LIST, &[]).repeat(100_000);
    let taken = connection.receive(&many, &table).expect("lists");
    assert!(taken < many.len());
    assert!(connection.output().len() < MAX_QUEUED_REPLIES + 1024);
}

/// Drive a connection over `stream` cut at `cuts`, taking payloads as a driver does.
fn run(stream: &[u8], cuts: &[usize]) -> (Vec<Event>, Vec<u8>, Option<ProtocolError>) {
    let table = table();
    let mut connection = Connection::new();
    let mut events = Vec::new();
    let mut output = Vec::new();
    let mut payload_left = 0;
    let mut pieces = cuts.iter().copied().cycle();
    let mut rest = stream;
    let mut stalled = Vec::new();
    while !rest.is_empty() {
        let piece = pieces.next().unwrap_or(1).clamp(1, rest.len());
        stalled.extend_from_slice(&rest[..piece]);
        rest = &rest[piece..];
        loop {
            let dropped = stalled.len().min(payload_left);
            stalled.drain(..dropped);
            payload_left -= dropped;
            if payload_left == 0 {
                connection.payload_taken();
            }
            let result = connection.receive(&stalled, &table);
            let taken = result.as_ref().copied().unwrap_or_default();
            stalled.drain(..taken);
            assert!(connection.held.capacity() <= 2 * handshake::MAX_OPTION_LEN as usize);
            assert!(connection.events.len() <= MAX_QUEUED_EVENTS);
            output.append(connection.output());
            while let Some(event) = connection.next_event() {
                events.push(event);
            }
            if let Err(error) = result {
                return (events, output, Some(error));
            }
            if let Some(len) = connection.payload_pending()
                && payload_left == 0
            {
                payload_left = len as usize;
            }
            if taken == 0 && dropped == 0 {
                break;
            }
        }
        if connection.state() == State::Closing {
            break;
        }
    }
    (events, output, None)
}

/// Streams that get far: mostly well-formed options and requests, some noise.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let options = prop::collection::vec(
        prop_oneof![
            4 => (0u32..12, prop::collection::vec(any::<u8>(), 0..40))
                .prop_filter("may end it", |(number, _)| ![1, 2].contains(number))
                .prop_map(|(number, data)| option_bytes(number, &data)),
            1 => Just(option_bytes(option::STRUCTURED_REPLY, &[])),
            1 => Just(option_bytes(9, &context_data("disk", &[BASE_ALLOCATION]))),
            1 => Just(option_bytes(10, &context_data("disk", &[BASE_ALLOCATION]))),
        ],
        0..6,
    );
    let requests = prop::collection::vec(
        prop_oneof![
            4 => (0u16..10, 0u16..9, 0u64..(1 << 31), 0u32..200).prop_map(
                |(command, flags, offset, len)| {
                    let mut bytes = request(command, flags, offset, len);
                    if command == 1 {
                        bytes.resize(28 + len as usize, 0x5a);
                    }
                    bytes
                }
            ),
            1 => (any::<u16>(), any::<u16>(), any::<u64>(), any::<u32>())
                .prop_map(|(command, flags, offset, len)| request(command, flags, offset, len)),
        ],
        0..20,
    );
    let noise = prop::collection::vec(any::<u8>(), 0..64);
    (options, any::<bool>(), requests, noise).prop_map(|(options, go, requests, noise)| {
        let mut stream = 3u32.to_be_bytes().to_vec();
        stream.extend(options.concat());
        if go {
            stream.extend(option_bytes(option::GO, &info_data("disk", &[3])));
            stream.extend(requests.concat());
        }
        stream.extend(noise);
        stream
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_hold_bounded_memory(
        stream in prop::collection::vec(any::<u8>(), 0..4096),
        cuts in prop::collection::vec(1usize..600, 1..8),
    ) {
        run(&stream, &cuts);
    }

    #[test]
    fn the_same_stream_cut_differently_gives_the_same_events(
        stream in streams(),
        cuts in prop::collection::vec(1usize..60, 1..8),
    ) {
        let whole = run(&stream, &[usize::MAX]);
        let pieces = run(&stream, &cuts);
        prop_assert_eq!(&whole, &pieces);
        let bytes = run(&stream, &[1]);
        prop_assert_eq!(&whole, &bytes);
    }
}
