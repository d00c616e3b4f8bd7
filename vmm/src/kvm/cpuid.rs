//! What each processor says of itself: the host's answers, with a number and a place of its own.
//!
//! Pure. One socket, one core a processor, one thread a core; the number is also the x2APIC id. Specified
//! in Intel SDM volume 2, CPUID, and AMD APM volume 3, appendix E.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const FEATURES: u32 = 1;
const CACHES: u32 = 4;
const TOPOLOGY: u32 = 0xB;
const TOPOLOGY_V2: u32 = 0x1F;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001D;
const AMD_TOPOLOGY: u32 = 0x8000_001E;

/// Leaf 1, ECX: the timer of the local APIC can wait for a value of the TSC.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: VMX. A guest that runs guests of its own has a state that is not saved.
const VMX: u32 = 1 << 5;
/// Leaf `0x8000_0001`, ECX: SVM, the same.
const SVM: u32 = 1 << 2;
/// Leaf 1, ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the count of logical processors in EBX is valid.
const MANY: u32 = 1 << 28;
/// Leaf `0x8000_0001`, EDX: pages of 1 GiB.
const GIGABYTE_PAGES: u32 = 1 << 26;

/// Whether page tables may map 1 GiB at once.
pub(super) fn gigabyte_pages(supported: &[kvm_cpuid_entry2]) -> bool {
    let mut leaves = supported.iter();
    leaves.any(|leaf| leaf.function == AMD_FEATURES && leaf.edx & GIGABYTE_PAGES != 0)
}

/// The leaves of processor `index` of `count`.
pub(super) fn of_vcpu(
    supported: &[kvm_cpuid_entry2],
    index: u8,
    count: u8,
) -> Vec<kvm_cpuid_entry2> {
    let (id, many) = (u32::from(index), u32::from(count.max(1)));
    let extended = supported.iter().any(|leaf| leaf.function == TOPOLOGY);
    let newer = supported.iter().any(|leaf| leaf.function == TOPOLOGY_V2);
    let mut leaves: Vec<kvm_cpuid_entry2> = supported
        .iter()
        .filter(|leaf| !matches!(leaf.function, TOPOLOGY | TOPOLOGY_V2))
        .copied()
        .collect();
    for leaf in &mut leaves {
        place(leaf, id, many);
    }
    for (there, function) in [(extended, TOPOLOGY), (newer, TOPOLOGY_V2)] {
        if there {
            leaves.extend(topology(function, id, many));
        }
    }
    leaves
}

/// Bits of an APIC id that tell the processors of one socket apart.
fn id_bits(many: u32) -> u32 {
    many.next_power_of_two().trailing_zeros()
}

fn place(leaf: &mut kvm_cpuid_entry2, id: u32, many: u32) {
    match leaf.function {
        FEATURES => {
            leaf.ebx = leaf.ebx & 0xFFFF | many << 16 | id << 24;
            leaf.ecx = leaf.ecx & !VMX | TSC_DEADLINE | HYPERVISOR;
            leaf.edx = if many > 1 {
                leaf.edx | MANY
            } else {
                leaf.edx & !MANY
            };
        }
        CACHES | AMD_CACHES if leaf.eax & 0x1F != 0 => {
            let level = leaf.eax >> 5 & 7;
            let sharing = if level >= 3 { many - 1 } else { 0 };
            leaf.eax = leaf.eax & 0x3FFF | sharing << 14;
            if leaf.function == CACHES {
                let ids = (1_u32 << id_bits(many)) - 1;
                leaf.eax |= ids.min(63) << 26;
            }
        }
        AMD_FEATURES => leaf.ecx &= !SVM,
        AMD_SIZES => {
            leaf.ecx = leaf.ecx & !0xF0FF | id_bits(many) << 12 | (many - 1);
        }
        AMD_TOPOLOGY => {
            leaf.eax = id;
            leaf.ebx = id & 0xFF;
            leaf.ecx = 0;
        }
        _ => {}
    }
}

/// Leaf 0xB or 0x1F: a level of threads, a level of cores, and the end.
fn topology(function: u32, id: u32, many: u32) -> [kvm_cpuid_entry2; 3] {
    [(0, 1, 1), (id_bits(many), many, 2), (0, 0, 0)].map(|(shift, processors, kind)| {
        let level = match kind {
            0 => 2,
            kind => kind - 1,
        };
        kvm_cpuid_entry2 {
            function,
            index: level,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: kind << 8 | level,
            edx: id,
            ..kvm_cpuid_entry2::default()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            ..kvm_cpuid_entry2::default()
        }
    }

    #[test]
    fn every_processor_has_a_number_of_its_own() {
        let host = [
            leaf(0),
            leaf(FEATURES),
            leaf(TOPOLOGY),
            leaf(AMD_SIZES),
            leaf(AMD_TOPOLOGY),
        ];
        for count in [1, 2, 3, 32, 255_u8] {
            for index in 0..count {
                let leaves = of_vcpu(&host, index, count);
                let one = |function| {
                    leaves
                        .iter()
                        .find(|leaf| leaf.function == function)
                        .unwrap()
                };
                assert_eq!(one(FEATURES).ebx >> 24, u32::from(index));
                assert_eq!(one(FEATURES).ebx >> 16 & 0xFF, u32::from(count));
                assert_eq!(one(AMD_TOPOLOGY).eax, u32::from(index));
                assert_eq!(one(AMD_SIZES).ecx & 0xFF, u32::from(count) - 1);
                let levels: Vec<_> = leaves
                    .iter()
                    .filter(|leaf| leaf.function == TOPOLOGY)
                    .collect();
                assert_eq!(levels.len(), 3);
                assert!(levels.iter().all(|level| level.edx == u32::from(index)));
                assert!(
                    1 << levels[1].eax >= u32::from(count),
                    "ids fit into the shift"
                );
            }
        }
    }

    #[test]
    fn guests_of_guests_are_not_offered() {
        let offers = |function, ecx| kvm_cpuid_entry2 {
            ecx,
            ..leaf(function)
        };
        let host = [
            offers(FEATURES, 1 << 5 | 1),
            offers(AMD_FEATURES, 1 << 2 | 1),
        ];
        let leaves = of_vcpu(&host, 0, 1);
        assert_eq!(leaves[0].ecx & (1 << 5 | 1), 1);
        assert_eq!(leaves[1].ecx, 1);
    }

    #[test]
    fn what_the_host_does_not_have_is_not_added() {
        let leaves = of_vcpu(&[leaf(0), leaf(FEATURES)], 1, 2);
        assert_eq!(leaves.len(), 2);
    }
}
