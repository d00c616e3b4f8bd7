//! Streams of any bytes, cut anywhere: nothing panics, and what is held is bounded.

use proptest::prelude::*;

use super::*;

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
