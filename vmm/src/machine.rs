//! A machine: memory, processors and devices put together, and what can be asked of it.
//!
//! Driver. Nothing of a guest runs before [`Machine::start`] and after [`Machine::wait`] has returned.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockserver::virtio::QueueState;

use crate::boot;
use crate::bus::Bus;
use crate::devices::{Output, PowerOffPort, ResetPort, SerialPort};
use crate::kvm::{Event, Host, Vcpu, Vm};
use crate::layout::{self, PCI_WINDOW};
use crate::memory::Memory;
use crate::pci::{ConfigPorts, Ecam, HostBridge, PciBus, SLOTS, Window};
use crate::threads;
use crate::vcpus::Control;
use crate::virtio::VirtioDevice;
use crate::virtio::pci::{BAR_BYTES, VirtioFunction};
use crate::wiring::KvmWires;
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

/// Queues of a device: doorbells and vectors of so many have room behind its base address.
const MOST_QUEUES: usize = 255;

type SharedFunction = Arc<Mutex<VirtioFunction>>;

/// A machine.
#[derive(Debug)]
pub struct Machine {
    memory: Memory,
    vcpus: Arc<[Mutex<Vcpu>]>,
    control: Arc<Control>,
    bus: Arc<Bus>,
    serial: Arc<SerialPort>,
    functions: Vec<SharedFunction>,
    tsc_khz: Option<u32>,
    started: bool,
}

fn lock(function: &SharedFunction) -> MutexGuard<'_, VirtioFunction> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    /// Make a machine and load its kernel. Nothing runs yet.
    pub fn new(config: &MachineConfig, devices: Devices) -> Result<Self> {
        threads::begin()?;
        let host = Host::open()?;
        if config.vcpus == 0 || usize::from(config.vcpus) > host.max_vcpus() {
            let what = format!(
                "a machine has 1 to 255 processors, and this host allows {}",
                host.max_vcpus()
            );
            return Err(Error::invalid(what));
        }
        let memory = Memory::new(config.memory, config.huge_pages)?;
        let vm = Arc::new(host.vm(&memory)?);
        let vcpus: Vec<Vcpu> = (0..config.vcpus)
            .map(|index| vm.vcpu(index))
            .collect::<Result<_>>()?;
        let kernel = boot::Boot {
            kernel: &config.kernel,
            cmdline: &config.cmdline,
            initrd: config.initrd.as_deref(),
        };
        let entry = boot::load(&memory, &kernel, host.gigabyte_pages())?;
        for (index, vcpu) in (0..config.vcpus).zip(&vcpus) {
            let cpuid = host.cpuid(index, config.vcpus);
            vcpu.prepare(&cpuid, &entry.start(index, config.vcpus))?;
        }
        let tsc_khz = vcpus.first().and_then(Vcpu::tsc_khz);
        let control = Arc::new(Control::new(&vcpus));
        let mut bus = Bus::default();
        let serial = attach_ports(&mut bus, &vm, &control, devices.serial)?;
        let functions = attach_functions(&mut bus, &vm, &memory, devices.virtio)?;
        Ok(Self {
            memory,
            vcpus: vcpus.into_iter().map(Mutex::new).collect(),
            control,
            bus: Arc::new(bus),
            serial,
            functions,
            tsc_khz,
            started: false,
        })
    }

    /// Let the processors run, for the first time.
    pub fn start(&mut self) -> Result<()> {
        if self.started {
            return Err(Error::invalid("this machine was started already"));
        }
        self.started = true;
        self.control.start(&self.vcpus, &self.bus)
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
        self.functions
            .iter()
            .map(|function| lock(function).stop())
            .collect()
    }

    /// Let devices go on that [`Self::stop_devices`] has stopped.
    pub fn resume_devices(&self) {
        for function in &self.functions {
            lock(function).go_on();
        }
    }

    /// The configuration of a virtio device, by its place in [`Devices::virtio`], has changed: its driver
    /// is told.
    pub fn config_changed(&self, device: usize) {
        if let Some(function) = self.functions.get(device) {
            lock(function).config_changed();
        }
    }

    /// Give the serial port bytes; says how many it took. The rest is to be offered again.
    #[must_use]
    pub fn serial_input(&self, bytes: &[u8]) -> usize {
        self.serial.input(bytes)
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
        for function in &self.functions {
            lock(function).stop();
        }
    }

    /// Ticks of the processors' time stamp counters in a millisecond, where KVM says that.
    #[must_use]
    pub fn tsc_khz(&self) -> Option<u32> {
        self.tsc_khz
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

/// The serial port and the ports that end the machine.
fn attach_ports(
    bus: &mut Bus,
    vm: &Arc<Vm>,
    control: &Arc<Control>,
    output: Output,
) -> Result<Arc<SerialPort>> {
    let line =
        Event::new().map_err(|error| Error::host("no eventfd for the serial port", error))?;
    vm.connect(&line, layout::SERIAL_IRQ)?;
    let interrupt = move || {
        if let Err(error) = line.ring() {
            tracing::error!(%error, "an interrupt of the serial port is lost");
        }
    };
    let serial = Arc::new(SerialPort::new(output, Box::new(interrupt)));
    bus.ports.add(layout::SERIAL, serial.clone());
    let ending = || {
        let control = Arc::clone(control);
        Box::new(move |exit| control.end(exit))
    };
    bus.ports.add(layout::RESET, Arc::new(ResetPort(ending())));
    bus.ports
        .add(layout::POWER_OFF, Arc::new(PowerOffPort(ending())));
    Ok(serial)
}

/// PCI with the host bridge and the virtio devices.
fn attach_functions(
    bus: &mut Bus,
    vm: &Arc<Vm>,
    memory: &Memory,
    devices: Vec<Box<dyn VirtioDevice>>,
) -> Result<Vec<SharedFunction>> {
    if devices.len() >= SLOTS {
        return Err(Error::invalid(format!(
            "a machine has at most {} virtio devices",
            SLOTS - 1
        )));
    }
    let pci = Arc::new(PciBus::new(PCI_WINDOW));
    pci.insert(0, &(Arc::new(Mutex::new(HostBridge::new())) as _));
    let mut functions = Vec::new();
    for (slot, device) in (1..).zip(devices) {
        if device.queues().len() > MOST_QUEUES {
            let what = format!("a virtio device has at most {MOST_QUEUES} queues");
            return Err(Error::invalid(what));
        }
        let wires = KvmWires::new(Arc::clone(vm), device.queues().len(), PCI_WINDOW)
            .map_err(|error| Error::host("no eventfds for a virtio device", error))?;
        let address = PCI_WINDOW.start + slot as u64 * BAR_BYTES;
        let function =
            VirtioFunction::new(device, Box::new(wires), memory.guest().clone(), address);
        let function = Arc::new(Mutex::new(function));
        pci.insert(slot, &(function.clone() as _));
        functions.push(function);
    }
    bus.ports.add(
        layout::PCI_PORTS,
        Arc::new(ConfigPorts::new(Arc::clone(&pci))),
    );
    bus.memory
        .add(layout::ECAM, Arc::new(Ecam(Arc::clone(&pci))));
    bus.memory.add(PCI_WINDOW, Arc::new(Window(pci)));
    Ok(functions)
}
