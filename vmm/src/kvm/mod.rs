//! The kernel's side of a machine: `/dev/kvm`, its machines and their vCPUs.
//!
//! Driver, and with `memory.rs` and `memory/userfault.rs` the only place of this crate that may hold unsafe code. Makes system calls
//! and says what came of them; must hold no policy. Specified in the kernel's `virt/kvm/api.rst`.

mod cpuid;
mod event;
mod routes;
mod state;
mod vcpu;
mod vm;

pub(crate) use event::Event;
pub(crate) use state::TscBase;
pub(crate) use vcpu::{Kick, Ran, Start, Vcpu};
pub(crate) use vm::Vm;

use std::sync::Arc;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::memory::Memory;
use crate::{Error, ErrorKind, Result};
use state::Abilities;

/// What a machine cannot do without.
const NEEDED: [(Cap, &str); 8] = [
    (Cap::Irqchip, "an interrupt controller in the kernel"),
    (Cap::UserMemory, "memory of user space"),
    (Cap::SetTssAddr, "a place for its task state"),
    (Cap::IrqRouting, "routing of interrupts"),
    (Cap::Irqfd, "interrupts by file descriptor"),
    (Cap::Ioeventfd, "doorbells by file descriptor"),
    (Cap::MpState, "states of processors"),
    (Cap::ImmediateExit, "exits at once"),
];

/// The host's KVM, and what its processors can do.
#[derive(Debug)]
pub(crate) struct Host {
    kvm: Kvm,
    cpuid: Vec<kvm_cpuid_entry2>,
}

impl Host {
    /// Open `/dev/kvm` and see that it has what is needed.
    pub(crate) fn open() -> Result<Self> {
        let kvm = Kvm::new().map_err(|error| {
            let what =
                "/dev/kvm cannot be opened; it needs a host with KVM and the right to use it";
            Error::new(ErrorKind::Unsupported, what).because(error)
        })?;
        for (needed, words) in NEEDED {
            if !kvm.check_extension(needed) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("this host's KVM lacks {words}"),
                ));
            }
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| Error::host("KVM does not say what processors it can show", error))?;
        let cpuid = cpuid.as_slice().to_vec();
        Ok(Self { kvm, cpuid })
    }

    /// Make a machine with this memory, without processors.
    pub(crate) fn vm(&self, memory: &Memory) -> Result<Vm> {
        let fd = self
            .kvm
            .create_vm()
            .map_err(|error| Error::host("KVM cannot make a machine", error))?;
        let abilities = Abilities::of(&self.kvm, &fd)?;
        Vm::new(fd, memory, Arc::new(abilities))
    }

    fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    fn supported_cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// How many processors KVM lets a machine have.
    pub(crate) fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// Whether page tables may map 1 GiB at once.
    pub(crate) fn gigabyte_pages(&self) -> bool {
        cpuid::gigabyte_pages(&self.cpuid)
    }

    /// What processor `index` of `count` says of itself.
    pub(crate) fn cpuid(&self, index: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
        cpuid::of_vcpu(&self.cpuid, index, count)
    }
}
