//! What was typed about a machine to be run.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ChainArgs;

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry run vm.toml
  diskferry mirror start root.vhdx --to tcp:b.example:10810      while it runs

A machine with two processors and one disk:

  vcpus = 2
  memory = \"4G\"

  [boot]
  kernel = \"vmlinuz\"
  initrd = \"initrd.img\"
  command_line = \"console=ttyS0 root=/dev/vda1\"

  [[disk]]
  path = \"root.vhdx\"

Paths are seen from the folder of the file. It runs in the foreground until the guest powers off, or until a
signal: the first one ends it in order, as a power cut that loses nothing the guest was told is written.
docs/vmm.md has every key.")]
pub(crate) struct RunArgs {
    /// The file that describes the machine
    pub(crate) machine: PathBuf,
    /// Listen for control here too: unix:PATH (every disk has a control socket that `mirror` finds)
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Vec<String>,
    /// Run also from a disk that is marked incomplete or handed over; only if no other host can own it
    #[arg(long)]
    pub(crate) take_over: bool,
    /// What happens when a thread makes a system call that it may not
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub(crate) confine: Confine,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}

/// How a machine's process is confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Confine {
    /// It is said on stderr, and the process ends with 159; files are those of the machine
    #[default]
    Kill,
    /// It passes, and the kernel logs it; files are those of the machine
    Log,
    /// The process may do all that its user may
    Off,
}
