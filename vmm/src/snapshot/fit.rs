//! Whether a machine can go on at a host: the features that it has seen must be there.
//!
//! Decides by what two hosts say of themselves. A feature that the host has in addition is no reason to refuse.

use std::fmt;

use super::{CpuidLeaf, HostFacts, MachineState, features};

/// Why a machine cannot go on at a host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misfit {
    /// Processors of another vendor: the machine's, the host's.
    Vendor(String, String),
    /// Processors of another family: the machine's, the host's.
    Family(u32, u32),
    /// A feature that the machine has and the host has not.
    Feature {
        /// The leaf of CPUID.
        function: u32,
        /// Its index.
        index: u32,
        /// The register of the answer, as in "ecx".
        register: &'static str,
        /// The bit in it.
        bit: u8,
        /// What the feature is called, if it is well known.
        name: Option<&'static str>,
    },
    /// Physical addresses of more bits than the host has: the machine's, the host's.
    AddressBits(u8, u8),
    /// The time stamp counter runs at another frequency, in kHz, and cannot be scaled: the machine's, the host's.
    TscFrequency(u32, u32),
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vendor(saved, here) => write!(
                f,
                "the machine ran on processors of {saved}, and this host has {here}"
            ),
            Self::Family(saved, here) => write!(
                f,
                "the machine ran on processors of family {saved:#x}, and this host has {here:#x}"
            ),
            Self::Feature {
                function,
                index,
                register,
                bit,
                name,
            } => {
                f.write_str("the machine uses a feature that this host lacks: ")?;
                if let Some(name) = name {
                    write!(f, "{name}, ")?;
                }
                write!(f, "CPUID {function:#x}.{index} {register} bit {bit}")
            }
            Self::AddressBits(saved, here) => write!(
                f,
                "the machine has physical addresses of {saved} bits, and this host of {here}"
            ),
            Self::TscFrequency(saved, here) => write!(
                f,
                "the machine's time stamp counter runs at {saved} kHz, this host's at {here} kHz, and it \
                 cannot be scaled here"
            ),
        }
    }
}

impl std::error::Error for Misfit {}

/// Where the size of addresses is: leaf `0x8000_0008`, EAX, the lowest byte.
const SIZES: u32 = 0x8000_0008;
/// KVM takes a frequency for the host's own within so many millionths.
const TOLERANCE_PPM: u64 = 250;

/// The answer to a question; a leaf that is not there is all zero.
fn find(cpuid: &[CpuidLeaf], function: u32, index: u32) -> [u32; 4] {
    let asked =
        |leaf: &&CpuidLeaf| leaf.function == function && (leaf.index == index || !leaf.indexed);
    let found = cpuid.iter().find(asked);
    found.map_or([0; 4], |leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
}

/// Family with its extension, of leaf 1, EAX (Intel SDM volume 2, CPUID).
fn family(signature: u32) -> u32 {
    match signature >> 8 & 0xF {
        0xF => 0xF + (signature >> 20 & 0xFF),
        family => family,
    }
}

fn vendor(name: &[u8; 12]) -> String {
    String::from_utf8_lossy(name).escape_debug().to_string()
}

impl HostFacts {
    /// Whether the machine of `state` can go on at this host; the first reason why not.
    pub fn carries(&self, state: &MachineState) -> Result<(), Misfit> {
        self.is_like(&state.host)?;
        for processor in &state.processors {
            self.has_features(&processor.cpuid)?;
            self.has_frequency(processor.tsc.khz)?;
        }
        Ok(())
    }

    /// Whether a machine that was told `given` of its host can go on at this one; the first reason why not. Its state
    /// may still be refused for what only the state says.
    pub fn takes(&self, given: &HostFacts) -> Result<(), Misfit> {
        self.is_like(given)?;
        self.has_features(&given.cpuid)?;
        self.has_frequency(given.tsc_khz)
    }

    fn is_like(&self, saved: &HostFacts) -> Result<(), Misfit> {
        if saved.vendor != self.vendor {
            return Err(Misfit::Vendor(vendor(&saved.vendor), vendor(&self.vendor)));
        }
        let families = (family(saved.signature), family(self.signature));
        if families.0 != families.1 {
            return Err(Misfit::Family(families.0, families.1));
        }
        Ok(())
    }

    fn has_features(&self, cpuid: &[CpuidLeaf]) -> Result<(), Misfit> {
        for word in &features::WORDS {
            let [saved, here] = [cpuid, &self.cpuid].map(|leaves| {
                let answer = find(leaves, word.function, word.index);
                word.register.of(answer) & word.bits
            });
            let lacking = saved & !here;
            if lacking != 0 {
                let bit = lacking.trailing_zeros() as u8;
                return Err(Misfit::Feature {
                    function: word.function,
                    index: word.index,
                    register: word.register.name(),
                    bit,
                    name: word.name(bit),
                });
            }
        }
        let [saved, here] = [cpuid, &self.cpuid].map(|leaves| {
            let [eax, ..] = find(leaves, SIZES, 0);
            eax as u8
        });
        if saved > here {
            return Err(Misfit::AddressBits(saved, here));
        }
        Ok(())
    }

    fn has_frequency(&self, saved: u32) -> Result<(), Misfit> {
        let here = self.tsc_khz;
        let near = u64::from(saved.abs_diff(here)) * 1_000_000 <= u64::from(here) * TOLERANCE_PPM;
        if near || self.tsc_scaling || saved == 0 || here == 0 {
            return Ok(());
        }
        Err(Misfit::TscFrequency(saved, here))
    }
}
