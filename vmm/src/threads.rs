//! Threads that a guest's doing starts, each confined as one of its kind before it does its work.
//!
//! Driver. A thread inherits what the one that starts it may not do. So they are all started by one that may
//! start threads and that no guest reaches: a processor whose guest wakes a device up need not be able to.

use std::io;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::confine::{self, Kind};
use crate::{Error, Result};

type Start = Box<dyn FnOnce() + Send>;

/// What is to be started; none before [`begin`].
static STARTER: Mutex<Option<Sender<Start>>> = Mutex::new(None);

/// Have the thread that starts others; it inherits what its caller may not do. It stays until the process ends.
pub(crate) fn begin() -> Result<()> {
    starter()
        .map(drop)
        .map_err(|error| Error::host("no thread that starts others", error))
}

fn starter() -> io::Result<Sender<Start>> {
    let mut starter = STARTER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(starter) = &*starter {
        return Ok(starter.clone());
    }
    let (sender, asked) = channel::<Start>();
    let run = move || {
        for start in asked {
            start();
        }
    };
    thread::Builder::new().name("starter".into()).spawn(run)?;
    Ok(starter.insert(sender).clone())
}

/// Start a thread of this kind.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    kind: Kind,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let (started, answer) = sync_channel(1);
    let named = thread::Builder::new().name(name.to_owned());
    let start = Box::new(move || {
        let thread = named.spawn(move || {
            confine::thread(kind);
            body()
        });
        // Whoever asked waits.
        let _ = started.send(thread);
    });
    let gone = || io::Error::other("the thread that starts others has ended");
    starter()?.send(start).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_started_by_the_starter_and_joined_by_whoever_asked() {
        let threads: Vec<_> = (0..4)
            .map(|number| spawn("one", Kind::Device, move || number * 2).unwrap())
            .collect();
        let sums: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        assert_eq!(sums, [0, 2, 4, 6]);
    }
}
