//! Client and server machine against each other, in any order and cut anywhere.

use proptest::prelude::*;

use super::*;

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
