//! Serves virtual disks to NBD clients.
//!
//! | floor | modules |
//! |---|---|
//! | codec and machine | [`nbd`]: the protocol, without I/O |
//! | driver | [`blocking`]: the server where `io_uring` is forbidden; [`socket`] |
//! | driver | `uring`: system calls in batches |

pub mod blocking;
pub mod nbd;
pub mod socket;
mod uring;
