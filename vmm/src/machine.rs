//! A machine: memory, processors and devices put together, and what can be asked of it.
//!
//! Driver. Nothing of a guest runs before [`Machine::start`] and after [`Machine::wait`] has returned.

mod saved;

pub use saved::host_facts;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blockserver::virtio::QueueState;

use crate::boot;
use crate::bus::Bus;
use crate::devices::{Output, PanicPort, PowerOffPort, ResetPort, SerialPort, SleepPorts};
use crate::kvm::{Event, Host, Vcpu, Vm};
use crate::layout;
use crate::memory::Memory;
use crate::slots::{DeviceLeaving, Slots, lock};
use crate::snapshot::HostFacts;
use crate::statistics::Statistics;
use crate::threads;
use crate::vcpus::Control;
use crate::virtio::VirtioDevice;
use crate::{Error, Result};

/// How a machine has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// The guest switched it off, with this code.
    PowerOff(u8),
    /// The guest asked for a reset.
    Reset,
    /// The guest cannot go on: why, and where it was.
    Crash(String),
    /// It was stopped from outside.
    Stopped,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff(code) => write!(f, "the guest switched off with code {code}"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::Crash(why) => write!(f, "the guest crashed: {why}"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Processors, from 1 to 255.
    pub vcpus: u8,
    /// Bytes of memory, from 2 MiB to 1 TiB, whole pages.
    pub memory: u64,
    /// Memory in huge pages of 2 MiB, which the host must have set aside.
    pub huge_pages: bool,
    /// An ELF program or kernel, or a Linux bzImage; which, its content says.
    pub kernel: PathBuf,
    /// The command line, without NUL, below 64 KiB.
    pub cmdline: String,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
}

/// What is attached to a machine.
pub struct Devices {
    /// Where the serial port prints.
    pub serial: Output,
    /// virtio devices, on PCI from device 1 on in this order. At most 31.
    pub virtio: Vec<Box<dyn VirtioDevice>>,
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Devices")
            .field("virtio", &self.virtio)
            .finish_non_exhaustive()
    }
}

/// A machine.
#[derive(Debug)]
pub struct Machine {
    memory: Memory,
    vcpus: Arc<[Mutex<Vcpu>]>,
    control: Arc<Control>,
    bus: Arc<Bus>,
    serial: Arc<SerialPort>,
    slots: Arc<Slots>,
    started: bool,
    vm: Arc<Vm>,
    host: HostFacts,
    /// The same, as its processors were told of it.
    given: HostFacts,
}

impl Machine {
    /// Make a machine and load its kernel. Nothing runs yet.
    pub fn new(config: &MachineConfig, devices: Devices) -> Result<Self> {
        let host = Host::open()?;
        check_vcpus(config, &host)?;
        let memory = Memory::new(config.memory, config.huge_pages)?;
        let mut machine = Self::assemble(config.vcpus, memory, devices.serial, &host)?;
        for device in devices.virtio {
            machine.slots.fit(device)?;
        }
        let kernel = boot::Boot {
            kernel: &config.kernel,
            cmdline: &config.cmdline,
            initrd: config.initrd.as_deref(),
            processors: config.vcpus,
        };
        let entry = boot::load(&machine.memory, &kernel, host.gigabyte_pages())?;
        for (index, vcpu) in (0..config.vcpus).zip(machine.vcpus.iter()) {
            let cpuid = host.cpuid(index, config.vcpus);
            let mut vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
            vcpu.prepare(cpuid, &entry.start(index, config.vcpus))?;
            if index == 0 {
                machine.given.cpuid = vcpu.leaves();
            }
        }
        Ok(machine)
    }

    /// A machine without virtio devices, whose processors are as KVM makes them.
    fn assemble(vcpus: u8, memory: Memory, serial: Output, host: &Host) -> Result<Self> {
        threads::begin()?;
        let vm = Arc::new(host.vm(&memory)?);
        let vcpus: Vec<Vcpu> = (0..vcpus)
            .map(|index| vm.vcpu(index))
            .collect::<Result<_>>()?;
        let facts = host.facts(vcpus.first());
        let control = Arc::new(Control::new(&vcpus));
        let mut bus = Bus::default();
        let serial = attach_ports(&mut bus, &vm, &control, serial)?;
        let interrupt = Box::new(line(&vm, layout::EVENTS_IRQ)?);
        let slots = Slots::new(&mut bus, &vm, memory.guest(), interrupt);
        Ok(Self {
            memory,
            vcpus: vcpus.into_iter().map(Mutex::new).collect(),
            control,
            bus: Arc::new(bus),
            serial,
            slots,
            started: false,
            vm,
            given: facts.clone(),
            host: facts,
        })
    }

    /// Let the processors run, for the first time; devices of a machine that was restored go on before.
    pub fn start(&mut self) -> Result<()> {
        if self.started {
            return Err(Error::invalid("this machine was started already"));
        }
        self.started = true;
        self.resume_devices();
        self.control.start(&self.vcpus, &self.bus)?;
        let control = Arc::clone(&self.control);
        let lost =
            move |why| control.end(Exit::Crash(format!("memory that was saved is lost: {why}")));
        self.memory.when_lost(Box::new(lost));
        Ok(())
    }

    /// Return when no processor runs any more. The guest does not notice, but by the time that passes.
    /// Devices finish what they were asked, and go on to: see [`Self::stop_devices`].
    pub fn pause(&self) {
        self.control.pause();
    }

    /// Let the processors go on.
    pub fn resume(&self) {
        self.control.resume();
    }

    /// Have devices finish what they took and take nothing more, so that memory does not change; says
    /// for each device how far its queues are. For a machine that is paused.
    #[must_use]
    pub fn stop_devices(&self) -> Vec<Vec<(u16, QueueState)>> {
        self.slots.stop()
    }

    /// Let devices go on that [`Self::stop_devices`] has stopped.
    pub fn resume_devices(&self) {
        self.slots.go_on();
    }

    /// The configuration of the virtio device in a slot has changed: its driver is told. The devices that a
    /// machine was made with are in the slots from 1 on.
    pub fn config_changed(&self, slot: usize) {
        if let Some(function) = self.slots.function(slot) {
            lock(&function).config_changed();
        }
    }

    /// Put a device into a free slot, and tell the guest; says which slot.
    pub fn add_device(&self, device: Box<dyn VirtioDevice>) -> Result<usize> {
        self.slots.add(device)
    }

    /// Ask the guest to let go of the device in a slot, and wait so long until it does; then it is off the bus.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Guest`]: it did not, and the device stays.
    pub fn remove_device(&self, slot: usize, patience: Duration) -> Result<DeviceLeaving> {
        self.slots.want_back(slot, patience)
    }

    /// Pull the device in a slot out without asking: what the guest wanted of it fails or is never answered.
    pub fn pull_device(&self, slot: usize) -> Result<DeviceLeaving> {
        self.slots.pull(slot)
    }

    /// Give the serial port bytes; says how many it took. The rest is to be offered again.
    #[must_use]
    pub fn serial_input(&self, bytes: &[u8]) -> usize {
        self.serial.input(bytes)
    }

    /// Press the power button: the guest is asked to shut down, and does so or not.
    pub fn power_button(&self) {
        self.slots.events().power_button();
    }

    /// Press the reset button: the machine ends as if its guest had asked for a reset.
    pub fn reset(&self) {
        self.control.end(Exit::Reset);
    }

    /// What it has done since it started.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.control.statistics()
    }

    /// Wait until the machine has ended, and say how.
    #[must_use]
    pub fn wait(&self) -> Exit {
        self.control.wait()
    }

    /// How the machine has ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.control.exit()
    }

    /// End the machine. Returns when no processor runs and no device touches memory.
    pub fn stop(&self) {
        self.control.stop();
        self.slots.end();
    }

    /// Ticks of the processors' time stamp counters in a millisecond, where KVM says that.
    #[must_use]
    pub fn tsc_khz(&self) -> Option<u32> {
        Some(self.host.tsc_khz).filter(|khz| *khz > 0)
    }

    /// What a host has to be for this machine to go on there: ask [`HostFacts::takes`] of it.
    #[must_use]
    pub fn given(&self) -> &HostFacts {
        &self.given
    }

    /// The machine's memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// So many processors can a machine have here.
fn check_vcpus(config: &MachineConfig, host: &Host) -> Result<()> {
    if config.vcpus > 0 && usize::from(config.vcpus) <= host.max_vcpus() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a machine has 1 to 255 processors, and this host allows {}",
        host.max_vcpus()
    )))
}

/// Raises interrupt line `number` each time that it is called.
fn line(vm: &Vm, number: u32) -> Result<impl Fn() + Send + Sync + 'static> {
    let event = Event::new();
    let event = event.map_err(|error| Error::host("no eventfd for an interrupt line", error))?;
    vm.connect_line(&event, number)?;
    Ok(move || {
        if let Err(error) = event.ring() {
            tracing::error!(%error, number, "an interrupt of a device is lost");
        }
    })
}

/// The serial port and the ports that end the machine.
fn attach_ports(
    bus: &mut Bus,
    vm: &Arc<Vm>,
    control: &Arc<Control>,
    output: Output,
) -> Result<Arc<SerialPort>> {
    let interrupt = line(vm, layout::SERIAL_IRQ)?;
    let serial = Arc::new(SerialPort::new(output, Box::new(interrupt)));
    bus.ports.add(layout::SERIAL, serial.clone());
    let ending = || {
        let control = Arc::clone(control);
        Box::new(move |exit| control.end(exit))
    };
    bus.ports.add(layout::RESET, Arc::new(ResetPort(ending())));
    bus.ports
        .add(layout::POWER_OFF, Arc::new(PowerOffPort(ending())));
    bus.ports.add(layout::SLEEP, Arc::new(SleepPorts(ending())));
    bus.ports.add(layout::PANIC, Arc::new(PanicPort(ending())));
    Ok(serial)
}
