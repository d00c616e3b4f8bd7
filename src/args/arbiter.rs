//! What `arbiter` is told, and how to switch over.

use clap::{Args, Subcommand, ValueEnum};

#[derive(Subcommand, Debug)]
pub(crate) enum ArbiterVerb {
    /// Make an arbiter of a place, once
    New(ArbiterArgs),
    /// List what it has decided
    List(ArbiterArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry arbiter new file:/mnt/third-place/arbiter
  diskferry arbiter new etcd:http://10.0.9.1:2379,http://10.0.9.2:2379
  diskferry arbiter list file:/mnt/third-place/arbiter")]
pub(crate) struct ArbiterArgs {
    // As an attribute: an address is no link.
    #[arg(
        value_name = "ARBITER",
        help = "file:/DIRECTORY, on a file system with hard links, or etcd:http://HOST:PORT[,http://HOST:PORT]; https takes the files that ETCDCTL_CACERT, ETCDCTL_CERT and ETCDCTL_KEY name"
    )]
    pub(crate) arbiter: String,
}

/// How a disk changes its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SwitchoverName {
    /// The source decides: one and a half round trips
    Safe,
    /// An arbiter decides: half a round trip, and one to the arbiter
    Fast,
}

impl From<SwitchoverName> for mirror::arbiter::Switchover {
    fn from(name: SwitchoverName) -> Self {
        match name {
            SwitchoverName::Safe => Self::Safe,
            SwitchoverName::Fast => Self::Fast,
        }
    }
}
