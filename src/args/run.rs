//! What was typed about a machine to be run.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ChainArgs, IdentityArgs};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry run vm.toml
  diskferry run debian.vhdx --memory 4G --vcpus 2                what is installed on a disk
  diskferry run debian.vhdx --dry-run                            only say what that is
  diskferry run vm.toml --restore before-upgrade --discard-disks
  diskferry mirror start root.vhdx --to tls:b.example:10810      while it runs
  diskferry run vm.toml --receive tls:0.0.0.0:10810              on b.example: `machine move` sends it there

A machine with two processors and one disk:

  vcpus = 2
  memory = \"4G\"

  [boot]
  kernel = \"vmlinuz\"
  initrd = \"initrd.img\"
  command_line = \"console=ttyS0 root=/dev/vda1\"

  [[disk]]
  path = \"root.vhdx\"

With `boot.from_disk = true`, or --boot-from-disk, the first disk's own kernel, initrd and command line are
read out of it, as its boot loader would; `boot.command_line` goes behind that of the disk.

Paths are seen from the folder of the file. It runs in the foreground until the guest powers off, or until a
signal: the first one ends it in order, as a power cut that loses nothing the guest was told is written.
docs/vmm.md has every key.")]
pub(crate) struct RunArgs {
    /// The file that describes the machine, or a disk (.vhdx, .avhdx, .raw, .img) with a system installed on it
    #[arg(value_name = "MACHINE_OR_DISK")]
    pub(crate) machine: PathBuf,
    /// Start what is installed on the first disk, or on that which `boot.from_disk` names
    #[arg(long)]
    pub(crate) boot_from_disk: bool,
    /// Only say what a disk would start
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Memory of a machine that is only a disk [default: 2G]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Processors of a machine that is only a disk [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) vcpus: Option<u8>,
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
    pub(crate) identity: IdentityArgs,
    #[command(flatten)]
    pub(crate) arrives: ArrivesArgs,
    #[command(flatten)]
    pub(crate) saved: SavedArgs,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}

/// How a machine comes from another host.
#[derive(Args, Debug)]
pub(crate) struct ArrivesArgs {
    /// Let a machine cross the network unencrypted, from anybody
    #[arg(long, requires = "receive")]
    pub(crate) plain: bool,
    /// Wait at this address (tls:HOST:PORT or tcp:HOST:PORT) until the machine comes from another host, by `machine move`, then run it
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["dry_run", "restore", "take_over"])]
    pub(crate) receive: Option<String>,
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

/// A snapshot that a machine goes on from.
#[derive(Args, Debug)]
pub(crate) struct SavedArgs {
    /// Go on from this snapshot, which `machine snapshot` has made, and not from the kernel
    #[arg(long, value_name = "FOLDER", conflicts_with = "dry_run")]
    pub(crate) restore: Option<PathBuf>,
    /// Set disks aside, under another name beside them, that stand where the snapshot's go
    #[arg(long, requires = "restore")]
    pub(crate) discard_disks: bool,
}
