//! A processor of a machine: how it starts, and what its exits mean.
//!
//! Driver. An access that KVM hands out is answered by [`Ports`] at once, but KVM finishes the instruction
//! only when the processor is entered again: until then the processor is half way through it, see
//! [`Vcpu::finish`]. Unsafe here are the parts of the page shared with KVM that are unions.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    CpuId, KVM_EXIT_IO_IN, KVM_MP_STATE_RUNNABLE, Msrs, kvm_cpuid_entry2, kvm_fpu, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::state::Abilities;
use crate::bus::Ports;
use crate::statistics::{Left, VcpuCounters};
use crate::{Error, Result};

/// What [`Vcpu::run`] came back with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// An access was answered. To be run again.
    Answered,
    /// Somebody kicked it, or KVM wants to be asked again. To be run again.
    Interrupted,
    /// It cannot go on: why.
    Ended(String),
}

/// The registers that a processor starts with.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// General registers.
    pub(crate) regs: kvm_regs,
    /// Segments and control registers; the APIC's base stays as KVM has it.
    pub(crate) sregs: kvm_sregs,
    /// Runs from the beginning; else it waits to be started by another.
    pub(crate) runnable: bool,
}

/// A processor.
#[derive(Debug)]
pub(crate) struct Vcpu {
    fd: VcpuFd,
    index: u8,
    kick: Arc<Kick>,
    counters: Arc<VcpuCounters>,
    half_done: bool,
    abilities: Arc<Abilities>,
    /// What it says of itself as far as we decide that: some KVMs show guests more of the host than they were told.
    cpuid: Vec<kvm_cpuid_entry2>,
}

/// Makes a processor leave the guest, or not enter it.
#[derive(Debug, Default)]
pub(crate) struct Kick(Mutex<Option<Flag>>);

/// `immediate_exit` of the page shared with KVM.
#[derive(Debug)]
struct Flag(NonNull<AtomicU8>);

// SAFETY: the byte is only accessed atomically, and only while the lock of `Kick` is held or by the owner
// of the `Vcpu`, which takes the pointer away under that lock before it unmaps the page.
unsafe impl Send for Flag {}

impl Flag {
    fn set(&self, value: u8) {
        // SAFETY: the pointer is into the page of the processor, mapped as long as `Kick` holds it.
        unsafe { self.0.as_ref() }.store(value, Ordering::SeqCst);
    }
}

impl Kick {
    /// The processor's next entry, or the one it is in once a signal arrives there, ends at once.
    pub(crate) fn arm(&self) {
        self.set(1);
    }

    fn set(&self, value: u8) {
        let flag = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flag) = &*flag {
            flag.set(value);
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        *self.kick.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// `IA32_MISC_ENABLE` with fast strings, and MTRRs that are on and say write-back: what firmware sets up.
const FIRMWARE_MSRS: [(u32, u64); 2] = [(0x1A0, 1), (0x2FF, 1 << 11 | 6)];

impl Vcpu {
    /// A processor that KVM has just made.
    pub(super) fn new(mut fd: VcpuFd, index: u8, abilities: Arc<Abilities>) -> Self {
        let flag = NonNull::from(&mut fd.get_kvm_run().immediate_exit).cast();
        let kick = Arc::new(Kick(Mutex::new(Some(Flag(flag)))));
        Self {
            fd,
            index,
            kick,
            counters: Arc::default(),
            half_done: false,
            abilities,
            cpuid: Vec::new(),
        }
    }

    /// As `kvm-ioctls` wants it.
    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// What can be read and written of it.
    pub(super) fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    /// What makes it leave the guest.
    pub(crate) fn kick(&self) -> Arc<Kick> {
        Arc::clone(&self.kick)
    }

    /// What it was told that it is, as it is saved.
    pub(crate) fn leaves(&self) -> Vec<crate::snapshot::CpuidLeaf> {
        self.cpuid.iter().map(super::state::leaf).collect()
    }

    /// What was said that it is.
    pub(super) fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Say what it is.
    pub(super) fn set_cpuid(&mut self, cpuid: Vec<kvm_cpuid_entry2>) -> Result<()> {
        let leaves =
            CpuId::from_entries(&cpuid).map_err(|_| Error::invalid("too many leaves of CPUID"))?;
        self.fd.set_cpuid2(&leaves).map_err(|error| {
            let what = format!("KVM: processor {}: CPUID was refused", self.index);
            Error::host(what, error)
        })?;
        self.cpuid = cpuid;
        Ok(())
    }

    /// What is counted of it.
    pub(crate) fn counters(&self) -> Arc<VcpuCounters> {
        Arc::clone(&self.counters)
    }

    /// Say what it is and where it starts.
    pub(crate) fn prepare(&mut self, cpuid: Vec<kvm_cpuid_entry2>, start: &Start) -> Result<()> {
        self.set_cpuid(cpuid)?;
        let failed = |what: &'static str| {
            let index = self.index;
            move |error| Error::host(format!("KVM: processor {index}: {what}"), error)
        };
        self.set_msrs()?;
        let fpu = kvm_fpu {
            fcw: 0x37F,
            mxcsr: 0x1F80,
            ..kvm_fpu::default()
        };
        self.fd
            .set_fpu(&fpu)
            .map_err(failed("floating point was refused"))?;
        if !start.runnable {
            return Ok(());
        }
        let mut sregs = start.sregs;
        sregs.apic_base = self
            .fd
            .get_sregs()
            .map_err(failed("no registers"))?
            .apic_base;
        self.fd
            .set_sregs(&sregs)
            .map_err(failed("segments were refused"))?;
        self.fd
            .set_regs(&start.regs)
            .map_err(failed("registers were refused"))?;
        let state = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        self.fd
            .set_mp_state(state)
            .map_err(failed("its state was refused"))
    }

    fn set_msrs(&self) -> Result<()> {
        for (index, data) in FIRMWARE_MSRS {
            let entry = kvm_msr_entry {
                index,
                data,
                ..kvm_msr_entry::default()
            };
            let msrs = Msrs::from_entries(&[entry]).map_err(|_| Error::invalid("too many MSRs"))?;
            let set = self.fd.set_msrs(&msrs);
            let set =
                set.map_err(|error| Error::host(format!("KVM refused MSR {index:#x}"), error))?;
            if set == 0 {
                tracing::debug!(msr = index, "this host's KVM has no such MSR");
            }
        }
        Ok(())
    }

    /// Switch its interrupt controller on, as a guest does, and say whether an interrupt waits there.
    #[cfg(test)]
    pub(crate) fn interrupt_waits(&self, vector: u8) -> bool {
        let mut lapic = self.fd.get_lapic().unwrap();
        let bit = lapic.regs[0x200 + usize::from(vector) / 32 * 16 + usize::from(vector) % 32 / 8];
        // Spurious interrupt vector register (Intel SDM volume 3, 11.9): bit 8 switches the controller on.
        lapic.regs[0xF1] |= 1;
        self.fd.set_lapic(&lapic).unwrap();
        bit.cast_unsigned() >> (vector % 8) & 1 == 1
    }

    /// Whether an interrupt waits; it does no more.
    #[cfg(test)]
    pub(crate) fn take_interrupt(&self, vector: u8) -> bool {
        let waits = self.interrupt_waits(vector);
        let mut lapic = self.fd.get_lapic().unwrap();
        lapic.regs[0x200..0x280].fill(0);
        self.fd.set_lapic(&lapic).unwrap();
        waits
    }

    /// Enter the guest until it needs something, and answer that.
    pub(crate) fn run(&mut self, ports: &dyn Ports) -> Ran {
        let ended = match self.fd.run() {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => {
                self.half_done = true;
                self.answer_ports(ports);
                return Ran::Answered;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.half_done = true;
                self.counters.count(Left::MemoryRead);
                ports.memory_read(address, data);
                return Ran::Answered;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.half_done = true;
                self.counters.count(Left::MemoryWrite);
                ports.memory_write(address, data);
                return Ran::Answered;
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr) => {
                self.counters.count(Left::Interrupted);
                return Ran::Interrupted;
            }
            Ok(VcpuExit::Shutdown) => "triple fault".to_owned(),
            Ok(VcpuExit::Hlt) => "it halted with nothing to wake it".to_owned(),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                format!("the processor refused the guest's state: reason {reason:#x} on CPU {cpu}")
            }
            Ok(VcpuExit::InternalError) => self.internal_error(),
            Ok(VcpuExit::SystemEvent(kind, _)) => format!("system event {kind}"),
            Ok(VcpuExit::MemoryFault { gpa, .. }) => format!("no memory behind address {gpa:#x}"),
            Ok(other) => format!("exit that is not expected: {other:?}"),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.half_done = false;
                self.counters.count(Left::Interrupted);
                return Ran::Interrupted;
            }
            Err(error) => format!("KVM cannot run it: {error}"),
        };
        Ran::Ended(format!("processor {}: {ended}{}", self.index, self.place()))
    }

    /// Let KVM finish an instruction whose access was answered, and enter the guest no further.
    pub(crate) fn finish(&mut self, ports: &dyn Ports) -> Option<Ran> {
        while self.half_done {
            self.kick.set(1);
            if let ended @ Ran::Ended(_) = self.run(ports) {
                return Some(ended);
            }
        }
        None
    }

    /// A kick was seen: the next entry may last again. Whoever calls looks for the kick's reason after it.
    pub(crate) fn disarm(&self) {
        self.kick.set(0);
    }

    /// Answer an access to ports, which is of several elements when the instruction was a string one.
    fn answer_ports(&mut self, ports: &dyn Ports) {
        let run = self.fd.get_kvm_run();
        let page: *mut u8 = std::ptr::from_mut(run).cast();
        // SAFETY: the exit was for I/O, so this is the member of the union that KVM has filled.
        let io = unsafe { run.__bindgen_anon_1.io };
        self.counters
            .count(if u32::from(io.direction) == KVM_EXIT_IO_IN {
                Left::PortRead
            } else {
                Left::PortWrite
            });
        let size = usize::from(io.size.max(1));
        let bytes = size * io.count as usize;
        // SAFETY: KVM says where in the pages that are mapped behind `kvm_run` the data is, and that it is
        // `count` elements of `size` bytes; nothing else refers to them before the next entry.
        let data =
            unsafe { std::slice::from_raw_parts_mut(page.add(io.data_offset as usize), bytes) };
        for element in data.chunks_mut(size) {
            if u32::from(io.direction) == KVM_EXIT_IO_IN {
                ports.port_read(io.port, element);
            } else {
                ports.port_write(io.port, element);
            }
        }
    }

    fn internal_error(&mut self) -> String {
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit was for an internal error, so this is the member of the union that KVM has filled.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let words: Vec<String> = internal
            .data
            .iter()
            .take(internal.ndata as usize)
            .map(|word| format!("{word:#x}"))
            .collect();
        let kind = match internal.suberror {
            1 => "an instruction that KVM cannot emulate",
            2 => "an event while another was delivered",
            3 => "an exit while an event was delivered",
            4 => "an exit that KVM does not know",
            _ => "internal error of KVM",
        };
        format!(
            "{kind} (suberror {}, {})",
            internal.suberror,
            words.join(" ")
        )
    }

    /// Where the guest was, as words to go behind a reason.
    fn place(&self) -> String {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => format!(
                " at rip {:#x} (rsp {:#x}, rflags {:#x}, cs {:#x}, cr2 {:#x})",
                regs.rip, regs.rsp, regs.rflags, sregs.cs.selector, sregs.cr2
            ),
            _ => String::new(),
        }
    }
}
