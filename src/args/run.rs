//! What was typed about a machine to be run.

use std::path::PathBuf;

use clap::Args;

use super::ChainArgs;

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry run vm.toml
  diskferry run vm.toml --restore before-upgrade --discard-disks
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
    /// Go on from this snapshot, which `machine snapshot` has made, and not from the kernel
    #[arg(long, value_name = "FOLDER")]
    pub(crate) restore: Option<PathBuf>,
    /// Set disks aside, under another name beside them, that stand where the snapshot's go
    #[arg(long, requires = "restore")]
    pub(crate) discard_disks: bool,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}
