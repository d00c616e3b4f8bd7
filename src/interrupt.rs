//! Ctrl-C and SIGTERM: the first asks the work to stop at a safe point, the second ends the process.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::failure::{Exit, Failure, Result};

static REQUESTED: AtomicBool = AtomicBool::new(false);
static LISTENING: Once = Once::new();

/// Catches signals from here on. Called by work that has something to put in order before it ends.
pub(crate) fn listen() {
    LISTENING.call_once(|| {
        let _ = thread::Builder::new().name("signals".into()).spawn(watch);
    });
}

/// Whether somebody asked to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Fails once somebody asked to stop; `state` says what holds then.
pub(crate) fn check(state: &str) -> Result<()> {
    if requested() {
        return Err(Failure::interrupted(state));
    }
    Ok(())
}

fn watch() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return;
    };
    runtime.block_on(async {
        let (Ok(mut interrupt), Ok(mut terminate)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        ) else {
            return;
        };
        for _ in 0..2 {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if REQUESTED.swap(true, Ordering::Relaxed) {
                std::process::exit(Exit::Interrupted as i32);
            }
        }
    });
}
