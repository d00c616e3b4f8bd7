//! The connection over which clients' requests will go is made before they are held for the switchover: what would have to
//! be made of it then adds to the pause, most where it is encrypted and the way is long.
//!
//! To the machine it is as if the target's word that it is ready had been on its way for as long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::net::port::ServedDisk;

/// How long it is waited for: who cannot be reached so is not waited for by clients either.
const AHEAD: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(2);

/// Do it once the connection is there, or cannot be.
pub(super) async fn once_there(disk: Arc<dyn ServedDisk>, go_on: impl FnOnce()) {
    let since = Instant::now();
    while !disk.is_expected_up() && since.elapsed() < AHEAD {
        tokio::time::sleep(LOOK).await;
    }
    go_on();
}
