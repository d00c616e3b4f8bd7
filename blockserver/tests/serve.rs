//! The server on its workers: what clients, guests, taps and the owner of an export are promised.
//!
//! Every promise is held to on `io_uring` and on blocking threads, also with real programs. One that
//! is not installed fails its test with the name of the Debian package, unless
//! `DISKFERRY_NO_INTEROP=1`.

#[path = "serve/addresses.rs"]
mod addresses;
#[path = "serve/clients.rs"]
mod clients;
#[path = "serve/control.rs"]
mod control;
#[path = "serve/elsewhere.rs"]
mod elsewhere;
#[path = "serve/forwarding.rs"]
mod forwarding;
#[path = "serve/guest.rs"]
mod guest;
#[path = "serve/interop.rs"]
mod interop;
#[path = "serve/limits.rs"]
mod limits;
#[path = "serve/our_clients.rs"]
mod our_clients;
#[path = "serve/programs.rs"]
mod programs;
#[path = "serve/queues.rs"]
mod queues;
#[path = "serve/queues_at_work.rs"]
mod queues_at_work;
#[path = "serve/rude.rs"]
mod rude;
#[path = "serve/rude_guests.rs"]
mod rude_guests;
#[path = "serve/site.rs"]
mod site;
#[path = "serve/tapping.rs"]
mod tapping;
