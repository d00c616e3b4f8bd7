//! Which requests reach the driver, and what the others are told.

use super::*;

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
