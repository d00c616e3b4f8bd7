//! `diskferry run`: a machine and its disks in one process, in the foreground.
//!
//! The disks are those of a `serve` without clients: whatever can be done to a served disk can be done to a
//! machine's, by the same control socket, while it runs.

mod counted;
mod keeping;
mod network;
mod plug;

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;

use blockserver::export::{ExportHandle, ExportOptions};
use blockserver::server::{Server, ServerConfig};
use serde::Serialize;
use vdisk::chain::ParentSearch;
use vmm::description::{self, Description, DiskEntry};
use vmm::virtio::VirtioDevice;
use vmm::virtio::block::Block;
use vmm::virtio::rng::Rng;
use vmm::{Devices, Exit as End, MachineConfig};

use self::network::{Networked, Shown};
use super::booting::{self, Booting};
use crate::args::RunArgs;
use crate::commands::confinement;
use crate::console::Console;
use crate::control::machine::console::ConsoleState;
use crate::control::machine::disks::{MachineDisk, RemoveDisk};
use crate::control::machine::statistics::MachineStatistics;
use crate::control::machine::{Life, MachineControl, MachineState};
use crate::control::service::{Controlled, Sockets};
use crate::control::{Control, place};
use crate::failure::{Exit, Failure, Result};
use crate::plan::{Machine, disk_format};
use crate::report::Report;
use crate::saved::restore::{self, Restore};
use crate::saved::take::{Taken, Wanted};
use crate::site::disk::Opened;
use crate::site::source::Site;
use crate::{interrupt, limits, site, size};

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
    /// `power_off`, `crash`, `stopped` or `reset_failed`.
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
    limits::raise_open_files();
    let restore = args.saved.restore.as_deref();
    let restore = restore.map(|from| Restore::prepare(from, &plan.vm, args.saved.discard_disks));
    let mut restore = restore.transpose()?;
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let opened = plan.vm.disks.iter().map(|disk| open(disk, &plan.search));
    let opened: Vec<Opened> = opened.collect::<Result<_>>()?;
    // Before any other thread is there.
    confinement::begin(args, &plan, &opened)?;
    interrupt::listen();
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
    let ended = live(args, (&plan, restore.as_mut()), (&site, disks), report);
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
    (plan, mut restore): (&Machine, Option<&mut Restore>),
    (site, disks): (&Arc<Site>, Vec<Attached>),
    report: Report,
) -> Result<(Ended, Result<End>)> {
    let made = (plan, restore.as_deref_mut());
    let guest = Guest::new(args, made, (site, disks), report)?;
    let guest = Arc::new(guest);
    if let Some(restore) = restore {
        restore.started(&guest.machine(), report)?;
    }
    let watched = Arc::downgrade(&guest);
    site.when_resized(Box::new(move |disk| {
        if let Some(guest) = watched.upgrade() {
            guest.resized(disk);
        }
    }));
    let ended = controlled(site, &guest, plan).and_then(|_control| guest.live(plan, report));
    restore::leave(&guest.machine(), report);
    guest.machine().stop();
    let heard = guest.console.close() || report.is_json();
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

/// The machine as this process has it: made anew when the guest asks for a reset.
struct Guest {
    described: PathBuf,
    vm: Description,
    booting: Mutex<Booting>,
    console: Console,
    networks: Vec<Networked>,
    site: Arc<Site>,
    /// Where parents of disks that come later are looked for.
    search: ParentSearch,
    /// Where it is controlled.
    sockets: OnceLock<Weak<Sockets>>,
    now: Mutex<Now>,
    /// It has begun anew, or has ended.
    turned: Condvar,
}

struct Now {
    machine: Arc<vmm::Machine>,
    life: Life,
    disks: Vec<Attached>,
    /// How often it began anew.
    resets: u64,
}

impl Guest {
    fn new(
        args: &RunArgs,
        (plan, restore): (&Machine, Option<&mut Restore>),
        (site, mut disks): (&Arc<Site>, Vec<Attached>),
        report: Report,
    ) -> Result<Self> {
        let export = |place: usize| disks.get(place).map(|disk| disk.export.clone());
        let booting = Booting::new(plan, export, report)?;
        let saved = restore
            .as_ref()
            .map_or(&[][..], |restore| restore.networks());
        let networks = Networked::open(&args.machine, &plan.vm.networks, saved)?;
        place::make_folder()?;
        let attach = place::console_of(&args.machine)?;
        let console = Console::open(&plan.vm.console, &attach, report.is_json())?;
        let devices = devices((&mut disks, &networks), console.output());
        let machine = match restore {
            None => made(booting.config(), devices)?,
            Some(restore) => started(restore.machine(booting.config(), devices)?)?,
        };
        Ok(Self {
            described: args.machine.clone(),
            vm: plan.vm.clone(),
            booting: Mutex::new(booting),
            console,
            networks,
            site: Arc::clone(site),
            search: plan.search.clone(),
            sockets: OnceLock::new(),
            now: Mutex::new(Now {
                machine: Arc::new(machine),
                life: Life::Running,
                disks,
                resets: 0,
            }),
            turned: Condvar::new(),
        })
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn booting(&self) -> MutexGuard<'_, Booting> {
        self.booting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sockets(&self) -> Option<Arc<Sockets>> {
        self.sockets.get()?.upgrade()
    }

    fn over(&self) -> Failure {
        Failure::usage(format!(
            "{}: the machine has ended",
            self.described.display()
        ))
    }

    fn machine(&self) -> Arc<vmm::Machine> {
        Arc::clone(&self.now().machine)
    }

    /// From its first start to the end, through every reset.
    fn live(self: &Arc<Self>, plan: &Machine, report: Report) -> Result<(Ended, Result<End>)> {
        self.announce(plan, report)?;
        let watched = Arc::clone(self);
        let stopping = thread::Builder::new().name("stop".into()).spawn(move || {
            interrupt::wait();
            watched.end();
        });
        stopping.map_err(|e| Failure::io("no thread that waits for signals", &e))?;
        let typed = Arc::clone(self);
        let _raw = self.console.feed(move |typed_in| {
            if let Some(bytes) = typed_in {
                return typed.machine().serial_input(bytes);
            }
            typed.end();
            0
        })?;
        loop {
            let end = match self.machine().wait() {
                End::Reset => match self.again() {
                    Ok(true) => continue,
                    // It was ended from outside before it could begin anew.
                    Ok(false) => Ok(End::Stopped),
                    Err(why) => Err(why),
                },
                end => Ok(end),
            };
            return Ok((self.ended(&end), end));
        }
    }

    fn announce(&self, plan: &Machine, report: Report) -> Result<()> {
        let running = Running {
            machine: self.described.clone(),
            vcpus: plan.vm.vcpus,
            memory: plan.vm.memory,
            disks: plan.vm.disks.iter().map(|disk| disk.name.clone()).collect(),
            networks: self.networks.iter().map(Networked::shown).collect(),
            pid: std::process::id(),
            tsc_khz: self.machine().tsc_khz(),
            terminal: self.console.terminal().map(str::to_owned),
        };
        let terminal = self.console.terminal();
        let people = format!(
            "running {}: {} processors, {} of memory{}",
            self.described.display(),
            plan.vm.vcpus,
            size::show(plan.vm.memory),
            terminal.map_or_else(String::new, |name| format!(", console on {name}"))
        );
        // The console may be on stdout.
        if report.is_json() || plan.vm.console != description::Console::Stdio {
            report.event("running", &running, &people)?;
        }
        Ok(())
    }

    /// Begin anew after a reset, unless it was ended meanwhile. Whoever asks while the disk is read is answered.
    fn again(&self) -> Result<bool> {
        // Its devices let go of the disks first.
        self.machine().stop();
        let mut booting = self.booting();
        let read = booting.again();
        let mut now = self.now();
        if now.life == Life::Ended {
            return Ok(false);
        }
        let made = read.and_then(|()| {
            let devices = (&mut now.disks[..], &self.networks[..]);
            made(
                booting.config(),
                self::devices(devices, self.console.output()),
            )
        });
        let began = made.map(|machine| now.machine = Arc::new(machine));
        if began.is_ok() {
            now.life = Life::Running;
            now.resets += 1;
        } else {
            now.life = Life::Ended;
        }
        self.turned.notify_all();
        began.map(|()| true)
    }

    fn end(&self) {
        let mut now = self.now();
        now.life = Life::Ended;
        let machine = Arc::clone(&now.machine);
        drop(now);
        self.turned.notify_all();
        machine.stop();
    }

    fn ended(&self, end: &Result<End>) -> Ended {
        let mut now = self.now();
        now.life = Life::Ended;
        self.turned.notify_all();
        let (end, code) = match end {
            Ok(End::PowerOff(code)) => ("power_off", Some(*code)),
            Ok(End::Stopped) => ("stopped", None),
            Ok(_) => ("crash", None),
            Err(_) => ("reset_failed", None),
        };
        Ended {
            machine: self.described.clone(),
            end,
            code,
            resets: now.resets,
            heard: true,
        }
    }

    /// A disk has another size: its driver is told.
    fn resized(&self, disk: &str) {
        let now = self.now();
        let resized = now.disks.iter().find(|one| one.export.name() == disk);
        if let Some(resized) = resized {
            now.machine.config_changed(resized.slot);
        }
    }

    /// Do something to the machine as it is, unless it has ended.
    fn change(&self, life: Life, change: impl FnOnce(&vmm::Machine)) -> Result<MachineState> {
        let mut now = self.now();
        if now.life == Life::Ended || now.machine.exit().is_some() {
            return Err(self.over());
        }
        if now.life == Life::Saving {
            return Err(self.saving());
        }
        change(&now.machine);
        now.life = life;
        drop(now);
        Ok(self.state())
    }
}

impl MachineControl for Guest {
    fn state(&self) -> MachineState {
        MachineState {
            machine: self.described.display().to_string(),
            state: self.now().life,
            vcpus: self.vm.vcpus,
            memory: self.vm.memory,
            pid: std::process::id(),
            confinement: confinement::state(),
        }
    }

    fn pause(&self) -> Result<MachineState> {
        self.change(Life::Paused, vmm::Machine::pause)
    }

    fn resume(&self) -> Result<MachineState> {
        self.change(Life::Running, vmm::Machine::resume)
    }

    fn power_off(&self) -> Result<MachineState> {
        self.end();
        Ok(self.state())
    }

    fn shutdown(&self) -> Result<MachineState> {
        let now = self.now();
        match now.life {
            Life::Ended => return Err(self.over()),
            Life::Paused => {
                let what = format!(
                    "{}: is paused and would not notice",
                    self.described.display()
                );
                return Err(Failure::usage(what).hint("resume it first"));
            }
            Life::Saving => return Err(self.saving()),
            Life::Running => now.machine.power_button(),
        }
        drop(now);
        Ok(self.state())
    }

    fn reset(&self) -> Result<MachineState> {
        let now = self.now();
        match now.life {
            Life::Ended => return Err(self.over()),
            Life::Saving => return Err(self.saving()),
            Life::Running | Life::Paused => {}
        }
        let before = now.resets;
        now.machine.reset();
        let waits = |now: &mut Now| now.resets == before && now.life != Life::Ended;
        let waited = self.turned.wait_while(now, waits);
        let now = waited.unwrap_or_else(PoisonError::into_inner);
        if now.resets == before {
            let what = format!(
                "{}: did not begin anew, and has ended",
                self.described.display()
            );
            return Err(Failure::new(Exit::Failed, what));
        }
        drop(now);
        Ok(self.state())
    }

    fn console(&self) -> Result<ConsoleState> {
        let socket = place::console_of(&self.described)?;
        Ok(ConsoleState {
            socket: socket.display().to_string(),
            terminal: self.console.terminal().map(str::to_owned),
        })
    }

    fn disks(&self) -> Vec<MachineDisk> {
        self.machine_disks()
    }

    fn add_disk(&self, disk: &DiskEntry) -> Result<MachineDisk> {
        self.plug(disk)
    }

    fn remove_disk(&self, name: &str, how: RemoveDisk) -> Result<MachineDisk> {
        self.unplug(name, how)
    }

    fn statistics(&self) -> Result<MachineStatistics> {
        self.counted()
    }

    fn snapshot(&self, wanted: &Wanted) -> Result<Taken> {
        self.keep(wanted)
    }
}

/// The disks in their order, then the networks, then a source of entropy.
fn devices((disks, networks): (&mut [Attached], &[Networked]), serial: vmm::Output) -> Devices {
    let mut virtio: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (slot, disk) in (1..).zip(disks) {
        disk.slot = slot;
        let block = Block::new(disk.export.clone(), disk.queues);
        virtio.push(Box::new(block));
    }
    virtio.extend(networks.iter().map(Networked::device));
    virtio.push(Box::new(Rng::default()));
    Devices { serial, virtio }
}

/// A machine that runs, from its kernel.
fn made(config: &MachineConfig, devices: Devices) -> Result<vmm::Machine> {
    started(vmm::Machine::new(config, devices).map_err(|error| cannot(&error))?)
}

fn started(mut machine: vmm::Machine) -> Result<vmm::Machine> {
    machine.start().map_err(|error| cannot(&error))?;
    Ok(machine)
}
