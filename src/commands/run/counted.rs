//! What a machine and its disks have done so far.

use std::time::Duration;

use super::guest::Guest;
use crate::control::Limited;
use crate::control::machine::statistics::{DiskStatistics, MachineStatistics};
use crate::failure::{Failure, Result};

impl Guest {
    pub(super) fn counted(&self) -> Result<MachineStatistics> {
        let status = self.status.read();
        let status = status.map_err(|e| Failure::io("the process cannot be looked at", &e))?;
        let now = self.now();
        let counted = now.machine.statistics();
        let disks = now.disks.iter().map(|disk| DiskStatistics {
            name: disk.export.name().to_owned(),
            virtual_size: disk.export.size(),
            counted: disk.export.statistics(),
            limited: Limited {
                limits: disk.export.limits(),
                throttled: disk.export.throttled(),
            },
        });
        Ok(MachineStatistics {
            machine: self.described.display().to_string(),
            state: now.life,
            uptime_ms: millis(counted.uptime),
            paused_ms: millis(counted.paused),
            resets: now.resets,
            resident_bytes: field(&status, "VmRSS:"),
            guest_resident_bytes: field(&status, "RssShmem:")
                .saturating_add(field(&status, "HugetlbPages:")),
            vcpus: counted.vcpus.into_iter().map(Into::into).collect(),
            disks: disks.collect(),
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Bytes that a line of `/proc/self/status` names in kibibytes; 0 where this kernel does not say.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.map_or(0, |kibibytes| kibibytes.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn memory_is_read_in_kibibytes() {
        let status = "Name:\tdiskferry\nVmRSS:\t    1200 kB\nRssShmem:\t8 kB\n";
        assert_eq!(field(status, "VmRSS:"), 1200 << 10);
        assert_eq!(field(status, "RssShmem:"), 8 << 10);
        assert_eq!(field(status, "VmSwap:"), 0);
    }
}
