//! A link between two network namespaces that is slow, far, lossy, and cut now and then.
//!
//! Each namespace has a TUN interface; this process carries the packets between them. TCP at both ends is
//! the kernel's own, so that its windows, its retransmissions and its timeouts are what they are on a long line.
//!
//! | part | floor |
//! |---|---|
//! | [`Way`] | machine: which packet leaves when, and which never does; time is an argument |
//! | [`words`] | codec: what people type |
//! | [`Link`], [`Namespace`] | drivers |

mod carrier;
mod kernel;
mod namespace;
mod way;
pub mod words;

pub use carrier::{End, Link};
pub use namespace::{Namespace, inside};
pub use way::{Counts, Shape, Tally, Way};
