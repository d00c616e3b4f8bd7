//! Registers of a processor, and what is on its way to it.

use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SMM, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs,
    kvm_sregs2, kvm_vcpu_events, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;

use super::{Abilities, failed, raw};
use crate::Result;
use crate::snapshot::{
    Controls, Debug, Exception, General, Interrupt, Pending, Segment, Segments, Table,
};

pub(super) fn general(fd: &VcpuFd) -> Result<General> {
    let it = fd
        .get_regs()
        .map_err(failed("general registers cannot be read"))?;
    Ok(General {
        numbered: [
            it.rax, it.rcx, it.rdx, it.rbx, it.rsp, it.rbp, it.rsi, it.rdi, it.r8, it.r9, it.r10,
            it.r11, it.r12, it.r13, it.r14, it.r15,
        ],
        rip: it.rip,
        rflags: it.rflags,
    })
}

pub(super) fn set_general(fd: &VcpuFd, saved: &General) -> Result<()> {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = saved.numbered;
    let regs = kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: saved.rip,
        rflags: saved.rflags,
    };
    fd.set_regs(&regs)
        .map_err(failed("general registers were refused"))
}

fn segment(it: &kvm_segment) -> Segment {
    let flag = |value: u8, bit: u32| u32::from(value != 0) << bit;
    Segment {
        base: it.base,
        limit: it.limit,
        selector: it.selector,
        rights: u32::from(it.type_ & 0xF)
            | flag(it.s, 4)
            | u32::from(it.dpl & 3) << 5
            | flag(it.present, 7)
            | flag(it.avl, 12)
            | flag(it.l, 13)
            | flag(it.db, 14)
            | flag(it.g, 15)
            | flag(it.unusable, 16),
    }
}

fn of_segment(saved: &Segment) -> kvm_segment {
    let bit = |bit: u32| (saved.rights >> bit & 1) as u8;
    kvm_segment {
        base: saved.base,
        limit: saved.limit,
        selector: saved.selector,
        type_: (saved.rights & 0xF) as u8,
        s: bit(4),
        dpl: (saved.rights >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: bit(16),
        padding: 0,
    }
}

fn table(it: &kvm_dtable) -> Table {
    Table {
        base: it.base,
        limit: it.limit,
    }
}

fn of_table(saved: &Table) -> kvm_dtable {
    kvm_dtable {
        base: saved.base,
        limit: saved.limit,
        padding: [0; 3],
    }
}

/// Segments and control registers.
pub(super) fn special(fd: &VcpuFd, abilities: &Abilities) -> Result<(Segments, Controls)> {
    let failed = failed("segments and control registers cannot be read");
    let it = if abilities.sregs2 {
        raw::get_sregs2(fd).map_err(&failed)?
    } else {
        widened(&fd.get_sregs().map_err(&failed)?)
    };
    let xcr0 = if abilities.xcrs {
        let xcrs = fd.get_xcrs().map_err(&failed)?;
        let mut all = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
        all.find(|xcr| xcr.xcr == 0).map(|xcr| xcr.value)
    } else {
        None
    };
    let with_pointers = it.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
    let segments = Segments {
        code_and_data: [&it.cs, &it.ds, &it.es, &it.fs, &it.gs, &it.ss].map(segment),
        task: segment(&it.tr),
        local: segment(&it.ldt),
        gdt: table(&it.gdt),
        idt: table(&it.idt),
    };
    let controls = Controls {
        cr0: it.cr0,
        cr2: it.cr2,
        cr3: it.cr3,
        cr4: it.cr4,
        cr8: it.cr8,
        efer: it.efer,
        apic_base: it.apic_base,
        pdptrs: with_pointers.then_some(it.pdptrs),
        xcr0,
    };
    Ok((segments, controls))
}

pub(super) fn set_special(
    fd: &VcpuFd,
    abilities: &Abilities,
    segments: &Segments,
    controls: &Controls,
) -> Result<()> {
    let failed = failed("segments and control registers were refused");
    let [cs, ds, es, fs, gs, ss] = segments.code_and_data.each_ref().map(of_segment);
    let sregs = kvm_sregs2 {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: of_segment(&segments.task),
        ldt: of_segment(&segments.local),
        gdt: of_table(&segments.gdt),
        idt: of_table(&segments.idt),
        cr0: controls.cr0,
        cr2: controls.cr2,
        cr3: controls.cr3,
        cr4: controls.cr4,
        cr8: controls.cr8,
        efer: controls.efer,
        apic_base: controls.apic_base,
        flags: controls
            .pdptrs
            .map_or(0, |_| u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID)),
        pdptrs: controls.pdptrs.unwrap_or_default(),
    };
    if abilities.sregs2 {
        raw::set_sregs2(fd, &sregs).map_err(&failed)?;
    } else {
        // KVM reads the pointers from memory, which is what a guest expects too.
        fd.set_sregs(&narrowed(&sregs)).map_err(&failed)?;
    }
    let Some(value) = controls.xcr0 else {
        return Ok(());
    };
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..kvm_xcrs::default()
    };
    if let Some(first) = xcrs.xcrs.first_mut() {
        *first = kvm_xcr {
            value,
            ..kvm_xcr::default()
        };
    }
    fd.set_xcrs(&xcrs).map_err(failed)
}

fn widened(it: &kvm_sregs) -> kvm_sregs2 {
    kvm_sregs2 {
        cs: it.cs,
        ds: it.ds,
        es: it.es,
        fs: it.fs,
        gs: it.gs,
        ss: it.ss,
        tr: it.tr,
        ldt: it.ldt,
        gdt: it.gdt,
        idt: it.idt,
        cr0: it.cr0,
        cr2: it.cr2,
        cr3: it.cr3,
        cr4: it.cr4,
        cr8: it.cr8,
        efer: it.efer,
        apic_base: it.apic_base,
        ..kvm_sregs2::default()
    }
}

fn narrowed(it: &kvm_sregs2) -> kvm_sregs {
    kvm_sregs {
        cs: it.cs,
        ds: it.ds,
        es: it.es,
        fs: it.fs,
        gs: it.gs,
        ss: it.ss,
        tr: it.tr,
        ldt: it.ldt,
        gdt: it.gdt,
        idt: it.idt,
        cr0: it.cr0,
        cr2: it.cr2,
        cr3: it.cr3,
        cr4: it.cr4,
        cr8: it.cr8,
        efer: it.efer,
        apic_base: it.apic_base,
        // What is being delivered is set with what is on its way.
        interrupt_bitmap: [0; 4],
    }
}

pub(super) fn debug(fd: &VcpuFd) -> Result<Debug> {
    let it = fd
        .get_debug_regs()
        .map_err(failed("debug registers cannot be read"))?;
    Ok(Debug {
        addresses: it.db,
        dr6: it.dr6,
        dr7: it.dr7,
    })
}

pub(super) fn set_debug(fd: &VcpuFd, saved: &Debug) -> Result<()> {
    let registers = kvm_debugregs {
        db: saved.addresses,
        dr6: saved.dr6,
        dr7: saved.dr7,
        ..kvm_debugregs::default()
    };
    fd.set_debug_regs(&registers)
        .map_err(failed("debug registers were refused"))
}

pub(super) fn pending(fd: &VcpuFd) -> Result<Pending> {
    let it = fd
        .get_vcpu_events()
        .map_err(failed("what is on its way to a processor cannot be read"))?;
    let exception = Exception {
        vector: it.exception.nr,
        error_code: (it.exception.has_error_code != 0).then_some(it.exception.error_code),
    };
    let interrupt = Interrupt {
        vector: it.interrupt.nr,
        soft: it.interrupt.soft != 0,
    };
    // KVM calls one that is still to be delivered injected too, unless its payload is asked for (api.rst, 4.31).
    let coming = it.exception.injected != 0;
    Ok(Pending {
        exception: coming.then_some(exception),
        interrupt: (it.interrupt.injected != 0).then_some(interrupt),
        shadow: it.interrupt.shadow & 3,
        nmi: [it.nmi.injected, it.nmi.pending, it.nmi.masked].map(|flag| flag != 0),
        smm: [it.smi.smm, it.smi.pending, it.smi.smm_inside_nmi].map(|flag| flag != 0),
        init: it.smi.latched_init != 0,
    })
}

pub(super) fn set_pending(fd: &VcpuFd, saved: &Pending) -> Result<()> {
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SHADOW
            | KVM_VCPUEVENT_VALID_SMM,
        ..kvm_vcpu_events::default()
    };
    if let Some(exception) = &saved.exception {
        events.exception.nr = exception.vector;
        events.exception.injected = 1;
        events.exception.has_error_code = u8::from(exception.error_code.is_some());
        events.exception.error_code = exception.error_code.unwrap_or_default();
    }
    if let Some(interrupt) = &saved.interrupt {
        events.interrupt.injected = 1;
        events.interrupt.nr = interrupt.vector;
        events.interrupt.soft = u8::from(interrupt.soft);
    }
    events.interrupt.shadow = saved.shadow;
    [events.nmi.injected, events.nmi.pending, events.nmi.masked] = saved.nmi.map(u8::from);
    [
        events.smi.smm,
        events.smi.pending,
        events.smi.smm_inside_nmi,
    ] = saved.smm.map(u8::from);
    events.smi.latched_init = u8::from(saved.init);
    fd.set_vcpu_events(&events)
        .map_err(failed("what is on its way to a processor was refused"))
}
