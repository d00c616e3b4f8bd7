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
