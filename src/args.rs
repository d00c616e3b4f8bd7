//! What was typed, exactly; what it means is worked out in [`crate::plan`].
//!
//! Help, completions and man pages are all made from these types. Every verb shows examples.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::failure::Exit;

/// Disks that move while they are in use.
#[derive(Debug, Parser)]
#[command(
    name = "diskferry",
    version,
    max_term_width = 100,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = after_help()
)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What `--help` ends with: how sizes are read, and every exit code.
fn after_help() -> String {
    let mut text =
        "Sizes: 16T and 16TiB are 16·2^40 bytes, 16TB is 16·10^12.\n\nExit codes:\n    0  done"
            .to_owned();
    for (exit, meaning) in Exit::ALL {
        let _ = write!(text, "\n  {:>3}  {meaning}", exit as u8);
    }
    text
}

/// Flags that every verb takes.
#[derive(Args, Debug)]
pub(crate) struct GlobalArgs {
    /// Report in JSON, one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing but results and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more about what is done; twice for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Colour errors and hints
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: ColorWhen,
    /// How to show the progress of long work
    #[arg(long, global = true, value_name = "HOW", default_value = "auto")]
    pub(crate) progress: ProgressMode,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ColorWhen {
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ProgressMode {
    /// A bar if stderr is a terminal, JSON lines with --json, else nothing
    Auto,
    /// A bar on stderr
    Bar,
    /// A line on stderr every two seconds
    Plain,
    /// A JSON line on stdout every two seconds
    Json,
    /// Nothing
    None,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Create an empty disk
    Create(CreateArgs),
    /// Say what a disk is
    Info(InfoArgs),
    /// Check a disk against the rules of its format
    Check(CheckArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print or write the man pages
    Man(ManArgs),
}

/// The format of a disk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatName {
    /// Microsoft's VHDX, version 1
    Vhdx,
    /// The disk's bytes and nothing else
    Raw,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry create disk.vhdx 16T
  diskferry create disk.vhdx 64T --block-size 1M
  diskferry create disk.vhdx 100G --fixed
  diskferry create disk.img 100G              a sparse raw file, by its suffix")]
pub(crate) struct CreateArgs {
    /// The file to make; a suffix .vhdx makes a VHDX, any other a raw file
    pub(crate) disk: PathBuf,
    /// Size of the disk, as in 16T or 500GB
    pub(crate) size: String,
    /// Bytes per block of a VHDX: a power of two from 1M to 256M [default: by the size]
    #[arg(long, value_name = "SIZE")]
    pub(crate) block_size: Option<String>,
    /// Take all the space at once
    #[arg(long)]
    pub(crate) fixed: bool,
    /// Bytes per sector as the guest sees it: 512 or 4096
    #[arg(long, value_name = "BYTES", default_value = "512")]
    pub(crate) sector_size: String,
    /// Make this format, whatever the suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatName>,
    /// Replace the file if there is one
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry info disk.vhdx
  diskferry info --json disk.vhdx | jq .virtual_size")]
pub(crate) struct InfoArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    /// The disk's format, whatever its suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatName>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry check disk.vhdx
  diskferry check --json disk.vhdx && echo sound

Exits with 0 if the disk is sound, 3 if it is corrupt, 4 if only its log is to be replayed.")]
pub(crate) struct CheckArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    /// The disk's format, whatever its suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatName>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry completions bash > /etc/bash_completion.d/diskferry
  diskferry completions fish > ~/.config/fish/completions/diskferry.fish")]
pub(crate) struct CompletionsArgs {
    /// Which shell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry man | man -l -
  diskferry man --into /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Write a page for every verb into this folder instead of printing the first one
    #[arg(long, value_name = "DIR")]
    pub(crate) into: Option<PathBuf>,
}
