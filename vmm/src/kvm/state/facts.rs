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

/// A leaf without what says on which of the host's processors it was asked for: APIC ids (Intel SDM volume 2,
/// CPUID; AMD APM volume 3, appendix E).
fn anywhere(leaf: &kvm_cpuid_entry2) -> kvm_cpuid_entry2 {
    let mut leaf = *leaf;
    match leaf.function {
        1 => leaf.ebx &= 0x00FF_FFFF,
        0xB | 0x1F => leaf.edx = 0,
        0x8000_001E => {
            leaf.eax = 0;
            leaf.ebx &= !0xFF;
            leaf.ecx &= !0xFF;
        }
        _ => {}
    }
    leaf
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
            cpuid: cpuid.iter().map(anywhere).map(|one| leaf(&one)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_is_does_not_depend_on_the_processor_that_was_asked() {
        let asked_on = |id: u32| {
            [1, 7, 0xB, 0x1F, 0x8000_001E].map(|function| {
                let mut entry = kvm_cpuid_entry2 {
                    function,
                    ebx: 0x0002_0800,
                    ..kvm_cpuid_entry2::default()
                };
                match function {
                    1 => entry.ebx |= id << 24,
                    0xB | 0x1F => entry.edx = id,
                    0x8000_001E => (entry.eax, entry.ebx) = (id, 0x100 | id),
                    _ => {}
                }
                entry
            })
        };
        assert_ne!(asked_on(0), asked_on(1));
        let kept = |id| asked_on(id).map(|entry| anywhere(&entry));
        assert_eq!(kept(0), kept(1));
        assert_eq!(kept(1)[0].ebx, 0x0002_0800);
    }
}
