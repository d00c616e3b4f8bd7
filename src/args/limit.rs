//! What was typed about how much may be asked of a disk.

use std::path::PathBuf;

use clap::Args;

/// Limits of a disk.
#[derive(Args, Debug, Default)]
pub(crate) struct LimitArgs {
    /// Requests a second, all clients and queues of a disk together
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub(crate) iops: Option<u64>,
    /// Requests at once after a pause [default: those of a tenth of a second]
    #[arg(long, value_name = "N", requires = "iops", help_heading = "Limits")]
    pub(crate) iops_burst: Option<u64>,
    /// Bytes a second that are read and written, as in 100M
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub(crate) bandwidth: Option<String>,
    /// Bytes at once after a pause [default: those of a tenth of a second]
    #[arg(
        long,
        value_name = "SIZE",
        requires = "bandwidth",
        help_heading = "Limits"
    )]
    pub(crate) bandwidth_burst: Option<String>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry limit disk.vhdx --iops 2000 --bandwidth 100M
  diskferry limit disk.vhdx --bandwidth 50M --bandwidth-burst 500M
  diskferry limit disk.vhdx --none
  diskferry limit disk.vhdx                           says what holds now, and what has waited

The disk is one that a `diskferry serve` or a machine has. What is given holds from now on, for all its clients and
queues together, and what is not given is not limited. Reads, writes, discards and zeroes count as requests, a large one
of a guest once for each MiB; flushes are free, so that data is not kept at risk. What waits has its turn in the
order in which it came. Requests that go to another site after a move are not limited here.")]
pub(crate) struct LimitDiskArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Nothing is limited any more
    #[arg(long, conflicts_with_all = ["iops", "bandwidth"])]
    pub(crate) none: bool,
    /// The control socket of its server: unix:PATH [default: found by the disk]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Option<String>,
}
