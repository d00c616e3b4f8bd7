//! `diskferry run`: a machine and its disks in one process, in the foreground.
//!
//! The disks are those of a `serve` without clients: whatever can be done to a served disk can be done to a
//! machine's, by the same control socket, while it runs.

mod begun;
mod counted;
mod guest;
mod held;
mod keeping;
mod moving;
mod network;
mod plug;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use blockserver::export::{ExportHandle, ExportOptions};
use blockserver::server::{Server, ServerConfig};
use serde::Serialize;
use vdisk::chain::ParentSearch;
use vmm::Exit as End;
use vmm::description;
use vmm::text::Text;

use self::begun::Begun;
use self::guest::Guest;
use self::held::Held;
pub(crate) use self::moving::in_words as moved_in_words;
use self::network::Shown;
use super::booting;
use crate::args::RunArgs;
use crate::commands::confinement;
use crate::control::machine::MachineControl;
use crate::control::service::Controlled;
use crate::control::{Control, place};
use crate::failure::{Exit, Failure, Result};
use crate::identity;
use crate::moving::standing::Arrived;
use crate::plan::{Machine, disk_format};
use crate::report::Report;
use crate::saved::restore::{self, Restore};
use crate::site::disk::Opened;
use crate::site::source::Site;
use crate::{limits, site};

#[derive(Serialize)]
struct Running {
    machine: PathBuf,
    vcpus: u8,
    memory: u64,
    disks: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    networks: Vec<Shown>,
    pid: u32,
    /// Ticks of the guest's time stamp counter in a millisecond.
    #[serde(skip_serializing_if = "Option::is_none")]
    tsc_khz: Option<u32>,
    /// The pseudoterminal that the console is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    terminal: Option<String>,
}

#[derive(Serialize)]
struct Ended {
    machine: PathBuf,
    /// `power_off`, `crash`, `stopped`, `moved` or `reset_failed`.
    end: &'static str,
    /// What the guest switched off with.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u8>,
    /// How often it began anew.
    resets: u64,
    /// Whether stdout takes what is printed.
    #[serde(skip)]
    heard: bool,
}

/// A disk, its export and its place.
#[derive(Clone)]
struct Attached {
    export: ExportHandle,
    path: PathBuf,
    queues: u8,
    slot: usize,
    /// Where it is controlled besides where the machine is.
    socket: Option<PathBuf>,
}

pub(crate) fn run(args: &RunArgs, report: Report) -> Result<()> {
    let plan = Machine::new(args)?;
    if plan.dry_run {
        return booting::dry_run(&plan, report);
    }
    // Before the process is confined to its own files.
    identity::introduce(args.identity.identity.as_deref())?;
    limits::raise_open_files();
    let text = Text::of_this_process();
    let Some(begun) = begun::begin(args, &plan, report)? else {
        return Ok(());
    };
    let Begun {
        arrived,
        mut restore,
        disks: opened,
        held,
    } = begun;
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let config = ServerConfig {
        workers: processors.min(usize::from(plan.vm.vcpus)),
        before_work: Some(confinement::worker),
        ..ServerConfig::default()
    };
    let server = Server::start(config);
    let server =
        Arc::new(server.map_err(|e| Failure::io("the disks' workers cannot be started", &e))?);
    let site = Arc::new(Site::new(&server));
    let mut disks = Vec::new();
    for (disk, opened) in plan.vm.disks.iter().zip(opened) {
        disks.push(add(&site, disk, (opened, plan.take_over))?);
    }
    let made = (&plan, restore.as_mut(), &arrived);
    let ended = live(args, made, (&site, disks, held), (text, report));
    site.stop();
    let closed = server.stop();
    site.unlock();
    closed.map_err(|e| Failure::io("a disk could not be closed cleanly", &e))?;
    let (ended, end) = ended?;
    // Where the console is stuck the summary would be too.
    if ended.heard {
        let how = match &end {
            Ok(end) => end.to_string(),
            Err(why) => format!("could not begin anew: {}", why.what),
        };
        let people = format!("{}: {how}", args.machine.display());
        report.event("summary", &ended, &people)?;
    }
    match end {
        Ok(End::PowerOff(0) | End::Stopped) => Ok(()),
        Ok(end) => Err(Failure::new(Exit::Failed, end.to_string())),
        Err(why) => Err(Failure {
            exit: Exit::Failed,
            what: format!("the machine could not begin anew: {}", why.what),
            ..why
        }),
    }
}

/// From the machine's first start to its end. Afterwards it touches its disks no more, however it went.
fn live(
    args: &RunArgs,
    (plan, mut restore, arrived): (&Machine, Option<&mut Restore>, &Arrived),
    (site, disks, held): (&Arc<Site>, Vec<Attached>, Held),
    (text, report): (Text, Report),
) -> Result<(Ended, Result<End>)> {
    let made = (plan, restore.as_deref_mut());
    let guest = Guest::new(args, made, (site, disks, held), report)?;
    let guest = Arc::new(guest);
    if let Some(restore) = restore {
        restore.started(&guest.machine(), report)?;
    }
    arrived.runs();
    let watched = Arc::downgrade(&guest);
    site.when_resized(Box::new(move |disk| {
        if let Some(guest) = watched.upgrade() {
            guest.resized(disk);
        }
    }));
    let ended = controlled(site, &guest, plan).and_then(|_control| guest.live(plan, text, report));
    restore::leave(&guest.machine(), report);
    guest.machine().stop();
    let heard = guest.console.close() || report.is_json();
    guest.moves.settle();
    guest.moves.report(heard.then_some(report))?;
    ended.map(|(ended, end)| (Ended { heard, ..ended }, end))
}

fn open(disk: &description::Disk, search: &ParentSearch) -> Result<Opened> {
    let format = disk.format.map(disk_format);
    site::disk::open(&disk.path, format, disk.read_only, search)
}

/// Makes a disk an export.
fn add(
    site: &Site,
    disk: &description::Disk,
    (opened, take_over): (Opened, bool),
) -> Result<Attached> {
    let options = ExportOptions {
        read_only: disk.read_only,
        description: disk.path.display().to_string(),
        ..ExportOptions::default()
    };
    let export = site.add(&disk.name, opened, (options, take_over))?;
    export.set_limits(disk.limits);
    Ok(Attached {
        export,
        path: disk.path.clone(),
        queues: disk.queues,
        slot: 0,
        socket: None,
    })
}

/// Listens for control: where the machine and every disk that it changes are looked for, and where it was
/// asked to.
fn controlled(site: &Arc<Site>, guest: &Arc<Guest>, plan: &Machine) -> Result<Controlled> {
    let mut paths = plan.control.clone();
    place::make_folder()?;
    paths.push(place::socket_of(&guest.described)?);
    let control: Arc<dyn Control> = site.clone();
    let machine: Arc<dyn MachineControl> = guest.clone();
    let controlled = Controlled::start(&control, Some(&machine), paths)?;
    let _ = guest.sockets.set(controlled.sockets());
    for disk in &mut guest.now().disks {
        guest.listen_for(disk)?;
    }
    Ok(controlled)
}

/// What the machine monitor says, as this program ends with it.
pub(crate) fn cannot(error: &vmm::Error) -> Failure {
    use vmm::ErrorKind;
    let exit = match error.kind() {
        ErrorKind::InvalidArgument | ErrorKind::BadKernel => Exit::Usage,
        ErrorKind::Unsupported => Exit::Unsupported,
        ErrorKind::BadSnapshot => Exit::Corrupt,
        ErrorKind::Mismatch => Exit::Mismatch,
        _ => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}
