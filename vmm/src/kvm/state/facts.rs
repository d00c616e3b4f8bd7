//! What this host offers to machines.

use kvm_bindings::{KVM_CAP_SREGS2, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::{Abilities, XSAVE_FIXED, leaf};
use crate::kvm::{Host, Vcpu};
use crate::snapshot::HostFacts;
use crate::{Error, Result};

impl Abilities {
    /// What this KVM can do for this machine.
    pub(in crate::kvm) fn of(kvm: &Kvm, vm: &VmFd) -> Result<Self> {
        let msrs = kvm.get_msr_index_list();
        let msrs = msrs.map_err(|error| {
            Error::host("KVM does not list the model-specific registers", error)
        })?;
        let xsave = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or_default();
        let clock = vm.check_extension_int(Cap::AdjustClock);
        Ok(Self {
            msrs: msrs.as_slice().to_vec(),
            sregs2: vm.check_extension_raw(KVM_CAP_SREGS2.into()) > 0,
            xsave_bytes: (xsave >= XSAVE_FIXED).then_some(xsave),
            xcrs: vm.check_extension(Cap::Xcrs),
            tsc_scaling: vm.check_extension(Cap::TscControl),
            clock_flags: clock.cast_unsigned(),
        })
    }
}

fn find(cpuid: &[kvm_cpuid_entry2], function: u32) -> kvm_cpuid_entry2 {
    let mut leaves = cpuid.iter();
    let found = leaves.find(|leaf| leaf.function == function);
    found.copied().unwrap_or_default()
}

impl Host {
    /// What this host is to machines, by one of its processors: the frequency of the counter is a processor's.
    pub(crate) fn facts(&self, vcpu: Option<&Vcpu>) -> HostFacts {
        let cpuid = self.supported_cpuid();
        let named = find(cpuid, 0);
        let mut vendor = [0; 12];
        let words = [named.ebx, named.edx, named.ecx];
        for (to, byte) in vendor
            .iter_mut()
            .zip(words.into_iter().flat_map(u32::to_le_bytes))
        {
            *to = byte;
        }
        HostFacts {
            software: concat!("diskferry ", env!("CARGO_PKG_VERSION")).to_owned(),
            vendor,
            signature: find(cpuid, 1).eax,
            tsc_khz: vcpu
                .and_then(|vcpu| vcpu.fd().get_tsc_khz().ok())
                .unwrap_or_default(),
            tsc_scaling: self.kvm().check_extension(Cap::TscControl),
            cpuid: cpuid.iter().map(leaf).collect(),
        }
    }
}
