//! Serves virtual disks to NBD clients.
//!
//! | floor | modules |
//! |---|---|
//! | codec and machine | [`nbd`]: the protocol, without I/O |
//! | driver | [`blocking`]: the server where `io_uring` is forbidden; [`socket`] |

pub mod blocking;
pub mod nbd;
pub mod socket;
