//! A site: the place where the block server, the disks and the migration sessions of one process meet.
//!
//! | module | what |
//! |---|---|
//! | [`beside`] | both ends of a move to another path of this host |
//! | [`bound`] | whose a disk is that was about to move with a machine |
//! | [`disk`] | opens a disk for a server and finds out who may serve it |
//! | [`elsewhere`] | an export of a server that is not ours, as a disk of this one |
//! | [`foreign`] | an export of a server that is not ours, as a target |
//! | `offered` | whose a disk is that was offered to another host |
//! | [`port`] | an export as a migration session reaches it |
//! | [`source`] | the disks of `serve`, their migrations, what the control socket can ask |
//! | `way_back` | what is kept of the way back of a disk that has moved |
//! | `together` | groups of disks that come back one by one, or go home |
//! | `templates` | images of which disks that are received need not bring what is the same |
//! | [`target`] | the disks of `receive`: made, opened and served as sessions ask |

pub(crate) mod beside;
pub(crate) mod bound;
pub(crate) mod disk;
pub(crate) mod elsewhere;
pub(crate) mod foreign;
mod kept;
mod offered;
pub(crate) mod port;
mod snapshot;
pub(crate) mod source;
pub(crate) mod taking;
pub(crate) mod target;
pub(crate) mod templates;
mod together;
mod way_back;

/// Where disks of this process are reached by NBD clients elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Reachable(pub(crate) blockserver::nbd::uri::Endpoint);

impl Reachable {
    /// The address of an export.
    pub(crate) fn address(&self, export: &str) -> String {
        let endpoint = self.0.clone();
        blockserver::nbd::uri::Address {
            endpoint,
            export: export.to_owned(),
        }
        .to_string()
    }
}
