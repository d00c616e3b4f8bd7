//! Servers that know little, refuse, or break the rules before there is a disk.

use super::*;

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

/// A client that asks everything at once, which has said so.
fn hasty() -> Scripted {
    let phase = Phase::Attaching(Attach::at_once("disk"));
    let mut client = Client::new("disk", Wanted::default(), 64);
    client.phase = phase;
    let Phase::Attaching(attach) = &mut client.phase else {
        panic!("attaching");
    };
    let said = std::mem::take(attach.output());
    Scripted { client, said }
}

#[test]
fn everything_asked_at_once_is_answered_as_if_it_was_asked_step_by_step() {
    for piece in [1, 7, 4096] {
        let mut hasty = hasty();
        let mut server = Server::new();
        let greeting = std::mem::take(server.machine.output());
        server.receive(&hasty.said);
        let answers = [greeting, std::mem::take(server.machine.output())].concat();
        for bytes in answers.chunks(piece) {
            hasty.client.receive(bytes).expect("an honest server");
        }
        assert!(hasty.client.output().is_empty(), "nothing is asked twice");
        let (client, _) = attached(true, 999);
        assert_eq!(hasty.client.remote(), client.remote());
    }
}

#[test]
fn a_server_that_refuses_some_of_what_is_asked_at_once_is_used_all_the_same() {
    let mut server = hasty();
    let greeting = [b"NBDMAGICIHAVEOPT".as_slice(), &[0, 3]].concat();
    server.client.receive(&greeting).expect("a greeting");
    for (option, kind, payload) in [
        (option::STRUCTURED_REPLY, reply::ERR_UNSUP, vec![]),
        (option::SET_META_CONTEXT, reply::ERR_INVALID, vec![]),
        (option::GO, reply::INFO, export_info()),
        (option::GO, reply::ACK, vec![]),
    ] {
        server.reply(option, kind, &payload).expect("goes on");
        assert!(server.said.is_empty());
    }
    let remote = server.client.remote().expect("attached");
    assert_eq!((remote.structured, remote.allocation), (false, None));

    let mut old = hasty();
    let greeting = [b"NBDMAGICIHAVEOPT".as_slice(), &[0, 1]].concat();
    let wrong = old.client.receive(&greeting).expect_err("no such flags");
    assert!(wrong.to_string().contains("handshake flags"), "{wrong}");
}
