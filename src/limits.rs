//! Limits of the host that end a process by default.
//!
//! A file that may not grow any further (`ulimit -f`) is reported twice: by a signal, which ends the
//! process, and by an error of the call, which fails one request. A disk that is in use needs the
//! second without the first.

use tokio::signal::unix::{SignalKind, signal};

/// From here on a file that may not grow is an error and not the end. Where that cannot be had, all
/// goes on as the host has it.
pub(crate) fn survive() {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
    else {
        return;
    };
    let _entered = runtime.enter();
    let too_large = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    // It stays caught when nobody listens any more.
    drop(signal(too_large));
}
