//! A machine goes on from a snapshot: from the folder to a machine that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use vmm::confine::{self, Kind};
use vmm::description::Description;
use vmm::memory::{Arrival, Faults, Memory};
use vmm::{Devices, Machine, MachineConfig};

use super::disks::{self, Placed};
use super::folder::Saved;
use super::manifest::SavedNetwork;
use crate::commands::run::cannot;
use crate::failure::{Exit, Failure, Result};
use crate::moving::arrived;
use crate::report::Report;

/// How long a machine whose memory is lost may take to end before the process ends without it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A machine on its way back.
pub(crate) struct Restore {
    folder: PathBuf,
    began: Instant,
    placed: Placed,
    /// Until the machine is made.
    saved: Option<(Saved, Faults)>,
    arrival: Option<Arrival>,
    /// It is no snapshot, but a state that is used once.
    once: bool,
}

#[derive(Serialize)]
struct Restored<'a> {
    snapshot: &'a Path,
    /// Bytes of memory that come from the snapshot.
    memory_bytes: u64,
    /// Whether memory comes in while the machine runs.
    lazy: bool,
    /// From the reading of the snapshot until the processors were let go.
    start_ms: f64,
    /// Where disks are now that stood where the snapshot's went.
    set_aside: Vec<&'a Path>,
}

impl Restore {
    /// Believe the snapshot in `folder`, see that it is of the machine that `vm` describes, and put the disks in
    /// place. Taken back when this is dropped before the machine has [`Self::started`].
    pub(crate) fn prepare(folder: &Path, vm: &Description, discard: bool) -> Result<Self> {
        let began = Instant::now();
        let saved = Saved::open(folder)?;
        saved.manifest.fits(vm).map_err(|why| {
            let what = format!("{}: is of another machine: {why}", folder.display());
            Failure::new(Exit::Mismatch, what)
                .hint("its own description is vm.toml in the snapshot's folder")
        })?;
        let placed = disks::place(&saved, vm, discard)?;
        Ok(Self {
            folder: folder.to_owned(),
            began,
            placed,
            saved: Some((saved, Faults::open(vm.huge_pages))),
            arrival: None,
            once: false,
        })
    }

    /// The same for a machine whose state has arrived at `path` from another host; its disks are in place. `faults`
    /// of a process that cannot ask for them any more.
    pub(crate) fn arrived(path: &Path, vm: &Description, faults: Option<Faults>) -> Result<Self> {
        let began = Instant::now();
        let saved = arrived::open(path, vm)?;
        saved.manifest.fits(vm).map_err(|why| {
            let what = format!("{}: is of another machine: {why}", path.display());
            Failure::new(Exit::Mismatch, what)
        })?;
        Ok(Self {
            folder: path.to_owned(),
            began,
            placed: Placed::default(),
            saved: Some((saved, faults.unwrap_or_else(|| Faults::open(vm.huge_pages)))),
            arrival: None,
            once: true,
        })
    }

    /// The network devices that the machine had.
    pub(crate) fn networks(&self) -> &[SavedNetwork] {
        let saved = self.saved.as_ref();
        saved.map_or(&[], |(saved, _)| &saved.manifest.networks)
    }

    /// The machine, before its start; once.
    pub(crate) fn machine(&mut self, config: &MachineConfig, devices: Devices) -> Result<Machine> {
        let saved = self.saved.take();
        let (saved, faults) =
            saved.ok_or_else(|| Failure::usage("a snapshot is used once for each run"))?;
        let memory = Memory::restored(saved.memory, faults);
        let (memory, arrival) = memory.map_err(|e| cannot(&e))?;
        self.arrival = Some(arrival);
        let machine = Machine::restored(config, &saved.state, memory, devices);
        let machine = machine.map_err(|e| cannot(&e))?;
        if self.once {
            // Before its first step: what it does then must never be undone by doing it again.
            crate::moving::reached("restored");
            arrived::use_up(&self.folder)?;
            crate::moving::reached("used");
        }
        Ok(machine)
    }

    /// The machine runs: its disks stay, and it is reported.
    pub(crate) fn started(&mut self, machine: &Arc<Machine>, report: Report) -> Result<()> {
        let start_ms = (self.began.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        self.placed.keep();
        if let Some(Arrival::Eager(why)) = &self.arrival {
            report.warn(&format!("all memory was read before the start: {why}"));
        }
        end_if_lost(machine, report)?;
        let restored = Restored {
            snapshot: &self.folder,
            memory_bytes: machine.memory().restored_bytes(),
            lazy: self.arrival == Some(Arrival::Lazy),
            start_ms,
            set_aside: self.placed.aside().collect(),
        };
        for aside in &restored.set_aside {
            report.warn(&format!("{}: was set aside", aside.display()));
        }
        if report.is_json() {
            report.event("restored", &restored, "")?;
        }
        Ok(())
    }
}

/// Watch memory come in. If a part of it is lost the machine ends, and with it this process, as by a power cut:
/// what waits for that part cannot go on, neither to close a disk.
fn end_if_lost(machine: &Arc<Machine>, report: Report) -> Result<()> {
    let machine = Arc::clone(machine);
    let watching = thread::Builder::new().name("memory".into()).spawn(move || {
        confine::thread(Kind::Memory);
        if machine.memory().wait().is_err() && machine.memory().lost().is_some() {
            thread::sleep(PATIENCE);
            leave(&machine, report);
        }
    });
    watching
        .map(drop)
        .map_err(|e| Failure::io("no thread that watches memory come in", &e))
}

/// End the process if memory of the machine is lost: nothing that may wait for it is waited for.
pub(crate) fn leave(machine: &Machine, report: Report) {
    if let Some(why) = machine.memory().lost() {
        let what = format!("memory of the machine cannot be restored: {why}");
        report.failure(&Failure::new(Exit::Corrupt, what));
        std::process::exit(Exit::Corrupt as i32);
    }
}
