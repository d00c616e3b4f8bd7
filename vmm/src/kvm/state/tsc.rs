//! Time stamp counters of a machine's processors, which go on together.
//!
//! Where KVM says what it adds to the host's counter, that is what is set: of the first processor so that its value is the right
//! one, of the others by their distance from it. So the time that it takes to set one after another is
//! not seen. A value is written only where it does not: kernels before 6.7 take the first one that is close to what
//! they began with for an attempt to bring processors in step, and pass over it.

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
        if !set_value(fd, value)? {
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

/// Have the counter show `value` now; `false` where KVM has no way for that.
fn set_value(fd: &VcpuFd, value: u64) -> Result<bool> {
    if let Some(offset) = raw::get_tsc_offset(fd)
        && let Some(now) = msrs::read_one(fd, msrs::TSC)
        && raw::set_tsc_offset(fd, offset.wrapping_add(value.wrapping_sub(now))).is_ok()
    {
        return Ok(true);
    }
    msrs::write_one(fd, msrs::TSC, value)
}
