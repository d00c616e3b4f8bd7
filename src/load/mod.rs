//! A client that writes at a steady rate and remembers every write that was acknowledged.
//!
//! The demo and the tests use it to tell whether a disk that was moved, or whose server was killed,
//! holds what it promised: [`ledger`] keeps what was promised, [`pattern`] makes blocks that say
//! which write they are.

pub(crate) mod ledger;
pub(crate) mod pattern;
pub(crate) mod phases;
