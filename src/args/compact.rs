//! What was typed about making a disk's file shorter.

use std::path::PathBuf;

use clap::Args;

use super::ChainArgs;

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry compact disk.vhdx
  diskferry compact disk.vhdx --defragment      blocks in the order of the disk as well
  diskferry compact disk.vhdx --json

Space that the guest has given back (fstrim) goes to the host: blocks without data are dropped, the last
ones of the file move to free places, and the file is cut. What the disk reads as does not change, and
disks that are built on it stay valid. It may be interrupted at any time; the same command goes on.
A disk that a `diskferry serve` has is compacted there, while it is in use. --defragment moves blocks
twice and needs room for them meanwhile.")]
pub(crate) struct CompactArgs {
    /// The disk, a VHDX image
    pub(crate) disk: PathBuf,
    /// Also bring the blocks into the order of the disk
    #[arg(long)]
    pub(crate) defragment: bool,
    /// The control socket of its server: unix:PATH [default: found by the disk]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Option<String>,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}
