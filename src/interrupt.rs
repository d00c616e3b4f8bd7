//! Ctrl-C and SIGTERM: the first asks the work to stop at a safe point, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{Exit, Failure, Result};

static REQUESTED: AtomicBool = AtomicBool::new(false);
/// Wakes [`wait`]; the flag is [`REQUESTED`].
static WAKE: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
static LISTENING: Once = Once::new();
/// What [`catch`] has caught for [`listen`].
static CAUGHT: Mutex<Option<Caught>> = Mutex::new(None);

/// Signals that are caught and wait for somebody to heed them.
struct Caught {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
}

fn caught() -> MutexGuard<'static, Option<Caught>> {
    CAUGHT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Catches signals from the moment it returns, and heeds those that came since [`catch`]. Called by work that has
/// something to put in order before it ends.
pub(crate) fn listen() {
    LISTENING.call_once(|| {
        let before = caught().take();
        if let Some(caught) = before.or_else(caught_anew) {
            caught.listen();
        }
    });
}

/// The same without a thread: nothing comes of signals before [`listen`]. Where they cannot be caught nobody says
/// so, and they end the process as ever.
pub(crate) fn catch() {
    let anew = caught_anew();
    *caught() = anew;
}

fn caught_anew() -> Option<Caught> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    let entered = runtime.enter();
    let interrupt = signal(SignalKind::interrupt()).ok()?;
    let terminate = signal(SignalKind::terminate()).ok()?;
    drop(entered);
    Some(Caught {
        runtime,
        interrupt,
        terminate,
    })
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

impl Caught {
    /// Heed them from now on, also those that came before.
    fn listen(self) {
        let watching = thread::Builder::new().name("signals".into());
        if let Err(error) = watching.spawn(move || self.watch()) {
            tracing::warn!(%error, "no thread that heeds signals");
        }
    }

    fn watch(self) {
        let Self {
            runtime,
            mut interrupt,
            mut terminate,
        } = self;
        runtime.block_on(async {
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
}
