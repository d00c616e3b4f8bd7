//! The registers that a processor starts with, by the way that its program is entered.
//!
//! Pure. One descriptor table serves all ways; its selectors are those that the Linux boot protocol asks for
//! (0x10 and 0x18). Specified in Intel SDM volume 3, 3.4 (segments) and 8.7 (task state).

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use crate::layout;

/// Selectors, which are also offsets into the table.
const KERNEL_CODE: u16 = 0x10;
const KERNEL_DATA: u16 = 0x18;
const TASK: u16 = 0x20;
const USER_DATA: u16 = 0x30;
const USER_CODE: u16 = 0x38;
/// Bytes of the table.
const TABLE_BYTES: usize = 0x40;
/// Where in a task state segment of 64 bits it says where its map of ports is, and where that is here.
pub(super) const PORT_MAP_AT: u64 = 0x66;
pub(super) const PORT_MAP: u16 = 0x68;
/// Bytes of the segment with a map of all ports, a bit each. What is behind the last port must be ones.
pub(super) const TASK_BYTES: u32 = PORT_MAP as u32 + 0x2000 + 1;

/// Types of segments: code, data, a task that runs.
const CODE: u8 = 0xB;
const DATA: u8 = 0x3;
const BUSY_TASK: u8 = 0xB;

const PROTECTED: u64 = 1;
const EXTENSION_TYPE: u64 = 1 << 4;
const PAGING: u64 = 1 << 31;
const NUMERIC_ERROR: u64 = 1 << 5;
const MONITOR: u64 = 1 << 1;
const PHYSICAL_EXTENSION: u64 = 1 << 5;
/// FXSAVE and unmasked exceptions of SSE: the guest may use SSE at once.
const SSE: u64 = 1 << 9 | 1 << 10;
/// EFER: long mode, enabled and active.
const LONG: u64 = 1 << 8 | 1 << 10;
/// RFLAGS: the bit that is always set, and I/O privilege of level 3.
const FLAGS: u64 = 2;
const IOPL_3: u64 = 3 << 12;

/// How wide code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// 32 bits, without paging.
    Protected,
    /// 64 bits.
    Long,
}

fn code(selector: u16, level: u8, width: Width) -> kvm_segment {
    kvm_segment {
        type_: CODE,
        l: u8::from(width == Width::Long),
        db: u8::from(width == Width::Protected),
        ..data(selector, level)
    }
}

fn data(selector: u16, level: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector: selector | u16::from(level),
        type_: DATA,
        present: 1,
        dpl: level,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

fn task(base: u64) -> kvm_segment {
    kvm_segment {
        base,
        limit: TASK_BYTES - 1,
        selector: TASK,
        type_: BUSY_TASK,
        present: 1,
        ..kvm_segment::default()
    }
}

/// A segment as the descriptor table has it.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let bit = |value: u8, at: u32| u64::from(value) << at;
    let access = bit(segment.type_, 40)
        | bit(segment.s, 44)
        | bit(segment.dpl, 45)
        | bit(segment.present, 47)
        | bit(segment.avl, 52)
        | bit(segment.l, 53)
        | bit(segment.db, 54)
        | bit(segment.g, 55);
    let base = (segment.base & 0xFF_FFFF) << 16 | (segment.base >> 24 & 0xFF) << 56;
    limit & 0xFFFF | (limit >> 16 & 0xF) << 48 | base | access
}

/// The descriptor table as bytes.
pub(super) fn table(width: Width) -> [u8; TABLE_BYTES] {
    let segments = [
        (KERNEL_CODE, code(KERNEL_CODE, 0, width)),
        (KERNEL_DATA, data(KERNEL_DATA, 0)),
        (TASK, task(layout::TSS)),
        (USER_DATA, data(USER_DATA, 3)),
        (USER_CODE, code(USER_CODE, 3, Width::Long)),
    ];
    let mut bytes = [0; TABLE_BYTES];
    for (at, segment) in segments {
        let places = bytes.iter_mut().skip(usize::from(at));
        for (place, byte) in places.zip(descriptor(&segment).to_le_bytes()) {
            *place = byte;
        }
    }
    bytes
}

fn sregs(code: kvm_segment, data: kvm_segment) -> kvm_sregs {
    kvm_sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task(layout::TSS),
        ldt: kvm_segment {
            unusable: 1,
            type_: 2,
            ..kvm_segment::default()
        },
        gdt: kvm_dtable {
            base: layout::GDT,
            limit: TABLE_BYTES as u16 - 1,
            padding: [0; 3],
        },
        cr0: PROTECTED | EXTENSION_TYPE | NUMERIC_ERROR | MONITOR,
        ..kvm_sregs::default()
    }
}

/// 64 bits with paging, at privilege level 3 with I/O or at level 0.
pub(super) fn long(level: u8, regs: kvm_regs) -> (kvm_regs, kvm_sregs) {
    let (code_at, data_at) = if level == 3 {
        (USER_CODE, USER_DATA)
    } else {
        (KERNEL_CODE, KERNEL_DATA)
    };
    let mut sregs = sregs(code(code_at, level, Width::Long), data(data_at, level));
    sregs.cr0 |= PAGING;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = PHYSICAL_EXTENSION | SSE;
    sregs.efer = LONG;
    let rflags = if level == 3 { FLAGS | IOPL_3 } else { FLAGS };
    (kvm_regs { rflags, ..regs }, sregs)
}

/// 32 bits without paging, at privilege level 0.
pub(super) fn protected(regs: kvm_regs) -> (kvm_regs, kvm_sregs) {
    let mut sregs = sregs(code(KERNEL_CODE, 0, Width::Protected), data(KERNEL_DATA, 0));
    sregs.cr0 = PROTECTED | EXTENSION_TYPE;
    (
        kvm_regs {
            rflags: FLAGS,
            ..regs
        },
        sregs,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_as_the_processor_reads_them() {
        // Intel SDM 3.4.5; the same numbers as in every flat table of 64 bits.
        assert_eq!(
            descriptor(&code(KERNEL_CODE, 0, Width::Long)),
            0x00AF_9B00_0000_FFFF
        );
        assert_eq!(
            descriptor(&code(KERNEL_CODE, 0, Width::Protected)),
            0x00CF_9B00_0000_FFFF
        );
        assert_eq!(descriptor(&data(KERNEL_DATA, 0)), 0x00CF_9300_0000_FFFF);
        assert_eq!(
            descriptor(&code(USER_CODE, 3, Width::Long)),
            0x00AF_FB00_0000_FFFF
        );
        assert_eq!(descriptor(&data(USER_DATA, 3)), 0x00CF_F300_0000_FFFF);
        assert_eq!(descriptor(&task(0x1234_5678)), 0x1200_8B34_5678_2068);
    }

    #[test]
    fn a_program_that_is_entered_directly_has_level_3_and_may_use_ports() {
        let (regs, sregs) = long(3, kvm_regs::default());
        assert_eq!(
            (sregs.cs.selector & 3, sregs.ss.selector & 3, sregs.ss.dpl),
            (3, 3, 3)
        );
        assert_eq!(regs.rflags >> 12 & 3, 3);
        assert_eq!(
            regs.rflags & 1 << 9,
            0,
            "no interrupts: there is no table for them"
        );
    }
}
