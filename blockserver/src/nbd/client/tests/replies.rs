//! Replies that are put together, and replies that lie.

use super::*;

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
