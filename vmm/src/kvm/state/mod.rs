//! The state of a machine as KVM has it, to and from types of our own.
//!
//! Driver. The order in which parts are read and written is the one in which they do not disturb each other; each
//! place where it matters says why. Specified in the kernel's `virt/kvm/api.rst` and
//! `virt/kvm/devices/vcpu.rst`.

mod chips;
mod facts;
mod msrs;
mod raw;
mod registers;
mod tsc;

use kvm_bindings::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Xsave, kvm_cpuid_entry2, kvm_lapic_state,
    kvm_mp_state,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno::Error as Errno;

use super::vcpu::Vcpu;
use crate::snapshot::{Activity, CpuidLeaf, Processor};
use crate::{Error, Result};
pub(crate) use tsc::TscBase;

/// What this host's KVM can read and write, beyond what every one can.
#[derive(Clone, Debug, Default)]
pub(crate) struct Abilities {
    /// Registers that it says are a processor's state.
    msrs: Vec<u32>,
    /// Page directory pointers apart from memory.
    sregs2: bool,
    /// Bytes of an XSAVE area; none where only the fixed ones can be read.
    xsave_bytes: Option<usize>,
    /// XCR0.
    xcrs: bool,
    /// Another frequency of the time stamp counter.
    tsc_scaling: bool,
    /// Flags that a clock may be set with.
    clock_flags: u32,
}

/// Bytes of an XSAVE area that every KVM has.
const XSAVE_FIXED: usize = 4096;

/// What a call was about, to go before its error.
fn failed(what: &'static str) -> impl Fn(Errno) -> Error {
    move |error| Error::host(format!("KVM: {what}"), error)
}

/// A leaf of CPUID as a state has it.
pub(super) fn leaf(entry: &kvm_cpuid_entry2) -> CpuidLeaf {
    CpuidLeaf {
        function: entry.function,
        index: entry.index,
        indexed: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

/// A leaf of CPUID as KVM has it.
fn entry(leaf: &CpuidLeaf) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index,
        flags: if leaf.indexed {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        } else {
            0
        },
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        ..kvm_cpuid_entry2::default()
    }
}

impl Vcpu {
    /// Its state. It must not run, and no instruction of it may be half done.
    pub(crate) fn save(&self) -> Result<Processor> {
        let (fd, abilities) = (self.fd(), self.abilities());
        // First: KVM takes INIT and start-up messages in here, which changes registers.
        let activity = activity(fd)?;
        let (segments, controls) = registers::special(fd, abilities)?;
        Ok(Processor {
            cpuid: self.cpuid().iter().map(leaf).collect(),
            activity,
            general: registers::general(fd)?,
            segments,
            controls,
            debug: registers::debug(fd)?,
            xsave: xsave(fd, abilities)?,
            apic: apic(fd)?,
            tsc: tsc::read(fd),
            msrs: msrs::read(fd, &abilities.msrs)?,
            // Last: what is on its way is final once nothing else is asked.
            pending: registers::pending(fd)?,
        })
    }

    /// Put it into this state. It must not have run. `tsc` is the same for all processors of a machine, which are
    /// put into theirs in their order.
    pub(crate) fn restore(&mut self, saved: &Processor, tsc: &mut TscBase) -> Result<()> {
        // First: what a register may hold depends on what the processor is.
        self.set_cpuid(saved.cpuid.iter().map(entry).collect())?;
        let (fd, abilities) = (self.fd(), self.abilities());
        set_activity(fd, saved.activity)?;
        registers::set_general(fd, &saved.general)?;
        // Before the APIC, whose base and mode they have.
        registers::set_special(fd, abilities, &saved.segments, &saved.controls)?;
        set_xsave(fd, abilities, &saved.xsave)?;
        registers::set_debug(fd, &saved.debug)?;
        tsc.write(fd, abilities, &saved.tsc)?;
        // Behind the counter, and before the MSR of its deadline, which is refused in another mode of the timer.
        set_apic(fd, &saved.apic)?;
        msrs::write(fd, &saved.msrs)?;
        // Behind all registers: setting those forgets what is on its way.
        registers::set_pending(fd, &saved.pending)?;
        // A guest with KVM's clock is told that it stood still. Others cannot be.
        let _ = fd.kvmclock_ctrl();
        Ok(())
    }
}

fn activity(fd: &VcpuFd) -> Result<Activity> {
    let state = fd
        .get_mp_state()
        .map_err(failed("what a processor does cannot be read"))?;
    match state.mp_state {
        KVM_MP_STATE_RUNNABLE => Ok(Activity::Running),
        KVM_MP_STATE_UNINITIALIZED => Ok(Activity::Uninitialized),
        KVM_MP_STATE_INIT_RECEIVED => Ok(Activity::Initialized),
        KVM_MP_STATE_HALTED => Ok(Activity::Halted),
        other => Err(Error::invalid(format!(
            "a processor is in state {other} of KVM, which cannot be saved"
        ))),
    }
}

fn set_activity(fd: &VcpuFd, activity: Activity) -> Result<()> {
    let mp_state = match activity {
        Activity::Running => KVM_MP_STATE_RUNNABLE,
        Activity::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
        Activity::Initialized => KVM_MP_STATE_INIT_RECEIVED,
        Activity::Halted => KVM_MP_STATE_HALTED,
    };
    fd.set_mp_state(kvm_mp_state { mp_state })
        .map_err(failed("what a processor does was refused"))
}

fn apic(fd: &VcpuFd) -> Result<[u32; 64]> {
    let lapic = fd
        .get_lapic()
        .map_err(failed("a local APIC cannot be read"))?;
    let mut registers = [0; 64];
    for (register, bytes) in registers.iter_mut().zip(lapic.regs.chunks_exact(16)) {
        // Three quarters of the page are not registers.
        let value = bytes.iter().take(4).rev();
        *register = value.fold(0, |value, byte| {
            value << 8 | u32::from(byte.cast_unsigned())
        });
    }
    Ok(registers)
}

fn set_apic(fd: &VcpuFd, registers: &[u32; 64]) -> Result<()> {
    let mut lapic = kvm_lapic_state::default();
    for (register, bytes) in registers.iter().zip(lapic.regs.chunks_exact_mut(16)) {
        for (byte, value) in bytes.iter_mut().zip(register.to_le_bytes()) {
            *byte = value.cast_signed();
        }
    }
    fd.set_lapic(&lapic)
        .map_err(failed("a local APIC was refused"))
}

/// An area as large as KVM reads and writes.
fn area(abilities: &Abilities) -> Result<Xsave> {
    let more = abilities.xsave_bytes.unwrap_or(XSAVE_FIXED) - XSAVE_FIXED;
    Xsave::new(more.div_ceil(4)).map_err(|_| Error::invalid("an XSAVE area of such a size"))
}

fn xsave(fd: &VcpuFd, abilities: &Abilities) -> Result<Vec<u8>> {
    let mut area = area(abilities)?;
    let words = if abilities.xsave_bytes.is_some() {
        raw::get_xsave2(fd, &mut area).map_err(failed("vector registers cannot be read"))?;
        let fixed = area.as_fam_struct_ref().xsave.region;
        fixed
            .into_iter()
            .chain(area.as_slice().iter().copied())
            .collect()
    } else {
        let fixed = fd.get_xsave();
        let fixed = fixed.map_err(failed("vector registers cannot be read"))?;
        fixed.region.to_vec()
    };
    Ok(words.into_iter().flat_map(u32::to_le_bytes).collect())
}

fn set_xsave(fd: &VcpuFd, abilities: &Abilities, saved: &[u8]) -> Result<()> {
    let mut area = area(abilities)?;
    let mut words = saved.chunks_exact(4).map(|word| {
        let word = word.iter().rev();
        word.fold(0, |value, byte| value << 8 | u32::from(*byte))
    });
    raw::fill(&mut area, &mut words);
    if words.any(|word| word != 0) {
        return Err(Error::mismatch(
            "the machine has vector registers for which this host's KVM has no room",
        ));
    }
    raw::set_xsave(fd, &area).map_err(failed("vector registers were refused"))
}
