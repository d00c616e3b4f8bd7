//! Whether a machine may run here: by its record, which lies beside the file that describes it.
//!
//! Must never let a machine run whose record says that it went elsewhere, or has not arrived whole.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mirror::files::{load_record, sidecar_path, write_record};
use mirror::net::{SourceDriver, SourceHandle, TargetListener};
use mirror::record::{Ownership, State};
use mirror::session::SourceConfig;
use mirror::switchover::Phase;
use mirror::wire::{DiskDescription, DiskFormat};
use serde::Serialize;
use uuid::Uuid;
use vmm::description::Description;

use super::arrivals::Reception;
use super::{STATE, arrived, disk_name, went_with_machine};
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::report::Report;
use crate::site::bound;

const LOOK: Duration = Duration::from_millis(20);

/// Where a machine begins.
pub(crate) enum Beginning {
    Here(Arrived),
    /// It went elsewhere, and runs there.
    Elsewhere,
}

/// What has arrived of a machine that belongs to this host, and whoever waits for it to run.
#[derive(Default)]
pub(crate) struct Arrived {
    /// Its state; without one it begins from its kernel, or from a snapshot.
    pub(crate) state: Option<PathBuf>,
    reception: Option<Reception>,
}

impl Arrived {
    /// The machine runs.
    pub(crate) fn runs(&self) {
        if let Some(reception) = &self.reception {
            reception.runs();
        }
    }
}

#[derive(Serialize)]
struct Receiving<'a> {
    machine: &'a Path,
    listen: String,
}

#[derive(Serialize)]
struct WentElsewhere<'a> {
    machine: &'a Path,
    to: &'a str,
    end: &'static str,
}

/// What is wanted of a machine.
pub(crate) struct Wish {
    /// Receive it there, and then run it.
    pub(crate) receive: Option<TargetListener>,
    /// Run it whatever its record says.
    pub(crate) take_over: bool,
}

/// Find out how the machine begins that `machine` describes as `vm`; receive it first, if that is wanted.
pub(crate) fn begin(
    machine: &Path,
    vm: &Description,
    wish: Wish,
    report: Report,
) -> Result<Beginning> {
    let described = super::described(machine)?;
    // No thread yet: what confines this process confines none that is there already.
    let place = sidecar_path(&described);
    let record = load_record(&place);
    let state = arrived::place(&described);
    let in_use = |what: String| Failure::new(Exit::InUse, what);
    if wish.take_over {
        if let Ok(Some(record)) = &record
            && !matches!(record.state, State::Owner { .. })
        {
            let forced = write_record(&place, &record.forced());
            forced.map_err(|e| in_use(e.to_string()))?;
        }
        // What it does now is newer.
        if state.exists() {
            arrived::use_up(&state)?;
        }
        return Ok(Beginning::Here(Arrived::default()));
    }
    let record = record.map_err(|e| in_use(e.to_string()))?;
    let there = arrived::is_there(&state, vm.memory);
    let shown = machine.display();
    match (record.as_ref().map(|record| &record.state), wish.receive) {
        (_, Some(listen)) => receive(listen, (machine, &described), vm, report),
        (None, None) => Ok(Beginning::Here(Arrived::default())),
        (Some(State::Owner { .. }), None) if there => Ok(Beginning::Here(Arrived {
            state: Some(state),
            reception: None,
        })),
        (Some(State::Owner { .. }), None) => {
            forget_old(&state, report)?;
            Ok(Beginning::Here(Arrived::default()))
        }
        (Some(State::Released { to, .. }), None) => {
            let to = went_with_machine(to).unwrap_or(to).to_owned();
            repeat((machine, vm), (record.as_ref(), &to), report)?;
            Ok(Beginning::Elsewhere)
        }
        (Some(_), None) => Err(in_use(format!(
            "{shown}: the machine has not arrived whole, or its source has not let it go yet"
        ))
        .hint("the command that receives it goes on: `diskferry run --receive`")),
    }
}

fn receive(
    listen: TargetListener,
    (machine, described): (&Path, &Path),
    vm: &Description,
    report: Report,
) -> Result<Beginning> {
    let reception = Reception::start(listen, described, vm)?;
    let listen = reception.address();
    let people = format!("waiting at {listen} for {}", machine.display());
    report.event("receiving", &Receiving { machine, listen }, &people)?;
    reception.wait()?;
    let state = arrived::place(described);
    let there = arrived::is_there(&state, vm.memory);
    if there {
        arrived::seal(&state, vm)?;
    } else {
        forget_old(&state, report)?;
    }
    Ok(Beginning::Here(Arrived {
        state: there.then_some(state),
        reception: Some(reception),
    }))
}

/// A state that was used is not there any more; one of an earlier start of the host is not used.
fn forget_old(state: &Path, report: Report) -> Result<()> {
    if state.exists() {
        let what = "the state that had arrived is older than this start of the host: the machine begins as after \
                    a power cut";
        report.warn(what);
        arrived::use_up(state)?;
    }
    Ok(())
}

/// Tell the target that the machine is its own, until it runs there.
fn repeat(
    (machine, vm): (&Path, &Description),
    (record, to): (Option<&Ownership>, &str),
    report: Report,
) -> Result<()> {
    interrupt::listen();
    let mut sessions = Vec::new();
    if let Some(record) = record {
        sessions.push(grant(record, STATE.to_owned(), to)?);
    }
    for disk in vm.disks.iter().filter(|disk| !disk.read_only) {
        let path = super::described(&disk.path)?;
        let failed =
            |why: String| Failure::new(Exit::InUse, format!("{}: {why}", disk.path.display()));
        let store = super::record(&path);
        let record = store.load().map_err(|e| failed(e.to_string()))?;
        let record = bound::settle(&store, record.as_ref()).map_err(failed)?;
        if let Some(record) = record
            && matches!(record.state, State::Released { .. })
        {
            sessions.push(grant(&record, disk_name(&disk.name), to)?);
        }
    }
    report.warn(&format!(
        "{}: the machine went to {to}, which is told until it runs there",
        machine.display()
    ));
    while !sessions
        .iter()
        .all(|session| session.seen(0).phase == Phase::Forwarding)
    {
        if interrupt::requested() {
            sessions.iter().for_each(SourceHandle::stop);
            let what = format!(
                "{}: the machine went to {to}, which has not said that it runs",
                machine.display()
            );
            return Err(Failure::new(Exit::TookOver, what)
                .hint("start it there: `diskferry run` with the file that describes it there"));
        }
        std::thread::sleep(LOOK);
    }
    let end = "moved";
    let went = WentElsewhere { machine, to, end };
    let people = format!("{}: runs at {to}", machine.display());
    report.event("summary", &went, &people)
}

fn grant(record: &Ownership, name: String, to: &str) -> Result<SourceHandle> {
    // Nothing of it is used for what was handed over, but its name.
    let description = DiskDescription {
        name,
        size: 512,
        block_size: 0,
        logical_sector: 512,
        physical_sector: 4096,
        format: DiskFormat::Raw,
    };
    let mut config = SourceConfig::new(Uuid::nil(), to.to_owned(), description);
    config.recorded = Some(super::recorded(to));
    let session = SourceDriver::resume_released(record, config, |_| {});
    session.map_err(|e| Failure::new(Exit::Failed, e.to_string()))
}
