//! Which answers of CPUID are features, bit by bit, and what the well-known ones are called.
//!
//! Numbers and names are those of Intel SDM volume 2 (CPUID), AMD APM volume 3 (appendix E) and, for leaf
//! `0x4000_0001`, the kernel's `virt/kvm/x86/cpuid.rst`.

/// A register of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    /// It, of an answer.
    pub(super) fn of(self, [eax, ebx, ecx, edx]: [u32; 4]) -> u32 {
        match self {
            Self::Eax => eax,
            Self::Ebx => ebx,
            Self::Ecx => ecx,
            Self::Edx => edx,
        }
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        }
    }
}

/// A register of an answer whose bits are features.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) function: u32,
    pub(super) index: u32,
    pub(super) register: Register,
    /// Those bits that are features of the host. Others say what the guest has switched on, how many
    /// processors it has, or what this monitor itself provides.
    pub(super) bits: u32,
    names: &'static [(u8, &'static str)],
}

impl Word {
    /// What the feature of a bit is called.
    pub(super) fn name(&self, bit: u8) -> Option<&'static str> {
        let mut names = self.names.iter();
        names.find(|(of, _)| *of == bit).map(|(_, name)| *name)
    }
}

const fn word(function: u32, index: u32, register: Register, bits: u32) -> Word {
    Word {
        function,
        index,
        register,
        bits,
        names: &[],
    }
}

impl Word {
    const fn named(self, names: &'static [(u8, &'static str)]) -> Self {
        Self { names, ..self }
    }
}

const ALL: u32 = u32::MAX;
/// Leaf 1, ECX: the timer's deadline and the hypervisor are this monitor's; OSXSAVE is what the guest switched on.
const BASIC: u32 = !(1 << 24 | 1 << 27 | 1 << 31);
/// Leaf 1, EDX: several logical processors.
const NOT_MANY: u32 = !(1 << 28);
/// Leaf 6, EAX: the APIC's timer always runs.
const ARAT: u32 = 1 << 2;
/// Leaf 7, ECX: OSPKE is what the guest switched on.
const NOT_OSPKE: u32 = !(1 << 4);

/// All that are compared.
pub(super) const WORDS: [Word; 24] = [
    word(1, 0, Register::Ecx, BASIC).named(&[
        (0, "SSE3"),
        (1, "PCLMULQDQ"),
        (9, "SSSE3"),
        (12, "FMA"),
        (13, "CMPXCHG16B"),
        (17, "PCID"),
        (19, "SSE4.1"),
        (20, "SSE4.2"),
        (21, "x2APIC"),
        (22, "MOVBE"),
        (23, "POPCNT"),
        (25, "AES"),
        (26, "XSAVE"),
        (28, "AVX"),
        (29, "F16C"),
        (30, "RDRAND"),
    ]),
    word(1, 0, Register::Edx, NOT_MANY).named(&[
        (0, "FPU"),
        (4, "TSC"),
        (6, "PAE"),
        (8, "CMPXCHG8B"),
        (9, "APIC"),
        (11, "SYSENTER"),
        (12, "MTRR"),
        (13, "PGE"),
        (15, "CMOV"),
        (16, "PAT"),
        (19, "CLFLUSH"),
        (23, "MMX"),
        (24, "FXSAVE"),
        (25, "SSE"),
        (26, "SSE2"),
    ]),
    word(6, 0, Register::Eax, ARAT).named(&[(2, "ARAT")]),
    word(7, 0, Register::Ebx, ALL).named(&[
        (0, "FSGSBASE"),
        (1, "TSC_ADJUST"),
        (3, "BMI1"),
        (4, "HLE"),
        (5, "AVX2"),
        (7, "SMEP"),
        (8, "BMI2"),
        (9, "ERMS"),
        (10, "INVPCID"),
        (11, "RTM"),
        (16, "AVX512F"),
        (17, "AVX512DQ"),
        (18, "RDSEED"),
        (19, "ADX"),
        (20, "SMAP"),
        (23, "CLFLUSHOPT"),
        (24, "CLWB"),
        (28, "AVX512CD"),
        (29, "SHA"),
        (30, "AVX512BW"),
        (31, "AVX512VL"),
    ]),
    word(7, 0, Register::Ecx, NOT_OSPKE).named(&[
        (1, "AVX512_VBMI"),
        (2, "UMIP"),
        (3, "PKU"),
        (7, "CET_SS"),
        (8, "GFNI"),
        (9, "VAES"),
        (10, "VPCLMULQDQ"),
        (11, "AVX512_VNNI"),
        (16, "LA57"),
        (22, "RDPID"),
    ]),
    word(7, 0, Register::Edx, ALL).named(&[
        (4, "FSRM"),
        (10, "MD_CLEAR"),
        (22, "AMX-BF16"),
        (23, "AVX512_FP16"),
        (24, "AMX-TILE"),
        (26, "SPEC_CTRL"),
        (27, "STIBP"),
        (29, "ARCH_CAPABILITIES"),
        (31, "SSBD"),
    ]),
    word(7, 1, Register::Eax, ALL).named(&[(4, "AVX_VNNI"), (5, "AVX512_BF16")]),
    word(7, 1, Register::Ebx, ALL),
    word(7, 1, Register::Ecx, ALL),
    word(7, 1, Register::Edx, ALL),
    word(7, 2, Register::Edx, ALL),
    word(0xD, 0, Register::Eax, ALL).named(&[
        (2, "AVX state"),
        (5, "AVX-512 opmask state"),
        (9, "PKRU state"),
        (18, "AMX tile data"),
    ]),
    word(0xD, 0, Register::Edx, ALL),
    word(0xD, 1, Register::Eax, ALL).named(&[
        (0, "XSAVEOPT"),
        (1, "XSAVEC"),
        (2, "XGETBV with ECX 1"),
        (3, "XSAVES"),
    ]),
    word(0xD, 1, Register::Ecx, ALL),
    word(0xD, 1, Register::Edx, ALL),
    word(0x4000_0001, 0, Register::Eax, ALL).named(&[
        (0, "KVM clock (old)"),
        (3, "KVM clock"),
        (4, "KVM asynchronous page faults"),
        (5, "KVM steal time"),
        (6, "KVM end of interrupt"),
        (7, "KVM unhalt"),
        (24, "KVM stable clock"),
    ]),
    word(0x8000_0001, 0, Register::Ecx, ALL).named(&[
        (0, "LAHF"),
        (5, "LZCNT"),
        (6, "SSE4A"),
        (8, "PREFETCHW"),
        (11, "XOP"),
        (16, "FMA4"),
        (21, "TBM"),
    ]),
    word(0x8000_0001, 0, Register::Edx, ALL).named(&[
        (11, "SYSCALL"),
        (20, "NX"),
        (26, "pages of 1 GiB"),
        (27, "RDTSCP"),
        (29, "64 bits"),
    ]),
    word(0x8000_0007, 0, Register::Edx, ALL).named(&[(8, "invariant TSC")]),
    word(0x8000_0008, 0, Register::Ebx, ALL).named(&[(0, "CLZERO"), (12, "IBPB"), (24, "SSBD")]),
    word(0x8000_000A, 0, Register::Edx, ALL).named(&[(0, "nested paging")]),
    word(0x8000_0021, 0, Register::Eax, ALL),
    word(0x8000_0021, 0, Register::Ecx, ALL),
];
