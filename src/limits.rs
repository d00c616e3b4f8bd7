//! Limits of the host that end a process by default.
//!
//! A file that may not grow any further (`ulimit -f`) is reported twice: by a signal, which ends the
//! process, and by an error of the call, which fails one request. A disk that is in use needs the
//! second without the first.
//!
//! How many files a process may have open has two limits: a low one that programs begin with, for the sake of old
//! ones, and a high one up to which they may raise it by themselves.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
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

/// As many files as this process may have. A machine has some for each processor and for each queue of a disk, a server
/// some for each client.
pub(crate) fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // Fewer may do; if not, that is what is reported.
    let _ = setrlimit(Resource::Nofile, raised);
}
