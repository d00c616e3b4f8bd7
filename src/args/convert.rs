//! What was typed about copying a disk into another, and about comparing two.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{ChainArgs, FormatName};

/// The format of a disk that is only read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SourceFormat {
    /// Microsoft's VHDX, version 1
    Vhdx,
    /// The disk's bytes and nothing else; also block devices and streams
    Raw,
    /// QEMU's qcow2, versions 2 and 3
    Qcow2,
    /// VMDK, of one file or several
    Vmdk,
    /// Virtual PC's VHD, fixed or dynamic
    Vhd,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry convert disk.img disk.vhdx
  diskferry convert disk.vhdx disk.img
  diskferry convert appliance.vmdk disk.vhdx --verify
  diskferry convert /dev/sdb disk.vhdx
  diskferry convert child.vhdx whole.vhdx     a chain of disks becomes one
  diskferry convert nbd://host:10809/ disk.vhdx
  diskferry convert debian.qcow2 debian.vhdx --size 16T
  ssh host cat /dev/sdb | diskferry convert - disk.vhdx --size 100G
  diskferry convert disk.vhdx - | zstd > disk.img.zst

Read: raw, VHDX, qcow2, VMDK, VHD, block devices, NBD exports, and raw streams (-). Written: VHDX and raw.
Holes and zeros of the source stay holes. The target appears under its name only when it is whole. A
copy that was interrupted lies beside it, as TARGET.partial with TARGET.partial.json, and the same
command goes on with it. An image may name other files only in its own folder, or those of --parent-dir.")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag that is typed"
)]
pub(crate) struct ConvertArgs {
    /// The disk to read: a file, a block device, the address of an NBD export, or - for stdin
    pub(crate) source: PathBuf,
    /// The disk to make, or - for stdout
    pub(crate) target: PathBuf,
    /// The source's format, whatever its suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) from: Option<SourceFormat>,
    /// The target's format, whatever its suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: Option<FormatName>,
    /// Bytes of the new disk, as in 16T: more than the source's are zeros at its end; a stream must have them all
    /// [default: as the source]
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<String>,
    /// Bytes per block of a VHDX target [default: by the size]
    #[arg(long, value_name = "SIZE")]
    pub(crate) block_size: Option<String>,
    /// Bytes per sector of a VHDX target: 512 or 4096 [default: as the source]
    #[arg(long, value_name = "BYTES")]
    pub(crate) sector_size: Option<String>,
    /// Take all the target's space at once
    #[arg(long)]
    pub(crate) fixed: bool,
    /// Read both once more when the copy is made, and compare
    #[arg(long)]
    pub(crate) verify: bool,
    /// Throw away what an interrupted copy has made, and start over
    #[arg(long)]
    pub(crate) restart: bool,
    /// Threads that read [default: one for each processor, at most 8]
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// Say what would be done, and make nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace the target if it exists
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry compare disk.img disk.vhdx
  diskferry compare --json disk.vhdx nbd://host:10809/ && echo equal
  diskferry compare disk.bin disk.vhdx --format vmdk

Disks are equal if they hold the same bytes, however they are kept. Where one is longer, the rest of it
must be zero. Exits with 6 if they differ, and says where they do first.")]
pub(crate) struct CompareArgs {
    /// A disk: a file, a block device, or the address of an NBD export
    pub(crate) disk: PathBuf,
    /// The other one
    pub(crate) other: PathBuf,
    /// The first disk's format, whatever its suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<SourceFormat>,
    /// The other disk's format, whatever its suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) other_format: Option<SourceFormat>,
    /// Threads that read [default: one for each processor, at most 8]
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// A folder in which files may lie that a disk names; may be given several times [default: its own]
    #[arg(long, value_name = "DIR")]
    pub(crate) parent_dir: Vec<PathBuf>,
}
