//! A machine that runs moves to another host: what `run` has to do for it, at both.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mirror::net::TargetListener;
use uuid::Uuid;
use vmm::memory::Faults;

use super::cannot;
use super::guest::{Guest, Now};
use super::network::Networked;
use crate::args::RunArgs;
use crate::control::machine::Life;
use crate::failure::{Exit, Failure, Result};
use crate::identity;
use crate::moving::arrived;
use crate::moving::source::{self, MoveState, MoveTo, Moved, Mover, Still, Subject};
use crate::moving::standing::{self, Arrived, Beginning, Wish};
use crate::plan::Machine;
use crate::report::Report;
use crate::saved::manifest::{Manifest, SavedDisk};
use crate::saved::restore::Restore;
use crate::saved::take;
use crate::{moving, site};

/// How often it is looked whether a move has been taken back.
const SETTLE: Duration = Duration::from_millis(5);

/// Moves of a machine: the one under way or the last, and the one that was made.
#[derive(Default)]
pub(super) struct Moves {
    last: Mutex<Option<Arc<Mover>>>,
    /// Held by the one under way.
    alone: Mutex<()>,
    moved: OnceLock<Moved>,
}

impl Moves {
    fn last(&self) -> Result<Arc<Mover>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let none = || Failure::usage("the machine is not being moved");
        last.clone().ok_or_else(none)
    }

    pub(super) fn state(&self) -> Result<MoveState> {
        Ok(self.last()?.state())
    }

    pub(super) fn cancel(&self) -> Result<MoveState> {
        let mover = self.last()?;
        mover.give_up();
        Ok(mover.state())
    }

    /// Whether the machine runs elsewhere now.
    pub(super) fn moved(&self) -> bool {
        self.moved.get().is_some()
    }

    /// The machine ends: a move that is under way is taken back, or decided and cannot be.
    pub(super) fn settle(&self) {
        let Ok(last) = self.last() else {
            return;
        };
        last.give_up();
        while self.alone.try_lock().is_err() && !last.state().committed {
            std::thread::sleep(SETTLE);
        }
    }

    /// Tell of the move that was made, if one was, where stdout takes what is printed.
    pub(super) fn report(&self, report: Option<Report>) -> Result<()> {
        match self.moved.get() {
            Some(moved) => report.map_or(Ok(()), |report| {
                report.event("moved", moved, &in_words(moved))
            }),
            None => match self.last() {
                Ok(last) if last.state().committed => {
                    let what = format!(
                        "the machine went to {}, which has not said that it runs",
                        last.state().to
                    );
                    Err(Failure::new(Exit::TookOver, what)
                        .hint("start it there; `diskferry run` here tells the other host until it runs there"))
                }
                _ => Ok(()),
            },
        }
    }
}

/// A move in a sentence.
pub(crate) fn in_words(moved: &Moved) -> String {
    format!(
        "moved to {}: {} of memory and {} of disks; the guest stood still for {:.0} ms (state {:.1}, memory {:.1}, \
         disks {:.1}, switch {:.1}, start {:.1})",
        moved.to,
        crate::size::show(moved.memory_bytes),
        crate::size::show(moved.disk_bytes),
        moved.pause_ms,
        moved.state_ms,
        moved.memory_ms,
        moved.disks_ms,
        moved.switch_ms,
        moved.start_ms
    )
}

/// Listen for the machine at `address`. Starts no thread.
pub(super) fn listen(plan: &Machine, address: &str) -> Result<TargetListener> {
    if plan.is_disk {
        let what = "a machine that is only a disk cannot be received";
        return Err(Failure::usage(what).hint("describe it in a file"));
    }
    let cannot = |e| Failure::io("this start of the host is not known", &e);
    arrived::this_start().map_err(cannot)?;
    TargetListener::bind(address).map_err(|e| Failure::new(Exit::Failed, e.to_string()))
}

/// What has arrived of the machine; nothing if it went elsewhere and runs there.
pub(super) fn begin(
    args: &RunArgs,
    plan: &Machine,
    receive: Option<TargetListener>,
    report: Report,
) -> Result<Option<Arrived>> {
    if plan.is_disk {
        return Ok(Some(Arrived::default()));
    }
    let wish = Wish {
        receive,
        take_over: args.take_over,
    };
    match standing::begin(&args.machine, &plan.vm, wish, report)? {
        Beginning::Here(arrived) => Ok(Some(arrived)),
        Beginning::Elsewhere => Ok(None),
    }
}

/// What the machine goes on from, if not from its kernel; `faults` of a process that cannot ask for them any more.
pub(super) fn restore(
    args: &RunArgs,
    plan: &Machine,
    arrived: &Arrived,
    faults: Option<Faults>,
) -> Result<Option<Restore>> {
    let snapshot = args.saved.restore.as_deref();
    match (&arrived.state, snapshot) {
        (Some(state), Some(_)) => {
            let what = format!("{}: has arrived, and not been used yet", state.display());
            Err(Failure::usage(what).hint("run the machine without --restore first"))
        }
        (Some(state), None) => Restore::arrived(state, &plan.vm, faults).map(Some),
        (None, Some(from)) => Restore::prepare(from, &plan.vm, args.saved.discard_disks).map(Some),
        (None, None) => Ok(None),
    }
}

impl Guest {
    /// Move it to another host. When this fails it goes on here.
    pub(super) fn go(&self, to: &MoveTo) -> Result<Moved> {
        identity::allowed(&to.to, to.plain)?;
        let Ok(_alone) = self.moves.alone.try_lock() else {
            let what = format!("{}: is being moved already", self.described.display());
            return Err(Failure::new(Exit::InUse, what));
        };
        let given = {
            let now = self.now();
            if now.life == Life::Ended || now.machine.exit().is_some() {
                return Err(self.over());
            }
            if now.life == Life::Paused {
                let what = format!(
                    "{}: is paused, and would run there",
                    self.described.display()
                );
                return Err(Failure::usage(what).hint("resume it first"));
            }
            self.as_described(&now)?;
            now.machine.given().clone()
        };
        if crate::plan::is_disk(&self.described) {
            let what = format!("{}: is only a disk", self.described.display());
            return Err(Failure::usage(what).hint("describe the machine in a file to move it"));
        }
        let described = moving::described(&self.described)?;
        let mover = Arc::new(Mover::new(to));
        *self
            .moves
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&mover));
        let manifest = |id: Uuid, state: &[u8]| self.manifest(id, state);
        let machine = source::Machine {
            described: &described,
            vm: &self.vm,
            given: &given,
            manifest: &manifest,
            site: &self.site,
        };
        let standing = Standing {
            guest: self,
            before: Mutex::new(None),
        };
        let result = mover.run(&machine, &standing)?;
        let _ = self.moves.moved.set(result.clone());
        self.end();
        Ok(result)
    }

    /// What the machine is.
    fn manifest(&self, id: Uuid, state: &[u8]) -> Result<Manifest> {
        let mut disks = Vec::new();
        for disk in &self.vm.disks {
            disks.push(if disk.read_only {
                take::read_only(disk, &disk.path)?
            } else {
                self.moving_disk(disk)?
            });
        }
        let networks = self.networks.iter().map(Networked::saved).collect();
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        let time = time.map_or(0, |since| since.as_secs());
        let about = (self.described.as_path(), &self.vm);
        Ok(Manifest::new(about, (id, time), state, (disks, networks)))
    }

    fn moving_disk(&self, disk: &vmm::description::Disk) -> Result<SavedDisk> {
        let now = self.now();
        let attached = now.disks.iter().find(|one| one.export.name() == disk.name);
        let gone = || Failure::usage(format!("{}: the machine has lost it", disk.name));
        let size = attached.ok_or_else(gone)?.export.size();
        Ok(SavedDisk {
            name: disk.name.clone(),
            path: disk.path.clone(),
            queues: disk.queues,
            size,
            image: disk.path.clone(),
            version: site::disk::is_vhdx(disk).then(|| "moves".to_owned()),
            child: Some("moves".to_owned()),
        })
    }
}

/// The machine while it is brought to a stand, and how it was.
struct Standing<'a> {
    guest: &'a Guest,
    before: Mutex<Option<(Arc<vmm::Machine>, Life)>>,
}

impl Subject for Standing<'_> {
    fn stop(&self) -> Result<Still> {
        self.guest
            .machine()
            .memory()
            .wait()
            .map_err(|e| cannot(&e))?;
        let (machine, before) = self.guest.begin_to_save()?;
        *self.before.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Arc::clone(&machine), before));
        let since = Instant::now();
        machine.pause();
        if let Some(end) = machine.exit() {
            let what = format!("{}: {end}", self.guest.described.display());
            return Err(Failure::usage(what));
        }
        let _queues = machine.stop_devices();
        let state = machine.save().map_err(|e| cannot(&e))?.encode();
        Ok(Still {
            since,
            state,
            memory: Arc::clone(machine.memory().file()),
        })
    }

    fn go_on(&self) {
        let stopped = self
            .before
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some((machine, before)) = stopped else {
            return;
        };
        let mut now: std::sync::MutexGuard<'_, Now> = self.guest.now();
        if machine.exit().is_none() {
            machine.resume_devices();
            if before == Life::Running {
                machine.resume();
            }
        }
        if now.life == Life::Saving {
            now.life = before;
        }
    }
}
