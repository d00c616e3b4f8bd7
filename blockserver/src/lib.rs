//! Serves virtual disks to NBD clients, and to guests by their virtqueues.
//!
//! | floor | modules |
//! |---|---|
//! | codec and machine | [`nbd`]: the protocol, without I/O; [`virtio`]: the same for guests; [`throttle`]: limits |
//! | driver | [`server`]: the server; [`export`]: what it serves, and what may be done to that |
//! | driver | `worker`: one thread of it; `uring`: system calls in batches; `forward`; `socket`; [`seal`] |

pub mod export;
mod forward;
pub mod nbd;
pub mod seal;
pub mod server;
mod socket;
pub mod throttle;
mod uring;
pub mod virtio;
mod worker;
