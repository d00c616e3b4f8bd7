//! Ctrl-C and SIGTERM: the first asks the work to stop at a safe point, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, Once, PoisonError};
use std::thread;

use crate::failure::{Exit, Failure, Result};

static REQUESTED: AtomicBool = AtomicBool::new(false);
/// Wakes [`wait`]; the flag is [`REQUESTED`].
static WAKE: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
static LISTENING: Once = Once::new();

/// Catches signals from the moment it returns. Called by work that has something to put in order before
/// it ends.
pub(crate) fn listen() {
    LISTENING.call_once(|| {
        let (ready, listens) = sync_channel(1);
        let watching = thread::Builder::new().name("signals".into());
        if watching.spawn(move || watch(&ready)).is_ok() {
            // Where signals cannot be caught nobody says so, and they end the process as ever.
            let _ = listens.recv();
        }
    });
}

/// Whether somebody asked to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Waits until somebody asks to stop; [`listen`] must have been called.
pub(crate) fn wait() {
    let (lock, wake) = &WAKE;
    let mut guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
    while !requested() {
        guard = wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Fails once somebody asked to stop; `state` says what holds then.
pub(crate) fn check(state: &str) -> Result<()> {
    if requested() {
        return Err(Failure::interrupted(state));
    }
    Ok(())
}

fn watch(ready: &SyncSender<()>) {
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
        let _ = ready.send(());
        for _ in 0..2 {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            let guard = WAKE.0.lock().unwrap_or_else(PoisonError::into_inner);
            if REQUESTED.swap(true, Ordering::Relaxed) {
                std::process::exit(Exit::Interrupted as i32);
            }
            WAKE.1.notify_all();
            drop(guard);
        }
    });
}
