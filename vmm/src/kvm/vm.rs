//! A machine as KVM has it: memory slots, interrupt controllers, doorbells.
//!
//! Driver. What is unsafe here is that KVM is given addresses of this process; they stay valid because
//! [`Vm`] keeps the memory alive as long as its descriptor is open.

use std::sync::{Arc, Mutex, PoisonError};

use blockserver::virtio::GuestMemory;
use kvm_bindings::{
    KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};

use super::event::Event;
use super::routes::Routes;
use super::state::Abilities;
use super::vcpu::Vcpu;
use crate::layout::{IDENTITY_MAP, TASK_STATE};
use crate::memory::{Memory, Slot};
use crate::pci::Message;
use crate::{Error, Result};

/// A machine of KVM.
#[derive(Debug)]
pub(crate) struct Vm {
    fd: VmFd,
    routes: Mutex<Routes>,
    abilities: Arc<Abilities>,
    /// What raises lines of the interrupt controllers, each with its line.
    lines: Mutex<Vec<(Event, u32)>>,
    /// What the slots point to. Dropped after the descriptor.
    _memory: GuestMemory,
}

impl Vm {
    /// Give a new machine its memory and its interrupt controllers.
    pub(super) fn new(fd: VmFd, memory: &Memory, abilities: Arc<Abilities>) -> Result<Self> {
        let failed = |what: &'static str| move |error| Error::host(format!("KVM: {what}"), error);
        fd.set_identity_map_address(IDENTITY_MAP)
            .map_err(failed("no place for the identity map"))?;
        fd.set_tss_address(TASK_STATE as usize)
            .map_err(failed("no place for the task state"))?;
        fd.create_irq_chip()
            .map_err(failed("no interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        };
        fd.create_pit2(pit).map_err(failed("no interval timer"))?;
        for (slot, part) in memory.slots().into_iter().enumerate() {
            insert(&fd, slot as u32, part).map_err(failed("memory was refused"))?;
        }
        Ok(Self {
            fd,
            routes: Mutex::default(),
            abilities,
            lines: Mutex::default(),
            _memory: memory.guest().clone(),
        })
    }

    /// As `kvm-ioctls` wants it.
    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// What can be read and written of it.
    pub(super) fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    /// Make processor `index`.
    pub(crate) fn vcpu(&self, index: u8) -> Result<Vcpu> {
        let fd = self.fd.create_vcpu(u64::from(index));
        let fd =
            fd.map_err(|error| Error::host(format!("KVM cannot make processor {index}"), error))?;
        Ok(Vcpu::new(fd, index, Arc::clone(&self.abilities)))
    }

    /// A number for interrupts by message; `None` when there is none left.
    pub(crate) fn lend_number(&self) -> Option<u32> {
        self.routes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lend()
    }

    /// The number is not used any more.
    pub(crate) fn give_back_number(&self, number: u32) {
        self.routes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .give_back(number);
    }

    /// Interrupt `number` is this message from now on.
    pub(crate) fn route(&self, number: u32, message: Message) -> Result<()> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if !routes.set(number, message) {
            return Ok(());
        }
        let table = KvmIrqRouting::from_entries(&routes.entries())
            .map_err(|_| Error::invalid("too many interrupts are routed"))?;
        let told = self.fd.set_gsi_routing(&table);
        told.map_err(|error| Error::host("KVM refused the routing of interrupts", error))
    }

    /// Ringing `event` raises interrupt `number`. If it was rung already, at once.
    pub(crate) fn connect(&self, event: &Event, number: u32) -> Result<()> {
        let told = self.fd.register_irqfd(event.raw(), number);
        told.map_err(|error| {
            Error::host("KVM refused to raise interrupts by file descriptor", error)
        })
    }

    /// Ringing `event` raises this line of the interrupt controllers for as long as the machine is there.
    pub(crate) fn connect_line(&self, event: &Event, line: u32) -> Result<()> {
        let kept = event.duplicate();
        let kept = kept.map_err(|error| Error::host("no eventfd for an interrupt line", error))?;
        self.connect(event, line)?;
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push((kept, line));
        Ok(())
    }

    /// Return when each line that was rung has been raised: KVM does that on a thread of its own, and waits for
    /// it when the line is taken back.
    pub(crate) fn settle_lines(&self) -> Result<()> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        for (event, line) in lines.iter() {
            self.disconnect(event, *line)?;
            self.connect(event, *line)?;
        }
        Ok(())
    }

    /// Ringing `event` raises nothing any more; it is kept in the event.
    pub(crate) fn disconnect(&self, event: &Event, number: u32) -> Result<()> {
        let told = self.fd.unregister_irqfd(event.raw(), number);
        told.map_err(|error| Error::host("KVM cannot take back an interrupt", error))
    }

    /// A write of any width to `address` rings `event` instead of leaving the guest.
    pub(crate) fn place_doorbell(&self, event: &Event, address: u64) -> Result<()> {
        let at = IoEventAddress::Mmio(address);
        let told = self.fd.register_ioevent(event.raw(), &at, NoDatamatch);
        told.map_err(|error| Error::host(format!("KVM refused a doorbell at {address:#x}"), error))
    }

    /// Undo [`Self::place_doorbell`].
    pub(crate) fn remove_doorbell(&self, event: &Event, address: u64) -> Result<()> {
        let at = IoEventAddress::Mmio(address);
        let told = self.fd.unregister_ioevent(event.raw(), &at, NoDatamatch);
        told.map_err(|error| {
            Error::host(
                format!("KVM cannot remove a doorbell at {address:#x}"),
                error,
            )
        })
    }
}

fn insert(fd: &VmFd, slot: u32, part: Slot) -> Result<(), vmm_sys_util::errno::Error> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: part.guest,
        memory_size: part.bytes,
        userspace_addr: part.host,
    };
    // SAFETY: `part` is a whole mapping of the guest memory that the caller keeps beside this descriptor
    // until the descriptor is closed, and no other slot has its addresses.
    unsafe { fd.set_user_memory_region(region) }
}
