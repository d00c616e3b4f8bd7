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
}

#[derive(Args, Debug)]
pub(crate) struct MachineArgs {
    /// The file that describes the machine
    pub(crate) machine: PathBuf,
    /// The control socket of its process: unix:PATH [default: found by the file]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Option<String>,
}
