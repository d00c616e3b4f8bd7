//! A machine's state is taken, and a machine is made of one.
//!
//! Driver. Taking it changes nothing: the machine can go on. What a state says is checked before a part of the
//! host is made for it; a machine that cannot be as it was is not made.

use super::{Devices, Machine, MachineConfig};
use crate::memory::Memory;
use crate::snapshot::{HostFacts, MachineState};
use crate::{Error, ErrorKind, Result};

impl Machine {
    /// The state of this machine, which has to be paused and its devices stopped ([`Self::pause`],
    /// [`Self::stop_devices`]); also of one that has not started. Memory and disks are the caller's.
    ///
    /// The machine can go on afterwards, or be saved again.
    pub fn save(&self) -> Result<MachineState> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "the state of a machine cannot be saved yet",
        ))
    }

    /// The machine that `state` is of, with its memory, before [`Self::start`]: that lets it go on.
    ///
    /// `config` says the processors and the memory that it has to have; what it says of a kernel is not used.
    /// `devices` are as at [`Self::new`]: the same kinds in the same order, with what the drivers use of them.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] where the host, the memory or a device is not one that the machine can go on with,
    /// and says which.
    pub fn restored(
        config: &MachineConfig,
        state: &MachineState,
        memory: Memory,
        devices: Devices,
    ) -> Result<Self> {
        let _ = (config, state, memory, devices);
        Err(Error::mismatch("a machine cannot be restored yet"))
    }
}

/// What this host is to machines: what [`HostFacts::carries`] is asked of.
pub fn host_facts() -> Result<HostFacts> {
    Err(Error::new(
        ErrorKind::Unsupported,
        "a host does not say what it is yet",
    ))
}
