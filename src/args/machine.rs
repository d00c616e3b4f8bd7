//! What was typed about a machine that runs.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum MachineVerb {
    /// Tell how it is
    Status(MachineArgs),
    /// Have its processors stand still
    Pause(MachineArgs),
    /// Have them run on
    Resume(MachineArgs),
    /// Pull the plug: what the guest did not flush may be lost
    PowerOff(MachineArgs),
    /// Keep it as it is now in a folder, from which `run --restore` goes on
    Snapshot(MachineSnapshotArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry machine snapshot vm.toml --into before-upgrade
  diskferry machine snapshot vm.toml --into asleep --stop
  diskferry run vm.toml --restore asleep

It stands still while its memory is written, and then goes on. What each disk holds is kept beside the disk:
that of root.vhdx as root.before-upgrade.vhdx; root.vhdx goes on, built on it. The folder and these files
belong together. They are the snapshot, and have to stay unchanged as long as anything is built on them.")]
pub(crate) struct MachineSnapshotArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The folder to make; its name becomes part of the names of what disks hold
    #[arg(long, value_name = "FOLDER")]
    pub(crate) into: PathBuf,
    /// End the machine with it: what comes after the snapshot never happens
    #[arg(long)]
    pub(crate) stop: bool,
}

#[derive(Args, Debug)]
pub(crate) struct MachineArgs {
    /// The file that describes the machine
    pub(crate) machine: PathBuf,
    /// The control socket of its process: unix:PATH [default: found by the file]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Option<String>,
}
