//! What was typed about a machine that runs.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{FormatName, LimitArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum MachineVerb {
    /// Tell how it is
    Status(MachineArgs),
    /// Have its processors stand still
    Pause(MachineArgs),
    /// Have them run on
    Resume(MachineArgs),
    /// Press the power button: the guest is asked to shut down
    Shutdown(ShutdownArgs),
    /// Have it begin anew, as after a power cut
    Reset(MachineArgs),
    /// Pull the plug: what the guest did not flush may be lost
    PowerOff(MachineArgs),
    /// Attach to its console
    Console(ConsoleArgs),
    /// Put a disk into it
    AddDisk(AddDiskArgs),
    /// Take a disk out of it
    RemoveDisk(RemoveDiskArgs),
    /// Give one of its disks another size
    ResizeDisk(ResizeDiskArgs),
    /// Count what it and its disks have done
    #[command(after_help = "Examples:
  diskferry machine stats vm.toml
  diskferry machine stats vm.toml --json | jq '.disks[] | {name, written: .write.bytes}'

Latencies are those of the disk's server, in steps of powers of two: half, or 99 of 100 requests took less.")]
    Stats(MachineArgs),
    /// Keep it as it is now in a folder, from which `run --restore` goes on
    Snapshot(MachineSnapshotArgs),
    /// Move it to another host, with its disks
    Move(MachineMoveArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry run vm.toml --receive tls:0.0.0.0:10810       on the other host
  diskferry machine move vm.toml --to tls:b.example:10810

Its disks are copied while it runs. Then it stands still, its memory is sent, and machine and disks change hands at
once. The other host needs a vm.toml of the same machine, with paths and taps of its own; whether the machine
fits there is asked before anything is begun. Until it is decided, Ctrl-C and whatever fails leave the machine
running here (8); afterwards it must not be started here, and `run` here does not.")]
pub(crate) struct MachineMoveArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Where `run --receive` waits: tls:HOST:PORT or tcp:HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) to: String,
    /// Let the machine cross the network unencrypted
    #[arg(long)]
    pub(crate) plain: bool,
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

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry machine shutdown vm.toml
  diskferry machine shutdown vm.toml --wait --timeout 120

A guest without ACPI, or one that was told so, does nothing: with --wait that is a failure (1) after the
timeout, and the machine runs on. `machine power-off` pulls the plug.")]
pub(crate) struct ShutdownArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Return when the machine has ended
    #[arg(long)]
    pub(crate) wait: bool,
    /// Wait at most so long
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "wait")]
    pub(crate) timeout: u64,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry machine console vm.toml                Ctrl-A x leaves, Ctrl-A Ctrl-A is one Ctrl-A
  diskferry machine console vm.toml < /dev/null    only looks, until the machine ends

The last 64 KiB that the guest printed come first. Several may attach: all of them see everything, and all may
type. The console of every machine can be attached to, wherever `console.to` sends it.")]
pub(crate) struct ConsoleArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry machine add-disk vm.toml data.vhdx
  diskferry machine add-disk vm.toml scratch.img --format raw --name scratch --queues 1

The guest is told, and finds a virtio disk whose serial number is the name. From then on it is one of the
machine's disks: `mirror`, `resize`, `snapshot` and the other verbs find it, and a reset keeps it. vm.toml stays
as it is: the next `diskferry run` does not know of the disk.")]
pub(crate) struct AddDiskArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The disk
    pub(crate) disk: PathBuf,
    /// What it is called [default: the file's name without its suffix]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Its format [default: by the suffix]
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatName>,
    /// The guest may not write it
    #[arg(long)]
    pub(crate) read_only: bool,
    /// How many queues [default: as many as there are processors]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) queues: Option<u8>,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry machine remove-disk vm.toml data
  diskferry machine remove-disk vm.toml data --force

The guest is asked to let go of the disk; then the image is closed cleanly and others may have it. A guest that
does not answer in time keeps the disk, which is a failure (1). --force pulls the disk: what the guest did not flush
may be lost, and what it asks of the disk afterwards fails. A disk that is being moved is not removed.")]
pub(crate) struct RemoveDiskArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// What the disk is called
    pub(crate) name: String,
    /// Do not ask the guest
    #[arg(long)]
    pub(crate) force: bool,
    /// How long the guest may take
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        conflicts_with = "force"
    )]
    pub(crate) timeout: u64,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry machine resize-disk vm.toml root 20T
  diskferry machine resize-disk vm.toml root +1T

The guest is told, and sees the new size at once.")]
pub(crate) struct ResizeDiskArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// What the disk is called
    pub(crate) name: String,
    /// The new size, or +SIZE or -SIZE
    #[arg(allow_hyphen_values = true)]
    pub(crate) size: String,
    /// Throw away what lies beyond a nearer end
    #[arg(long)]
    pub(crate) discard_data: bool,
}
