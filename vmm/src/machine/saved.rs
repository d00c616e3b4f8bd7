//! A machine's state is taken, and a machine is made of one.
//!
//! Driver. Taking it changes nothing: the machine can go on. What a state says is checked against the host, the
//! memory and the devices; a machine that cannot be as it was is not made.

use std::sync::{PoisonError, TryLockError};

use super::{Devices, Machine, MachineConfig, check_vcpus, lock};
use crate::kvm::{Host, TscBase};
use crate::memory::Memory;
use crate::snapshot::{Function, HostFacts, MachineState, Processor, Shape};
use crate::virtio::VirtioDevice;
use crate::{Error, Result};

/// What this host is to machines: what [`HostFacts::carries`] is asked of. Makes a machine to ask and takes it away,
/// which is slow on some hosts.
pub fn host_facts() -> Result<HostFacts> {
    let host = Host::open()?;
    let memory = Memory::new(crate::memory::MEMORY_BYTES.start, false)?;
    let vcpu = host.vm(&memory)?.vcpu(0)?;
    Ok(host.facts(Some(&vcpu)))
}

/// A part of a machine that is not as it was.
fn misfit(part: impl std::fmt::Display, why: impl std::fmt::Display) -> Error {
    Error::mismatch(format!("the machine cannot be restored: {part}: {why}"))
}

impl Machine {
    /// The state of this machine, which has to be paused and its devices stopped ([`Self::pause`],
    /// [`Self::stop_devices`]); also of one that has not started. Memory and disks are the caller's.
    ///
    /// The machine can go on afterwards, or be saved again.
    pub fn save(&self) -> Result<MachineState> {
        let runs = || Error::invalid("a machine is saved while it is paused, and this one is not");
        if self.control.exit().is_some() {
            return Err(Error::invalid("this machine has ended"));
        }
        if !self.control.stands_still() {
            return Err(runs());
        }
        // With these held no processor begins to run, whoever lets it.
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        for vcpu in self.vcpus.iter() {
            match vcpu.try_lock() {
                Ok(vcpu) => vcpus.push(vcpu),
                Err(TryLockError::Poisoned(vcpu)) => vcpus.push(vcpu.into_inner()),
                Err(TryLockError::WouldBlock) => return Err(runs()),
            }
        }
        // Devices first: what they have signalled has then arrived at the interrupt controllers. What comes to them
        // meanwhile is not in the state, neither it nor its signal; a signal alone does no harm.
        let functions = self.save_functions()?;
        let (serial, events) = (self.serial.save(), self.slots.events().save());
        let pci = self.slots.pci().save();
        self.vm.settle_lines()?;
        let clock = self.vm.clock()?;
        let processors: Result<Vec<Processor>> = vcpus.iter().map(|vcpu| vcpu.save()).collect();
        Ok(MachineState {
            host: self.host.clone(),
            shape: Shape::of(self.vcpus.len() as u16, self.memory.bytes()),
            clock,
            processors: processors?,
            chips: self.vm.chips()?,
            pit: self.vm.pit()?,
            serial,
            events,
            pci,
            functions,
        })
    }

    fn save_functions(&self) -> Result<Vec<Function>> {
        let functions = self.slots.placed()?.into_iter();
        let saved = functions.map(|(slot, function)| {
            let mut function = lock(&function);
            let kind = function.kind();
            let what = |why: &str| {
                Error::invalid(format!(
                    "the virtio device {kind} in slot {slot} cannot be saved: {why}"
                ))
            };
            if !function.stands_still() {
                return Err(what("it is at work, and has to be stopped before"));
            }
            let saved = function.save(slot);
            saved.map_err(|why| what(&why))
        });
        saved.collect()
    }

    /// The machine that `state` is of, with its memory, before [`Self::start`]: that lets it go on.
    ///
    /// `config` says the processors and the memory that it has to have; what it says of a kernel is not used.
    /// `devices` are those that it had, in the order of their slots: the same kinds, with what the drivers use of
    /// them.
    /// KVM may write to memory meanwhile: the times that it shows a guest are there.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Mismatch`] where the host, the memory or a device is not one that the machine can go on
    /// with, and says which.
    pub fn restored(
        config: &MachineConfig,
        state: &MachineState,
        memory: Memory,
        devices: Devices,
    ) -> Result<Self> {
        let host = Host::open()?;
        check_vcpus(config, &host)?;
        check_shape(config, state, &memory)?;
        check_devices(state, &devices.virtio)?;
        let mut machine = Self::assemble(config.vcpus, memory, devices.serial, &host)?;
        for (device, saved) in devices.virtio.into_iter().zip(&state.functions) {
            machine.slots.fit_into(saved.slot, device)?;
        }
        let fits = machine.host.carries(state);
        fits.map_err(|why| misfit("this host", why))?;
        // Registers of devices before the interrupt controllers: what they raise on the way is overwritten.
        machine.restore_devices(state)?;
        machine.restore_kvm(state)?;
        if let Some(first) = state.processors.first() {
            machine.given.cpuid.clone_from(&first.cpuid);
            machine.given.tsc_khz = first.tsc.khz;
        }
        for (function, saved) in machine.slots.functions().iter().zip(&state.functions) {
            lock(function).signal_again(&saved.transport);
        }
        Ok(machine)
    }

    fn restore_devices(&self, state: &MachineState) -> Result<()> {
        let serial = self.serial.restore(&state.serial);
        serial.map_err(|why| misfit("the serial port", why))?;
        self.slots.events().restore(&state.events);
        if !self.slots.pci().restore(&state.pci) {
            return Err(misfit("PCI", "its host bridge is another one"));
        }
        for (function, saved) in self.slots.functions().iter().zip(&state.functions) {
            let restored = lock(function).restore(saved);
            restored.map_err(|why| misfit(named(saved), why))?;
            self.slots.pci().moved(usize::from(saved.slot));
        }
        self.vm.settle_lines()
    }

    fn restore_kvm(&self, state: &MachineState) -> Result<()> {
        // The clock first: the counters follow it, and processors publish it to the guest.
        let mut tsc = TscBase::new(self.vm.set_clock(&state.clock)?);
        for (vcpu, saved) in self.vcpus.iter().zip(&state.processors) {
            let mut vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
            vcpu.restore(saved, &mut tsc)?;
        }
        self.vm.set_chips(&state.chips)?;
        // Last: it begins to count, and raises its interrupt.
        self.vm.set_pit(&state.pit)
    }
}

fn named(saved: &Function) -> String {
    format!(
        "the virtio device in slot {} (kind {})",
        saved.slot,
        saved.device.kind()
    )
}

fn check_shape(config: &MachineConfig, state: &MachineState, memory: &Memory) -> Result<()> {
    let Shape {
        vcpus,
        memory: bytes,
        ..
    } = state.shape;
    if u16::from(config.vcpus) != vcpus || state.processors.len() != usize::from(config.vcpus) {
        let why = format!("it had {vcpus} processors, and shall have {}", config.vcpus);
        return Err(misfit("processors", why));
    }
    if config.memory != bytes || memory.bytes() != bytes {
        let why = format!(
            "it had {bytes} bytes, and shall have {}, of which {} are there",
            config.memory,
            memory.bytes()
        );
        return Err(misfit("memory", why));
    }
    Ok(())
}

/// As many devices, of the same kinds in the same order.
fn check_devices(state: &MachineState, devices: &[Box<dyn VirtioDevice>]) -> Result<()> {
    for at in 0..state.functions.len().max(devices.len()) {
        let (saved, here) = (state.functions.get(at), devices.get(at));
        match (saved, here) {
            (None, None) => {}
            (Some(saved), Some(here)) => {
                let (kind, was) = (here.kind(), saved.device.kind());
                if kind != was {
                    let why = format!("it is of kind {kind}, and was of kind {was}");
                    return Err(misfit(named(saved), why));
                }
            }
            (Some(saved), None) => return Err(misfit(named(saved), "there is no device for it")),
            (None, Some(here)) => {
                let part = format!("virtio device {} (kind {})", at + 1, here.kind());
                return Err(misfit(part, "the machine had no such device"));
            }
        }
    }
    Ok(())
}
