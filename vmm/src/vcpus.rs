//! The threads that the processors of a machine run on, and the barrier that pauses and stops them.
//!
//! Driver. A processor is told to stand still or to stop by three steps in this order: what is wanted is
//! written, its next entry is made to end at once, and its thread gets a signal, which ends an entry that it is
//! in. The thread clears the second before it looks at the first, so none is missed. Before it parks it lets KVM finish the instruction whose
//! access was answered, so that registers and devices agree in a machine that is paused.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::Ports;
use crate::confine::Kind;
use crate::kvm::{Kick, Ran, Vcpu};
use crate::machine::Exit;
use crate::statistics::{Statistics, VcpuCounters, VcpuState};
use crate::threads;
use crate::{Error, Result};

/// What the threads shall do.
const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;

/// Threads by what they do now, and why the machine has ended, if it has.
#[derive(Debug, Default)]
struct Progress {
    /// Threads that have begun and not ended.
    alive: usize,
    /// Of these, those that are parked.
    parked: usize,
    exit: Option<Exit>,
    /// When they began.
    begun: Option<Instant>,
    /// How long they stood still, and since when they do now.
    paused: Duration,
    paused_since: Option<Instant>,
}

impl Progress {
    /// They shall stand still from now on, or do not any more.
    fn time_pause(&mut self, paused: bool) {
        if !paused {
            let since = self.paused_since.take();
            self.paused += since.map_or(Duration::ZERO, |at| at.elapsed());
        } else if self.begun.is_some() {
            self.paused_since.get_or_insert_with(Instant::now);
        }
    }
}

/// What controls the threads of a machine, from any of them or from outside.
#[derive(Debug)]
pub(crate) struct Control {
    wanted: AtomicU8,
    progress: Mutex<Progress>,
    changed: Condvar,
    kicks: Vec<Arc<Kick>>,
    counters: Vec<Arc<VcpuCounters>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What an answer to a signal does: nothing, the system call that it ends is what matters.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Have the signal that kicks do nothing else.
fn take_signal() -> Result<()> {
    static TAKEN: OnceLock<std::result::Result<(), i32>> = OnceLock::new();
    let taken =
        TAKEN.get_or_init(|| register_signal_handler(SIGRTMIN(), on_kick).map_err(Errno::errno));
    taken.map_err(|errno| {
        Error::host(
            "the signal that stops processors cannot be taken",
            std::io::Error::from_raw_os_error(errno),
        )
    })
}

impl Control {
    /// Control of processors that are not running yet.
    pub(crate) fn new(vcpus: &[Vcpu]) -> Self {
        Self {
            wanted: AtomicU8::new(PAUSE),
            progress: Mutex::default(),
            changed: Condvar::new(),
            kicks: vcpus.iter().map(Vcpu::kick).collect(),
            counters: vcpus.iter().map(Vcpu::counters).collect(),
            threads: Mutex::default(),
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, condition: impl Fn(&Progress) -> bool) -> MutexGuard<'_, Progress> {
        let progress = self.progress();
        let waited = self
            .changed
            .wait_while(progress, |progress| condition(progress));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Tell all threads what is wanted; nothing is wanted any more once they shall stop.
    fn want(&self, what: u8) {
        {
            let mut progress = self.progress();
            if self.wanted.load(Ordering::SeqCst) == STOP {
                return;
            }
            self.wanted.store(what, Ordering::SeqCst);
            progress.time_pause(what == PAUSE);
            self.changed.notify_all();
        }
        // Whoever is parked has been woken, and whoever runs may: a kick would only keep it from the guest.
        if what == RUN {
            return;
        }
        for kick in &self.kicks {
            kick.arm();
        }
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.iter() {
            // A thread that has ended needs no signal.
            let _ = thread.kill(SIGRTMIN());
        }
    }

    /// The machine has ended. What ended it first is what counts.
    pub(crate) fn end(&self, exit: Exit) {
        self.progress().exit.get_or_insert(exit);
        self.want(STOP);
    }

    /// Whether it has ended, and how.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.progress().exit.clone()
    }

    /// Wait until the machine has ended and none of its processors runs.
    pub(crate) fn wait(&self) -> Exit {
        let progress = self.wait_while(|progress| progress.exit.is_none() || progress.alive > 0);
        progress.exit.clone().unwrap_or(Exit::Stopped)
    }

    /// Return when no processor runs; the guest goes on with [`Self::resume`].
    pub(crate) fn pause(&self) {
        self.want(PAUSE);
        drop(self.wait_while(|progress| progress.parked < progress.alive));
    }

    /// Whether no processor runs, and none will before [`Self::resume`].
    pub(crate) fn stands_still(&self) -> bool {
        let progress = self.progress();
        let paused = self.wanted.load(Ordering::SeqCst) == PAUSE;
        paused && progress.exit.is_none() && progress.parked == progress.alive
    }

    /// What was counted so far.
    pub(crate) fn statistics(&self) -> Statistics {
        let progress = self.progress();
        let standing = progress
            .paused_since
            .map_or(Duration::ZERO, |at| at.elapsed());
        Statistics {
            uptime: progress.begun.map_or(Duration::ZERO, |at| at.elapsed()),
            paused: progress.paused + standing,
            vcpus: self.counters.iter().map(|one| one.read()).collect(),
        }
    }

    /// Let all processors run.
    pub(crate) fn resume(&self) {
        self.want(RUN);
    }

    /// End all threads, and return when they have ended.
    pub(crate) fn stop(&self) {
        self.end(Exit::Stopped);
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of a processor has panicked");
            }
        }
    }

    /// Start a thread for each processor.
    pub(crate) fn start(
        self: &Arc<Self>,
        vcpus: &Arc<[Mutex<Vcpu>]>,
        ports: &Arc<impl Ports + Send + 'static>,
    ) -> Result<()> {
        take_signal()?;
        if self.exit().is_some() {
            return Err(Error::invalid("this machine has ended"));
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.store(RUN, Ordering::SeqCst);
        self.progress().begun = Some(Instant::now());
        for index in 0..vcpus.len() {
            let (control, vcpus, ports) = (Arc::clone(self), Arc::clone(vcpus), Arc::clone(ports));
            self.progress().alive += 1;
            let thread = threads::spawn(&format!("vcpu-{index}"), Kind::Vcpu, move || {
                control.run(&vcpus, index, ports.as_ref());
            });
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    self.progress().alive -= 1;
                    drop(threads);
                    self.stop();
                    return Err(Error::host(
                        "a thread for a processor cannot be started",
                        error,
                    ));
                }
            }
        }
        Ok(())
    }

    /// What a thread does.
    fn run(&self, vcpus: &[Mutex<Vcpu>], index: usize, ports: &dyn Ports) {
        let _gone = Gone(self, index);
        self.set_state(index, VcpuState::Running);
        let Some(vcpu) = vcpus.get(index) else {
            return;
        };
        let mut held = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match self.wanted.load(Ordering::SeqCst) {
                RUN => {}
                wanted => {
                    if let Some(Ran::Ended(why)) = held.finish(ports) {
                        self.end(Exit::Crash(why));
                    }
                    if wanted == STOP {
                        return;
                    }
                    drop(held);
                    self.set_state(index, VcpuState::Paused);
                    self.park();
                    self.set_state(index, VcpuState::Running);
                    held = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            }
            match held.run(ports) {
                Ran::Answered => {}
                Ran::Interrupted => held.disarm(),
                Ran::Ended(why) => self.end(Exit::Crash(why)),
            }
        }
    }

    fn set_state(&self, index: usize, state: VcpuState) {
        if let Some(counters) = self.counters.get(index) {
            counters.set(state);
        }
    }

    fn park(&self) {
        let mut progress = self.progress();
        progress.parked += 1;
        self.changed.notify_all();
        let paused = |_: &mut Progress| self.wanted.load(Ordering::SeqCst) == PAUSE;
        let waited = self.changed.wait_while(progress, paused);
        waited.unwrap_or_else(PoisonError::into_inner).parked -= 1;
    }
}

/// Counts a thread out, also one that panics: whoever waits must not wait for it.
struct Gone<'a>(&'a Control, usize);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0
                .end(Exit::Crash("a device panicked; see the log".to_owned()));
        }
        self.0.set_state(self.1, VcpuState::Off);
        self.0.progress().alive -= 1;
        self.0.changed.notify_all();
    }
}
