//! System calls of the data path: batched operations that own what the kernel works on.
//!
//! A [`Ring`] takes [`Op`]s and hands back [`Finished`] ones. What an operation reads or fills (a
//! buffer, pieces of a guest's memory, the pieces of a vectored send, a time) moves into the ring and comes back with the
//! completion, so that no completion can be forgotten and no buffer is freed under the kernel, also
//! when the ring is dropped. All `unsafe` of this crate is here; nothing here knows what a request,
//! an export or a connection is. Two engines stand behind the same interface: `io_uring`, and
//! blocking threads where `io_uring` is forbidden.

mod buffer;
mod call;
mod guest;
mod op;
mod outgoing;
mod ring;
mod slab;
mod threads;

pub(crate) use buffer::{ALIGNMENT, IoBuffer, Pool};
pub(crate) use op::{Allocation, Descriptor, Finished, NO_POSITION, Op, Reception};
pub(crate) use outgoing::Outgoing;
pub(crate) use ring::{Backend, Ring};
pub(crate) use slab::Slab;
