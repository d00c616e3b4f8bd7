//! Where the console of a machine is: `/v1/machine/console`.

use serde::{Deserialize, Serialize};

/// Where one attaches.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ConsoleState {
    /// A unix socket: what was printed, and what is printed from then on; what is written to it is typed.
    pub(crate) socket: String,
    /// The pseudoterminal that the console is on besides.
    pub(crate) terminal: Option<String>,
}
