//! What a host is, as far as a machine that goes on there depends on it; and how large the machine is.

use super::bytes::layout;
use crate::layout as addresses;

layout! {
    /// One answer of CPUID (Intel SDM volume 2, CPUID).
    pub struct CpuidLeaf {
        /// What was asked in EAX.
        pub function: u32,
        /// What was asked in ECX.
        pub index: u32,
        /// Whether the answer depends on ECX.
        pub indexed: bool,
        /// The answer.
        pub eax: u32,
        /// The answer.
        pub ebx: u32,
        /// The answer.
        pub ecx: u32,
        /// The answer.
        pub edx: u32,
    }

    /// What a host offers to machines.
    pub struct HostFacts {
        /// The program that wrote the state, for people.
        pub software: String,
        /// The vendor of its processors, as CPUID says it (`GenuineIntel`).
        pub vendor: [u8; 12],
        /// Family, model and stepping of its processors: CPUID 1, EAX.
        pub signature: u32,
        /// The frequency of its time stamp counter, in kHz; 0 if it is not known.
        pub tsc_khz: u32,
        /// Whether its processors can show a machine another frequency.
        pub tsc_scaling: bool,
        /// The CPUID that its KVM can give a machine.
        pub cpuid: Vec<CpuidLeaf>,
    }

    /// A stretch of memory as the machine sees it.
    pub struct MemorySlot {
        /// The first address.
        pub start: u64,
        /// Its size.
        pub bytes: u64,
    }

    /// How large a machine is.
    pub struct Shape {
        /// Processors, from 1 to 255.
        pub vcpus: u16,
        /// Memory in bytes: the sum of the slots.
        pub memory: u64,
        /// Where its memory is, lowest first. The content of all slots in this order is the memory's file.
        pub slots: Vec<MemorySlot>,
    }
}

/// Most leaves of CPUID that KVM knows (`KVM_MAX_CPUID_ENTRIES`).
pub(super) const MOST_LEAVES: usize = 256;

impl Shape {
    /// A machine with so many processors and bytes of memory, laid out as this version does.
    pub(crate) fn of(vcpus: u16, memory: u64) -> Self {
        let slots = addresses::memory_ranges(memory).into_iter();
        Self {
            vcpus,
            memory,
            slots: slots
                .map(|range| MemorySlot {
                    start: range.start,
                    bytes: range.end - range.start,
                })
                .collect(),
        }
    }
}
