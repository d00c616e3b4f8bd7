//! What was typed about disks that are built on others.

use std::path::PathBuf;

use clap::Args;

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry snapshot disk.vhdx disk-monday.vhdx

BASE keeps what it holds now and is made read-only; CHILD holds what is written from now on. Use CHILD
in place of BASE. To go back to what BASE holds, delete CHILD and make BASE writable again (chmod u+w).
A disk that a `diskferry serve` has is snapshot there, while it is in use: clients see a short pause, and the
server goes on with CHILD. The disk may itself be built on others.")]
pub(crate) struct SnapshotArgs {
    /// The disk, which becomes the read-only parent
    pub(crate) base: PathBuf,
    /// The differencing disk to make
    pub(crate) child: PathBuf,
    /// Bytes per block of the child: a power of two from 1M to 256M [default: 2M]
    #[arg(long, value_name = "SIZE")]
    pub(crate) block_size: Option<String>,
    /// The control socket of the disk's server: unix:PATH [default: found by the disk]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Option<String>,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry commit monday.vhdx
  diskferry commit monday.vhdx --delete

Afterwards the parent holds what the disk reads as. Until the disk is deleted it goes on reading the
same, also if the merge is interrupted: the same command goes on then. Other disks that are built on the
parent would be lost; those in the two folders are looked for, and the merge is refused if there are any.")]
pub(crate) struct CommitArgs {
    /// The disk to merge into its parent
    pub(crate) disk: PathBuf,
    /// Delete the disk once it is merged, and leave its parent writable
    #[arg(long)]
    pub(crate) delete: bool,
    /// Merge although other disks are built on the parent
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry rebase monday.vhdx --onto sunday.vhdx
  diskferry rebase monday.vhdx --onto moved/disk.vhdx

The disk reads as before: what its new parent holds otherwise becomes its own. Where its parent has only
moved, as in the second example, nothing is copied.")]
pub(crate) struct RebaseArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    /// The disk that it is to be built on
    #[arg(long, value_name = "DISK")]
    pub(crate) onto: PathBuf,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry flatten monday.vhdx
  diskferry flatten monday.vhdx --parent-dir /srv/disks

The disk reads as before, from its own file alone: what it read from the disks it is built on is copied
into it. They are not changed and may be deleted afterwards if no other disk is built on them. Disks that are
built on this one stay as they are. The disk must not be in use. If it is interrupted the disk reads as
before, and the same command goes on. To make a new file instead, use `diskferry convert`.")]
pub(crate) struct FlattenArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}

/// Where the disks may be that a disk is built on.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ChainArgs {
    /// The parent of the disk, whatever the disk itself says; it must be the right version
    #[arg(long, value_name = "DISK")]
    pub(crate) parent: Option<PathBuf>,
    /// A folder in which parents may lie; may be given several times [default: the disk's own]
    #[arg(long, value_name = "DIR")]
    pub(crate) parent_dir: Vec<PathBuf>,
}
