//! `diskferry machine`: what a machine that runs is asked, and told to do.

mod console;
mod disks;
mod moving;
mod shutdown;
mod stats;

use crate::args::{MachineArgs, MachineSnapshotArgs, MachineVerb};
use crate::control::client::Client;
use crate::control::machine::MachineState;
use crate::control::place;
use crate::failure::{Failure, Result};
use crate::plan;
use crate::report::Report;
use crate::saved::take::{Taken, Wanted};
use crate::size;

pub(crate) fn run(verb: &MachineVerb, report: Report) -> Result<()> {
    let (args, what) = match verb {
        MachineVerb::Status(args) => (args, None),
        MachineVerb::Pause(args) => (args, Some("pause")),
        MachineVerb::Resume(args) => (args, Some("resume")),
        MachineVerb::Reset(args) => (args, Some("reset")),
        MachineVerb::PowerOff(args) => (args, Some("power-off")),
        MachineVerb::Shutdown(args) => return shutdown::run(args, report),
        MachineVerb::AddDisk(args) => return disks::add(args, report),
        MachineVerb::RemoveDisk(args) => return disks::remove(args, report),
        MachineVerb::ResizeDisk(args) => return disks::resize(args, report),
        MachineVerb::Console(args) => return console::run(args, report),
        MachineVerb::Stats(args) => return stats::run(args, report),
        MachineVerb::Snapshot(args) => return snapshot(args, report),
        MachineVerb::Move(args) => return moving::run(args, report),
    };
    let client = client(args)?;
    let state: MachineState = match what {
        None => client.get("/v1/machine")?,
        Some(what) => client.post(&format!("/v1/machine/{what}"), &())?,
    };
    report.result("machine", &state, sentence)
}

fn snapshot(args: &MachineSnapshotArgs, report: Report) -> Result<()> {
    let into = std::path::absolute(&args.into);
    let failed = |e| Failure::io(format!("{}: is no path", args.into.display()), &e);
    let wanted = Wanted {
        into: into.map_err(failed)?,
        stop: args.stop,
    };
    let taken: Taken = client(&args.machine)?.post("/v1/machine/snapshot", &wanted)?;
    report.result("machine-snapshot", &taken, |taken| {
        format!(
            "{}: {} of memory and {} disks; the guest stood still for {:.0} ms{}",
            taken.snapshot.display(),
            size::show(taken.memory_bytes),
            taken.disks.len(),
            taken.pause_ms,
            if taken.stopped { ", and has ended" } else { "" }
        )
    })
}

fn client(args: &MachineArgs) -> Result<Client> {
    let socket = match &args.control {
        Some(text) => plan::control_path(text)?,
        None => place::socket_of(&args.machine)?,
    };
    let client = Client::new(&socket);
    if client.answers() {
        return Ok(client);
    }
    let what = format!("{}: no machine runs from it", args.machine.display());
    Err(Failure::usage(what).hint("start it with `diskferry run`"))
}

fn sentence(state: &MachineState) -> String {
    format!(
        "{}: {}; {} processors, {} of memory, process {}",
        state.machine,
        state.state.in_words(),
        state.vcpus,
        size::show(state.memory),
        state.pid
    )
}
