//! Model-specific registers of a processor.
//!
//! KVM lists those that are a processor's state, but not all: of those that it keeps beside the list, each that is
//! not as in a new processor is kept too. The time stamp counter is not among them, see [`super::tsc`].

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::failed;
use crate::snapshot::Msr;
use crate::{Error, Result};

/// The time stamp counter.
pub(super) const TSC: u32 = 0x10;
/// When the APIC's timer ends. Is refused before the timer's mode is that.
const TSC_DEADLINE: u32 = 0x6E0;
/// What KVM does not list: MTRRs (variable, fixed, default), and banks of machine checks.
const UNLISTED: [std::ops::RangeInclusive<u32>; 6] = [
    0x200..=0x20F,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26F,
    0x2FF..=0x2FF,
    0x400..=0x47F,
];

/// Read those that are listed, and what has to be kept of others; what cannot be read is left out.
pub(super) fn read(fd: &VcpuFd, listed: &[u32]) -> Result<Vec<Msr>> {
    let of_list: Vec<u32> = listed
        .iter()
        .copied()
        .filter(|index| *index != TSC)
        .collect();
    let others: Vec<u32> = UNLISTED
        .into_iter()
        .flatten()
        .filter(|index| !of_list.contains(index))
        .collect();
    let mut msrs = read_all(fd, &of_list)?;
    let more = read_all(fd, &others)?;
    msrs.extend(more.into_iter().filter(|msr| msr.value != 0));
    msrs.sort_unstable_by_key(|msr| msr.index);
    msrs.dedup_by_key(|msr| msr.index);
    Ok(msrs)
}

fn batch(entries: &[kvm_msr_entry]) -> Result<Msrs> {
    Msrs::from_entries(entries).map_err(|_| Error::invalid("too many model-specific registers"))
}

/// Read those that can be. KVM stops at the first that it refuses.
fn read_all(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let part = rest.get(..KVM_MAX_MSR_ENTRIES).unwrap_or(rest);
        let wanted: Vec<_> = part.iter().map(|index| entry(*index, 0)).collect();
        let mut wanted = batch(&wanted)?;
        let count = fd
            .get_msrs(&mut wanted)
            .map_err(failed("model-specific registers cannot be read"))?;
        let read = wanted.as_slice().iter().take(count);
        found.extend(read.map(|entry| Msr {
            index: entry.index,
            value: entry.data,
        }));
        let refused = usize::from(count < part.len());
        rest = rest.get(count + refused..).unwrap_or_default();
    }
    Ok(found)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    }
}

/// What a register holds, if it can be read.
pub(super) fn read_one(fd: &VcpuFd, index: u32) -> Option<u64> {
    let found = read_all(fd, &[index]).ok()?;
    found.first().map(|msr| msr.value)
}

/// Set one; whether KVM took it.
pub(super) fn write_one(fd: &VcpuFd, index: u32, value: u64) -> Result<bool> {
    let set = fd.set_msrs(&batch(&[entry(index, value)])?);
    set.map(|count| count == 1)
        .map_err(failed("a model-specific register was refused"))
}

/// Set all. One that KVM refuses is no reason to refuse the machine where it holds that value already, or
/// where it is not there and held nothing.
pub(super) fn write(fd: &VcpuFd, saved: &[Msr]) -> Result<()> {
    let deadline = |msr: &&Msr| msr.index == TSC_DEADLINE;
    let order: Vec<_> = saved
        .iter()
        .filter(|msr| !deadline(msr))
        .chain(saved.iter().filter(deadline))
        .map(|msr| entry(msr.index, msr.value))
        .collect();
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        let part = rest.get(..KVM_MAX_MSR_ENTRIES).unwrap_or(rest);
        let count = fd
            .set_msrs(&batch(part)?)
            .map_err(failed("model-specific registers were refused"))?;
        if let Some(refused) = part.get(count) {
            let there = read_one(fd, refused.index);
            if there.unwrap_or_default() != refused.data {
                return Err(Error::mismatch(format!(
                    "this host's KVM refuses model-specific register {:#x} with {:#x}, which the machine has",
                    refused.index, refused.data
                )));
            }
        }
        let done = count + usize::from(count < part.len());
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(())
}
