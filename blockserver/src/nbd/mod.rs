//! The NBD protocol: a codec and machines that do no I/O, and one blocking driver.
//!
//! | module | floor | what it is |
//! |---|---|---|
//! | [`wire`] | codec | every number and layout of the protocol document |
//! | [`handshake`] | machine | what to answer to each option |
//! | [`starttls`] | machine | how a connection becomes encrypted, for both sides |
//! | [`connection`] | machine | the server's side of one client |
//! | [`client`] | machine | the client's side |
//! | [`blocking_client`] | driver | the client machine over a blocking socket |
//! | [`uri`] | codec | how people write where a server is |
//!
//! Specified in `doc/proto.md` of the NBD project; `docs/nbd.md` says which part of it is here.
//! The machines must not touch sockets, clocks or threads, and whatever a peer sends must lead to a
//! reply or to a [`ProtocolError`], never to a panic or to unbounded memory.

pub mod blocking_client;
pub mod client;
pub mod connection;
pub mod error;
pub mod handshake;
mod limits;
pub mod reply;
pub mod starttls;
pub mod uri;
pub mod wire;

pub use connection::{
    Connection, Event, ExportInfo, ExportTable, NbdRequest, ReplyStyle, State as ConnectionState,
};
pub use error::ProtocolError;
pub use wire::{Command, CommandFlags, Errno};
