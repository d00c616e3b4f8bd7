//! `diskferry run`: a machine and its disks in one process, in the foreground.
//!
//! The disks are those of a `serve` without clients: whatever can be done to a served disk can be done to a
//! machine's, by the same control socket, while it runs.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use blockserver::export::{ExportHandle, ExportOptions};
use blockserver::server::{Server, ServerConfig};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use vmm::description::{self, Console, Kernel};
use vmm::virtio::VirtioDevice;
use vmm::virtio::block::Block;
use vmm::virtio::rng::Rng;
use vmm::{Devices, Exit as End, MachineConfig};

use crate::args::RunArgs;
use crate::commands::confinement;
use crate::console;
use crate::control::machine::{Life, MachineControl, MachineState};
use crate::control::service::Controlled;
use crate::control::{Control, place};
use crate::failure::{Exit, Failure, Result};
use crate::plan::{Machine, disk_format};
use crate::report::Report;
use crate::site::disk::Opened;
use crate::site::source::Site;
use crate::{interrupt, limits, site, size};

#[derive(Serialize)]
struct Running {
    machine: PathBuf,
    vcpus: u8,
    memory: u64,
    disks: Vec<String>,
    pid: u32,
    /// Ticks of the guest's time stamp counter in a millisecond.
    #[serde(skip_serializing_if = "Option::is_none")]
    tsc_khz: Option<u32>,
}

#[derive(Serialize)]
struct Ended {
    machine: PathBuf,
    /// `power_off`, `crash` or `stopped`.
    end: &'static str,
    /// What the guest switched off with.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u8>,
    /// How often it began anew.
    resets: u64,
}

/// A disk and its export.
struct Attached {
    export: ExportHandle,
    queues: u8,
}

pub(crate) fn run(args: &RunArgs, report: Report) -> Result<()> {
    let plan = Machine::new(args)?;
    limits::raise_open_files();
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let opened = plan.vm.disks.iter().map(|disk| open(disk, &plan));
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
    let mut site = Site::new(&server);
    let mut disks = Vec::new();
    for (disk, opened) in plan.vm.disks.iter().zip(opened) {
        disks.push(add(&mut site, disk, (opened, &plan))?);
    }
    let site = Arc::new(site);
    let ended = live(args, &plan, (&site, disks), report);
    site.stop();
    let closed = server.stop();
    site.unlock();
    closed.map_err(|e| Failure::io("a disk could not be closed cleanly", &e))?;
    let (ended, end) = ended?;
    report.event(
        "summary",
        &ended,
        &format!("{}: {end}", args.machine.display()),
    )?;
    match end {
        End::PowerOff(0) | End::Stopped => Ok(()),
        end => Err(Failure::new(Exit::Failed, end.to_string())),
    }
}

/// From the machine's first start to its end. Afterwards it touches its disks no more, however it went.
fn live(
    args: &RunArgs,
    plan: &Machine,
    (site, disks): (&Arc<Site>, Vec<Attached>),
    report: Report,
) -> Result<(Ended, End)> {
    let guest = Arc::new(Guest::new(args, plan, disks, report.is_json())?);
    let watched = Arc::downgrade(&guest);
    site.when_resized(Box::new(move |disk| {
        if let Some(guest) = watched.upgrade() {
            guest.resized(disk);
        }
    }));
    let ended = controlled(site, &guest, plan).and_then(|_control| guest.live(plan, report));
    guest.machine().stop();
    ended
}

fn open(disk: &description::Disk, plan: &Machine) -> Result<Opened> {
    let format = disk.format.map(disk_format);
    site::disk::open(&disk.path, format, disk.read_only, &plan.search)
}

/// Makes a disk an export.
fn add(
    site: &mut Site,
    disk: &description::Disk,
    (opened, plan): (Opened, &Machine),
) -> Result<Attached> {
    let options = ExportOptions {
        read_only: disk.read_only,
        description: disk.path.display().to_string(),
        ..ExportOptions::default()
    };
    let export = site.add(&disk.name, opened, (options, plan.take_over))?;
    Ok(Attached {
        export,
        queues: disk.queues,
    })
}

/// Listens for control: where the machine and every disk that it changes are looked for, and where it was
/// asked to.
fn controlled(site: &Arc<Site>, guest: &Arc<Guest>, plan: &Machine) -> Result<Controlled> {
    let mut paths = plan.control.clone();
    place::make_folder()?;
    paths.push(place::socket_of(&guest.described)?);
    for disk in plan.vm.disks.iter().filter(|disk| !disk.read_only) {
        paths.push(place::socket_of(&disk.path)?);
    }
    let control: Arc<dyn Control> = site.clone();
    let machine: Arc<dyn MachineControl> = guest.clone();
    Controlled::start(&control, Some(&machine), paths)
}

pub(super) fn cannot(error: &vmm::Error) -> Failure {
    use vmm::ErrorKind;
    let exit = match error.kind() {
        ErrorKind::InvalidArgument | ErrorKind::BadKernel => Exit::Usage,
        ErrorKind::Unsupported => Exit::Unsupported,
        _ => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}

/// The machine as this process has it: made anew when the guest asks for a reset.
struct Guest {
    described: PathBuf,
    config: MachineConfig,
    console: Console,
    /// Whether stdout is for JSON.
    json: bool,
    disks: Vec<Attached>,
    /// Keeps the kernel that is built in.
    _kernel: Option<OwnedFd>,
    now: Mutex<Now>,
}

struct Now {
    machine: Arc<vmm::Machine>,
    life: Life,
}

impl Guest {
    fn new(args: &RunArgs, plan: &Machine, disks: Vec<Attached>, json: bool) -> Result<Self> {
        let (kernel, held) = match &plan.vm.boot.kernel {
            Kernel::File(path) => (path.clone(), None),
            Kernel::BuiltIn => {
                let held = built_in().map_err(|e| Failure::io("no memory for the guest", &e))?;
                let path = format!("/proc/self/fd/{}", held.as_raw_fd());
                (path.into(), Some(held))
            }
        };
        let config = MachineConfig {
            vcpus: plan.vm.vcpus,
            memory: plan.vm.memory,
            huge_pages: plan.vm.huge_pages,
            kernel,
            cmdline: plan.vm.boot.command_line.clone(),
            initrd: plan.vm.boot.initrd.clone(),
        };
        let machine = made(
            &config,
            &disks,
            console::output(&plan.vm.console, json, true)?,
        )?;
        Ok(Self {
            described: args.machine.clone(),
            config,
            console: plan.vm.console.clone(),
            json,
            disks,
            _kernel: held,
            now: Mutex::new(Now {
                machine: Arc::new(machine),
                life: Life::Running,
            }),
        })
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self) -> Arc<vmm::Machine> {
        Arc::clone(&self.now().machine)
    }

    /// From its first start to the end, through every reset.
    fn live(self: &Arc<Self>, plan: &Machine, report: Report) -> Result<(Ended, End)> {
        self.announce(plan, report)?;
        let watched = Arc::clone(self);
        let stopping = thread::Builder::new().name("stop".into()).spawn(move || {
            interrupt::wait();
            watched.end();
        });
        stopping.map_err(|e| Failure::io("no thread that waits for signals", &e))?;
        let typed = Arc::clone(self);
        let _raw = console::feed(&plan.vm.console, move |typed_in| {
            if let Some(bytes) = typed_in {
                return typed.machine().serial_input(bytes);
            }
            typed.end();
            0
        })?;
        let mut resets = 0;
        loop {
            let end = self.machine().wait();
            if end != End::Reset || !self.again()? {
                return Ok((self.ended(resets, &end), end));
            }
            resets += 1;
        }
    }

    fn announce(&self, plan: &Machine, report: Report) -> Result<()> {
        let running = Running {
            machine: self.described.clone(),
            vcpus: plan.vm.vcpus,
            memory: plan.vm.memory,
            disks: plan.vm.disks.iter().map(|disk| disk.name.clone()).collect(),
            pid: std::process::id(),
            tsc_khz: self.machine().tsc_khz(),
        };
        let people = format!(
            "running {}: {} processors, {} of memory",
            self.described.display(),
            plan.vm.vcpus,
            size::show(plan.vm.memory)
        );
        // The console may be on stdout.
        if report.is_json() || plan.vm.console != Console::Stdio {
            report.event("running", &running, &people)?;
        }
        Ok(())
    }

    /// Begin anew after a reset, unless it was ended meanwhile.
    fn again(&self) -> Result<bool> {
        let mut now = self.now();
        if now.life == Life::Ended {
            return Ok(false);
        }
        // Its devices let go of the disks first.
        now.machine.stop();
        let output = console::output(&self.console, self.json, false)?;
        now.machine = Arc::new(made(&self.config, &self.disks, output)?);
        now.life = Life::Running;
        Ok(true)
    }

    fn end(&self) {
        let mut now = self.now();
        now.life = Life::Ended;
        let machine = Arc::clone(&now.machine);
        drop(now);
        machine.stop();
    }

    fn ended(&self, resets: u64, end: &End) -> Ended {
        self.now().life = Life::Ended;
        let (end, code) = match end {
            End::PowerOff(code) => ("power_off", Some(*code)),
            End::Stopped => ("stopped", None),
            _ => ("crash", None),
        };
        Ended {
            machine: self.described.clone(),
            end,
            code,
            resets,
        }
    }

    /// A disk has another size: its driver is told.
    fn resized(&self, disk: &str) {
        let place = self.disks.iter().position(|one| one.export.name() == disk);
        if let Some(place) = place {
            self.machine().config_changed(place);
        }
    }

    /// Do something to the machine as it is, unless it has ended.
    fn change(&self, life: Life, change: impl FnOnce(&vmm::Machine)) -> Result<MachineState> {
        let mut now = self.now();
        if now.life == Life::Ended || now.machine.exit().is_some() {
            let what = format!("{}: the machine has ended", self.described.display());
            return Err(Failure::usage(what));
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
            vcpus: self.config.vcpus,
            memory: self.config.memory,
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
}

/// A machine that runs, with the disks in their order, then a source of entropy.
fn made(config: &MachineConfig, disks: &[Attached], serial: vmm::Output) -> Result<vmm::Machine> {
    let mut virtio: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for disk in disks {
        let block = Block::new(disk.export.clone(), disk.queues);
        virtio.push(Box::new(block));
    }
    virtio.push(Box::new(Rng::default()));
    let machine = vmm::Machine::new(config, Devices { serial, virtio });
    let mut machine = machine.map_err(|error| cannot(&error))?;
    machine.start().map_err(|error| cannot(&error))?;
    Ok(machine)
}

/// The guest that is built in, as a file.
fn built_in() -> std::io::Result<OwnedFd> {
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(vmm::guest::IMAGE)?;
    Ok(file.into())
}
