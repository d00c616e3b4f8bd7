//! Where Prometheus finds what a server counts.

use clap::Args;

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct MetricsArgs {
    /// Answer GET /metrics for Prometheus at HOST:PORT, an address of this host's own loopback (the control socket answers it as well)
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) metrics: Option<String>,
    /// Let other hosts read the metrics: nobody is asked who he is, and names of disks are among them
    #[arg(long, requires = "metrics")]
    pub(crate) metrics_anywhere: bool,
}
