//! What a machine and its disks have done: `/v1/machine/stats`.

use blockserver::export::Statistics;
use serde::{Deserialize, Serialize};
use vmm::statistics::{VcpuState, VcpuStatistics};

use super::Life;
use crate::control::Limited;

/// A machine's numbers since it began, or began anew.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MachineStatistics {
    /// The file that describes it.
    pub(crate) machine: String,
    pub(crate) state: Life,
    pub(crate) uptime_ms: u64,
    /// How long of that its processors stood still.
    pub(crate) paused_ms: u64,
    /// How often it began anew.
    pub(crate) resets: u64,
    /// Bytes of the host's memory that the process has, the guest's among them.
    pub(crate) resident_bytes: u64,
    /// Bytes of the guest's memory that the host holds.
    pub(crate) guest_resident_bytes: u64,
    pub(crate) vcpus: Vec<Processor>,
    pub(crate) disks: Vec<DiskStatistics>,
}

/// A processor: what it does, and how often it left the guest for what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Processor {
    /// `running`, `paused` or `off`.
    pub(crate) state: String,
    pub(crate) port_reads: u64,
    pub(crate) port_writes: u64,
    pub(crate) memory_reads: u64,
    pub(crate) memory_writes: u64,
    /// The host wanted something of it.
    pub(crate) interrupted: u64,
}

impl From<VcpuStatistics> for Processor {
    fn from(counted: VcpuStatistics) -> Self {
        let state = match counted.state {
            VcpuState::Running => "running",
            VcpuState::Paused => "paused",
            VcpuState::Off => "off",
        };
        Self {
            state: state.to_owned(),
            port_reads: counted.port_reads,
            port_writes: counted.port_writes,
            memory_reads: counted.memory_reads,
            memory_writes: counted.memory_writes,
            interrupted: counted.interrupted,
        }
    }
}

/// What a disk was asked since it was opened here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DiskStatistics {
    pub(crate) name: String,
    pub(crate) virtual_size: u64,
    #[serde(flatten)]
    pub(crate) counted: Statistics,
    #[serde(flatten)]
    pub(crate) limited: Limited,
}
