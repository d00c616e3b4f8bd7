//! Time stamp counters of a machine's processors, which go on together.
//!
//! What counters differ by is kept exactly where KVM says what it adds to the host's: the first processor's is set
//! by its value, the others' by their distance from it. So the time that it takes to write one after
//! another is not seen.

use kvm_ioctls::VcpuFd;

use super::{Abilities, failed, msrs, raw};
use crate::snapshot::Tsc;
use crate::{Error, Result};

/// What the counters of one machine are set by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TscBase {
    /// Nanoseconds that have passed since they were read.
    elapsed: u64,
    /// Of the first processor: what was added where it was read, and what is here.
    first: Option<(u64, u64)>,
}

pub(super) fn read(fd: &VcpuFd) -> Tsc {
    Tsc {
        khz: fd.get_tsc_khz().unwrap_or_default(),
        value: msrs::read_one(fd, msrs::TSC).unwrap_or_default(),
        offset: raw::get_tsc_offset(fd),
    }
}

impl TscBase {
    /// Counters that were read so many nanoseconds of the guest's time ago.
    pub(crate) fn new(elapsed: u64) -> Self {
        Self {
            elapsed,
            first: None,
        }
    }

    /// Set a processor's. The first to be set is the first processor's.
    pub(super) fn write(&mut self, fd: &VcpuFd, abilities: &Abilities, saved: &Tsc) -> Result<()> {
        if abilities.tsc_scaling && saved.khz != 0 {
            fd.set_tsc_khz(saved.khz).map_err(failed(
                "the frequency of the time stamp counter was refused",
            ))?;
        }
        if let (Some((there, here)), Some(offset)) = (self.first, saved.offset) {
            let offset = here.wrapping_add(offset.wrapping_sub(there));
            return raw::set_tsc_offset(fd, offset)
                .map_err(failed("a time stamp counter was refused"));
        }
        // 64 bits of nanoseconds times 32 bits of kHz.
        let ticks = u128::from(self.elapsed) * u128::from(saved.khz) / 1_000_000;
        let value = saved.value.wrapping_add(ticks as u64);
        if !msrs::write_one(fd, msrs::TSC, value)? {
            return Err(Error::mismatch(
                "this host's KVM does not let the time stamp counter be set",
            ));
        }
        // Some KVMs take it and show the host's counter as it is.
        let now = msrs::read_one(fd, msrs::TSC).unwrap_or(value);
        if now.wrapping_sub(saved.value).cast_signed() < 0 {
            return Err(Error::mismatch(
                "this host's KVM does not set the time stamp counter, which would go back",
            ));
        }
        let here = raw::get_tsc_offset(fd);
        self.first = self.first.or(saved.offset.zip(here));
        Ok(())
    }
}
