//! What was typed about what is noted of a disk's changes.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Subcommand, Debug)]
pub(crate) enum TrackVerb {
    /// Note what changes from now on
    On(TrackOnArgs),
    /// Note nothing any more, and forget the checkpoints
    Off(TrackDiskArgs),
    /// Tell what is noted, and the checkpoints
    Status(TrackDiskArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry track on disk.vhdx
  diskferry track on disk.vhdx --granularity 64K

One bit for each granule says that it was written since a checkpoint. The bits lie in a region of the
image that other programs skip; that they wrote to the disk is noticed, and everything counts as changed
then. The disk must not be in use.")]
pub(crate) struct TrackOnArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    /// Bytes of a granule, a power of two from 4K to 1M [default: 64K, more for a disk above 8T]
    #[arg(long, value_name = "SIZE")]
    pub(crate) granularity: Option<String>,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:
  diskferry track status disk.vhdx --json

The disk must not be in use by somebody who writes.")]
pub(crate) struct TrackDiskArgs {
    /// The disk
    pub(crate) disk: PathBuf,
}

#[derive(Subcommand, Debug)]
pub(crate) enum CheckpointVerb {
    /// Remember this moment under a name
    Add(CheckpointAddArgs),
    /// List the moments that are remembered
    List(TrackDiskArgs),
    /// Forget one; what changed since earlier ones is known as before
    Remove(CheckpointRemoveArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry checkpoint add disk.vhdx monday
  diskferry changed disk.vhdx --since monday

A disk that a `diskferry serve` has gets its checkpoint there, while it is in use: every write that was
acknowledged before belongs to the time before it. There are up to 16 checkpoints.")]
pub(crate) struct CheckpointAddArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    /// What the moment is called: up to 64 bytes
    pub(crate) name: String,
    /// The control socket of its server: unix:PATH [default: found by the disk]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Option<String>,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:
  diskferry checkpoint remove disk.vhdx monday

The disk must not be in use.")]
pub(crate) struct CheckpointRemoveArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    /// What the moment is called
    pub(crate) name: String,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry changed disk.vhdx --since monday
  diskferry changed disk.vhdx --since monday --until tuesday --json

Lists the extents that were written since, in order. More may be listed than changed, never less: where
another program wrote to the disk, or a checkpoint is not known any more, all of it. Nothing is listed of
a disk that is being written: take a checkpoint, end the server, or ask a copy.")]
pub(crate) struct ChangedArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    /// The checkpoint at which it begins
    #[arg(long, value_name = "CHECKPOINT")]
    pub(crate) since: String,
    /// The checkpoint at which it ends [default: now]
    #[arg(long, value_name = "CHECKPOINT")]
    pub(crate) until: Option<String>,
}
