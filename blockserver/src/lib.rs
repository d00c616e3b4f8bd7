//! Serves virtual disks to NBD clients.
//!
//! | floor | modules |
//! |---|---|
//! | codec and machine | [`nbd`]: the protocol, without I/O |

pub mod nbd;
pub mod socket;
