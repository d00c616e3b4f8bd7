//! What is answered to options, and what ends a handshake.

use super::*;

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
