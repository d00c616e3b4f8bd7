//! Calls of KVM that `kvm-ioctls` does not have, or not safely.
//!
//! Unsafe here are system calls whose argument the kernel reads or writes. Each says how large that is.

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, Xsave, kvm_device_attr, kvm_sregs2,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno::Error;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xCC, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xCD, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xE1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xE2, kvm_device_attr);

fn checked(result: libc::c_int) -> Result<(), Error> {
    if result == 0 {
        Ok(())
    } else {
        Err(Error::last())
    }
}

/// Segments and control registers, with page directory pointers.
pub(super) fn get_sregs2(fd: &VcpuFd) -> Result<kvm_sregs2, Error> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: the descriptor is a processor's, and the kernel writes one `kvm_sregs2`, which `sregs` is.
    checked(unsafe { ioctl_with_mut_ref(fd, KVM_GET_SREGS2(), &mut sregs) })?;
    Ok(sregs)
}

/// Set them.
pub(super) fn set_sregs2(fd: &VcpuFd, sregs: &kvm_sregs2) -> Result<(), Error> {
    // SAFETY: the descriptor is a processor's, and the kernel reads one `kvm_sregs2`, which `sregs` is.
    checked(unsafe { ioctl_with_ref(fd, KVM_SET_SREGS2(), sregs) })
}

/// Read an XSAVE area. `area` is as large as this host's KVM says that it has to be.
pub(super) fn get_xsave2(fd: &VcpuFd, area: &mut Xsave) -> Result<(), Error> {
    // SAFETY: `Abilities` has the size from KVM_CAP_XSAVE2 of this machine, and `area` was made of that size.
    unsafe { fd.get_xsave2(area) }
}

/// Write an XSAVE area, of that size too.
pub(super) fn set_xsave(fd: &VcpuFd, area: &Xsave) -> Result<(), Error> {
    // SAFETY: as for reading; the kernel reads no more of it than it writes.
    unsafe { fd.set_xsave2(area) }
}

/// Fill an area with words, as far as they or it go.
pub(super) fn fill(area: &mut Xsave, words: &mut impl Iterator<Item = u32>) {
    // SAFETY: the length of the flexible part is not changed.
    let fixed = unsafe { &mut area.as_mut_fam_struct().xsave.region };
    for (place, word) in fixed.iter_mut().zip(&mut *words) {
        *place = word;
    }
    for (place, word) in area.as_mut_slice().iter_mut().zip(words) {
        *place = word;
    }
}

fn tsc_offset(value: &mut u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: std::ptr::from_mut(value) as u64,
    }
}

/// What is added to the host's time stamp counter; none where KVM does not say.
pub(super) fn get_tsc_offset(fd: &VcpuFd) -> Option<u64> {
    let mut value = 0;
    let attribute = tsc_offset(&mut value);
    // SAFETY: the kernel reads one `kvm_device_attr` and writes eight bytes at its address, which are `value`'s.
    let got = checked(unsafe { ioctl_with_ref(fd, KVM_GET_DEVICE_ATTR(), &attribute) });
    got.ok().map(|()| value)
}

/// Set what is added.
pub(super) fn set_tsc_offset(fd: &VcpuFd, mut value: u64) -> Result<(), Error> {
    let attribute = tsc_offset(&mut value);
    // SAFETY: the kernel reads one `kvm_device_attr` and eight bytes at its address, which are `value`'s.
    checked(unsafe { ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), &attribute) })
}
