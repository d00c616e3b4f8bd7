//! What was typed about the metadata items of a disk.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Subcommand, Debug)]
pub(crate) enum MetadataVerb {
    /// List every item, those of the format too
    List(MetadataListArgs),
    /// Print what a user's item holds
    Get(MetadataGetArgs),
    /// Set a user's item
    Set(MetadataSetArgs),
    /// Remove a user's item
    Remove(MetadataRemoveArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry metadata list disk.vhdx
  diskferry metadata list --json disk.vhdx | jq 'select(.user)'")]
pub(crate) struct MetadataListArgs {
    /// The disk
    pub(crate) disk: PathBuf,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry metadata get disk.vhdx 6f1de1f2-5a3e-4c9b-8f0e-3d1d4ac12a01
  diskferry metadata get disk.vhdx 6f1de1f2-5a3e-4c9b-8f0e-3d1d4ac12a01 --file owner.json

Without --file the bytes go to stdout as they are; with --json as hexadecimal digits in a line.")]
pub(crate) struct MetadataGetArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    /// The item
    pub(crate) guid: String,
    /// Write the bytes to this new file
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry metadata set disk.vhdx 6f1de1f2-5a3e-4c9b-8f0e-3d1d4ac12a01 --text 'owner: mail'
  diskferry metadata set disk.vhdx 6f1de1f2-5a3e-4c9b-8f0e-3d1d4ac12a01 --file owner.json
  date | diskferry metadata set disk.vhdx 6f1de1f2-5a3e-4c9b-8f0e-3d1d4ac12a01 --file -

An item has at most 1 MiB, a disk at most 1024 of them. The change is whole or not there, also if the
power is cut. An item of the disk goes with it into its snapshots; changing one makes the disk another
version, and disks that are built on it are lost: those in its folder are looked for, and the change is
refused if there are any. The disk must not be in use.")]
pub(crate) struct MetadataSetArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    /// The item
    pub(crate) guid: String,
    /// Have it hold this text
    #[arg(long, required_unless_present = "file", conflicts_with = "file")]
    pub(crate) text: Option<String>,
    /// Have it hold what is in this file; - for stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// It describes the disk and not the file: snapshots get it too
    #[arg(long)]
    pub(crate) of_disk: bool,
    /// Change the disk although others are built on it
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:
  diskferry metadata remove disk.vhdx 6f1de1f2-5a3e-4c9b-8f0e-3d1d4ac12a01

Items of the format are never removed. For items of the disk, see `diskferry metadata set`.")]
pub(crate) struct MetadataRemoveArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    /// The item
    pub(crate) guid: String,
    /// Change the disk although others are built on it
    #[arg(long)]
    pub(crate) force: bool,
}
