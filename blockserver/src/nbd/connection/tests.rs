//! The rules of the server machine, one test each.

mod options;
mod requests;
mod streams;

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
