//! What was typed about the examination and the repair of a disk.

use std::path::PathBuf;

use clap::Args;

use super::{ChainArgs, FormatName};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry check disk.vhdx
  diskferry check --json disk.vhdx && echo sound
  diskferry check --chain child.vhdx
  diskferry check --repair --dry-run disk.vhdx
  diskferry check --repair --to repaired.vhdx disk.vhdx
  diskferry check --repair disk.vhdx

Exits with 0 if the disk is sound, 3 if it is corrupt and no repair makes it sound, 4 if its log is to be
replayed or a repair makes it sound, 5 if it is in use, or a repair is asked of a disk that belongs to
another host. A repair exits by what it leaves; --dry-run by what is there. A repair changes only what
needs no guess, never what the disk reads as, and leaves a disk alone that it cannot mend safely.")]
pub(crate) struct CheckArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    /// The disk's format, whatever its suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatName>,
    /// Examine the disks that it is built on too
    #[arg(long = "chain", conflicts_with = "repair")]
    pub(crate) whole_chain: bool,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
    /// Put right what needs no guess; the disk must not be in use
    #[arg(long)]
    pub(crate) repair: bool,
    /// Repair a copy, which is made here, and leave the disk as it is
    #[arg(
        long,
        value_name = "COPY",
        requires = "repair",
        conflicts_with = "dry_run"
    )]
    pub(crate) to: Option<PathBuf>,
    /// Only tell what a repair would do
    #[arg(long, requires = "repair")]
    pub(crate) dry_run: bool,
}
