//! A machine as the process of `run` has it, from its first start to its end, and what it is asked while it runs.
//!
//! Disks that come and go are in `plug`, snapshots in `keeping`, what it has done in `counted`.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;

use vdisk::chain::ParentSearch;
use vmm::description::{self, Description, DiskEntry};
use vmm::text::Text;
use vmm::virtio::VirtioDevice;
use vmm::virtio::block::Block;
use vmm::virtio::rng::Rng;
use vmm::{Devices, Exit as End, MachineConfig};

use super::held::{Held, Status};
use super::moving::Moves;
use super::network::Networked;
use super::{Attached, Ended, Running, cannot};
use crate::args::RunArgs;
use crate::commands::booting::Booting;
use crate::commands::confinement;
use crate::console::Console;
use crate::control::machine::console::ConsoleState;
use crate::control::machine::disks::{MachineDisk, RemoveDisk};
use crate::control::machine::statistics::MachineStatistics;
use crate::control::machine::{Life, MachineControl, MachineState};
use crate::control::place;
use crate::control::service::Sockets;
use crate::failure::{Exit, Failure, Result};
use crate::moving::source::{MoveState, MoveTo, Moved};
use crate::plan::Machine;
use crate::report::Report;
use crate::saved::restore::Restore;
use crate::saved::take::{Taken, Wanted};
use crate::site::source::Site;
use crate::{interrupt, size};

/// The machine as this process has it: made anew when the guest asks for a reset.
pub(super) struct Guest {
    pub(super) described: PathBuf,
    pub(super) vm: Description,
    pub(super) booting: Mutex<Booting>,
    pub(super) console: Console,
    pub(super) networks: Vec<Networked>,
    pub(super) status: Status,
    pub(super) site: Arc<Site>,
    /// Where parents of disks that come later are looked for.
    pub(super) search: ParentSearch,
    /// Where it is controlled.
    pub(super) sockets: OnceLock<Weak<Sockets>>,
    pub(super) now: Mutex<Now>,
    /// It has begun anew, or has ended.
    pub(super) turned: Condvar,
    pub(super) moves: Moves,
}

pub(super) struct Now {
    pub(super) machine: Arc<vmm::Machine>,
    pub(super) life: Life,
    pub(super) disks: Vec<Attached>,
    /// How often it began anew.
    pub(super) resets: u64,
}

impl Guest {
    pub(super) fn new(
        args: &RunArgs,
        (plan, restore): (&Machine, Option<&mut Restore>),
        (site, mut disks, held): (&Arc<Site>, Vec<Attached>, Held),
        report: Report,
    ) -> Result<Self> {
        let export = |place: usize| disks.get(place).map(|disk| disk.export.clone());
        let booting = Booting::new(plan, export, report)?;
        let networks = held.networks;
        place::make_folder()?;
        let attach = place::console_of(&args.machine)?;
        let console = Console::open((&plan.vm.console, held.console), &attach, report.is_json())?;
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
            status: held.status,
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
            moves: Moves::default(),
        })
    }

    pub(super) fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn booting(&self) -> MutexGuard<'_, Booting> {
        self.booting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sockets(&self) -> Option<Arc<Sockets>> {
        self.sockets.get()?.upgrade()
    }

    pub(super) fn over(&self) -> Failure {
        Failure::usage(format!(
            "{}: the machine has ended",
            self.described.display()
        ))
    }

    pub(super) fn machine(&self) -> Arc<vmm::Machine> {
        Arc::clone(&self.now().machine)
    }

    /// From its first start to the end, through every reset.
    pub(super) fn live(
        self: &Arc<Self>,
        plan: &Machine,
        text: Text,
        report: Report,
    ) -> Result<(Ended, Result<End>)> {
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
        text.let_go();
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

    pub(super) fn end(&self) {
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
            Ok(End::Stopped) if self.moves.moved() => ("moved", None),
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
    pub(super) fn resized(&self, disk: &str) {
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

    fn move_to(&self, to: &MoveTo) -> Result<Moved> {
        self.go(to)
    }

    fn moving(&self) -> Result<MoveState> {
        self.moves.state()
    }

    fn cancel_move(&self) -> Result<MoveState> {
        self.moves.cancel()
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
