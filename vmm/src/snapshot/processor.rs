//! A processor: its registers, what it is about to do, its own interrupt controller and clock.
//!
//! What a register holds is the guest's own business, as it is while the guest runs; what is checked here is that it
//! is a register's value. Specified in Intel SDM volume 3 and AMD APM volume 2.

use std::ops::RangeInclusive;

use super::bytes::{Encoded, Reader, layout};
use super::error::DecodeError;
use super::host::CpuidLeaf;

/// Most model-specific registers of a processor.
pub(super) const MOST_MSRS: usize = 1024;
/// Sizes of an XSAVE area, in bytes; the least is what every KVM has.
pub(super) const XSAVE_BYTES: RangeInclusive<usize> = 4096..=0x1_0000;
/// Access rights that exist.
pub(super) const RIGHTS: u32 = 0x1_F0FF;

layout! {
    /// General registers.
    pub struct General {
        /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: by their numbers in instructions.
        pub numbered: [u64; 16],
        /// Where it is.
        pub rip: u64,
        /// Its flags.
        pub rflags: u64,
    }

    /// A segment, with what is hidden of it.
    pub struct Segment {
        /// Its base.
        pub base: u64,
        /// Its limit in bytes.
        pub limit: u32,
        /// The selector.
        pub selector: u16,
        /// Access rights, as a VMCS has them (Intel SDM volume 3, 25.4.1): type in bits 0 to 3, S 4,
        /// DPL 5 and 6, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16; all others are zero.
        pub rights: u32,
    }

    /// Where a descriptor table is.
    pub struct Table {
        /// Its base.
        pub base: u64,
        /// Its limit.
        pub limit: u16,
    }

    /// Control registers.
    pub struct Controls {
        /// CR0.
        pub cr0: u64,
        /// CR2.
        pub cr2: u64,
        /// CR3.
        pub cr3: u64,
        /// CR4.
        pub cr4: u64,
        /// CR8.
        pub cr8: u64,
        /// EFER.
        pub efer: u64,
        /// `IA32_APIC_BASE`.
        pub apic_base: u64,
        /// The four page directory pointers of PAE paging, where the host keeps them apart from memory.
        pub pdptrs: Option<[u64; 4]>,
        /// XCR0, where there is one.
        pub xcr0: Option<u64>,
    }

    /// Segments and tables.
    pub struct Segments {
        /// CS, DS, ES, FS, GS, SS.
        pub code_and_data: [Segment; 6],
        /// The task register.
        pub task: Segment,
        /// The local descriptor table.
        pub local: Segment,
        /// GDTR.
        pub gdt: Table,
        /// IDTR.
        pub idt: Table,
    }

    /// Debug registers.
    pub struct Debug {
        /// DR0 to DR3.
        pub addresses: [u64; 4],
        /// DR6.
        pub dr6: u64,
        /// DR7.
        pub dr7: u64,
    }

    /// An exception that is being delivered.
    pub struct Exception {
        /// Which, below 32 and not 2.
        pub vector: u8,
        /// Its error code.
        pub error_code: Option<u32>,
    }

    /// An interrupt that is being delivered.
    pub struct Interrupt {
        /// Its vector.
        pub vector: u8,
        /// It came of an instruction.
        pub soft: bool,
    }

    /// What is on its way to a processor.
    pub struct Pending {
        /// An exception.
        pub exception: Option<Exception>,
        /// An interrupt.
        pub interrupt: Option<Interrupt>,
        /// Interrupts wait for the next instruction: bit 0 by MOV SS, bit 1 by STI.
        pub shadow: u8,
        /// A non-maskable interrupt is being delivered; one waits; they are masked.
        pub nmi: [bool; 3],
        /// It is in system management mode; such an interrupt waits; one waits inside of a
        /// non-maskable interrupt.
        pub smm: [bool; 3],
        /// An INIT waits.
        pub init: bool,
    }

    /// A register that is named by a number.
    pub struct Msr {
        /// Its number.
        pub index: u32,
        /// What it holds.
        pub value: u64,
    }

    /// The time stamp counter.
    pub struct Tsc {
        /// Its frequency as the guest sees it, in kHz; 0 if it is not known.
        pub khz: u32,
        /// What it said at the time of [`super::Clock::realtime`].
        pub value: u64,
        /// What was added to the host's counter, where that is known. Only differences between processors of one
        /// machine mean anything elsewhere.
        pub offset: Option<u64>,
    }

    /// A processor.
    pub struct Processor {
        /// What it says of itself.
        pub cpuid: Vec<CpuidLeaf>,
        /// What it does now.
        pub activity: Activity,
        /// General registers.
        pub general: General,
        /// Segments and tables.
        pub segments: Segments,
        /// Control registers.
        pub controls: Controls,
        /// Debug registers.
        pub debug: Debug,
        /// What is on its way to it.
        pub pending: Pending,
        /// Its local interrupt controller: the registers at every 16th byte (Intel SDM volume 3, 11.4.1).
        pub apic: [u32; 64],
        /// Its time stamp counter.
        pub tsc: Tsc,
        /// Model-specific registers, by rising numbers.
        pub msrs: Vec<Msr>,
        /// Floating point and vector registers: an XSAVE area in standard form (Intel SDM volume 1, 13.4).
        pub xsave: Vec<u8>,
    }
}

/// What a processor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It runs.
    Running,
    /// It waits for INIT.
    Uninitialized,
    /// It waits for the message that starts it.
    Initialized,
    /// It has halted until an interrupt.
    Halted,
}

impl Activity {
    const ALL: [Self; 4] = [
        Self::Running,
        Self::Uninitialized,
        Self::Initialized,
        Self::Halted,
    ];
}

impl Encoded for Activity {
    fn put(&self, to: &mut Vec<u8>) {
        (*self as u8).put(to);
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let number = from.take::<u8>()?;
        let known = Self::ALL.into_iter().nth(usize::from(number));
        known.ok_or_else(|| from.wrong("a processor does none of what this number stands for"))
    }
}
