//! What was typed, exactly; what it means is worked out in [`crate::plan`].
//!
//! Help, completions and man pages are all made from these types. Every verb shows examples.

mod arbiter;
mod chain;
mod check;
mod compact;
mod convert;
mod elsewhere;
mod evacuation;
mod limit;
mod machine;
mod metadata;
mod metrics;
mod mirror;
mod package;
mod pair;
mod receive;
mod run;
mod track;

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

pub(crate) use self::arbiter::{ArbiterArgs, ArbiterVerb, SwitchoverName};
pub(crate) use self::chain::{ChainArgs, CommitArgs, FlattenArgs, RebaseArgs, SnapshotArgs};
pub(crate) use self::check::CheckArgs;
pub(crate) use self::compact::CompactArgs;
pub(crate) use self::convert::{CompareArgs, ConvertArgs, SourceFormat};
pub(crate) use self::elsewhere::ElsewhereArgs;
pub(crate) use self::evacuation::{EvacuateArgs, PlanArgs};
pub(crate) use self::limit::{LimitArgs, LimitDiskArgs};
pub(crate) use self::machine::{
    AddDiskArgs, ConsoleArgs, MachineArgs, MachineMoveArgs, MachineSnapshotArgs, MachineVerb,
    RemoveDiskArgs, ResizeDiskArgs, ShutdownArgs,
};
pub(crate) use self::metadata::{
    MetadataGetArgs, MetadataListArgs, MetadataRemoveArgs, MetadataSetArgs, MetadataVerb,
};
pub(crate) use self::metrics::MetricsArgs;
pub(crate) use self::mirror::{
    MirrorArgs, MirrorMapArgs, MirrorStartArgs, MirrorVerb, MirrorVerifyArgs,
};
pub(crate) use self::package::{ExportArgs, ImportArgs, KeyArgs, LockArgs, StoreArgs};
pub(crate) use self::pair::{IdentityArgs, PairForgetArgs, PairNewArgs, PairTrustArgs, PairVerb};
pub(crate) use self::receive::ReceiveArgs;
pub(crate) use self::run::{Confine, RunArgs};
pub(crate) use self::track::{
    ChangedArgs, CheckpointAddArgs, CheckpointRemoveArgs, CheckpointVerb, TrackOnArgs, TrackVerb,
};
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
    /// Keep what a disk holds now, and go on in a new disk built on it
    Snapshot(SnapshotArgs),
    /// Merge a disk into the one it is built on
    Commit(CommitArgs),
    /// Put a disk on another parent
    Rebase(RebaseArgs),
    /// Make a disk one of its own, built on no other
    Flatten(FlattenArgs),
    /// Say what a disk is
    Info(InfoArgs),
    /// List, read, set and remove the metadata items of a disk
    #[command(
        subcommand,
        after_help = "Examples:
  diskferry metadata list disk.vhdx
  diskferry metadata get disk.vhdx 6f1de1f2-5a3e-4c9b-8f0e-3d1d4ac12a01
  diskferry metadata set disk.vhdx 6f1de1f2-5a3e-4c9b-8f0e-3d1d4ac12a01 --text mail
  diskferry metadata remove disk.vhdx 6f1de1f2-5a3e-4c9b-8f0e-3d1d4ac12a01"
    )]
    Metadata(MetadataVerb),
    /// Check a disk against the rules of its format
    Check(CheckArgs),
    /// List which parts of a disk are allocated
    Map(MapArgs),
    /// Copy a disk into another format, or the same
    Convert(ConvertArgs),
    /// Say whether two disks hold the same
    Compare(CompareArgs),
    /// Make a disk larger or smaller, also while it is served
    Resize(ResizeArgs),
    /// Limit how much may be asked of a disk that is served, or is a machine's
    Limit(LimitDiskArgs),
    /// Make a disk's file as short as it can be, also while it is served
    Compact(CompactArgs),
    /// Note which parts of a disk change, or stop that
    #[command(
        subcommand,
        after_help = "Examples:
  diskferry track on disk.vhdx
  diskferry track status disk.vhdx
  diskferry track off disk.vhdx"
    )]
    Track(TrackVerb),
    /// Remember a moment, so that what changes from then on can be listed
    #[command(
        subcommand,
        after_help = "Examples:
  diskferry checkpoint add disk.vhdx monday
  diskferry checkpoint list disk.vhdx
  diskferry checkpoint remove disk.vhdx monday"
    )]
    Checkpoint(CheckpointVerb),
    /// List what changed since a checkpoint
    Changed(ChangedArgs),
    /// Serve disks to NBD clients until a signal
    Serve(ServeArgs),
    /// Run a machine from its disks, in the foreground
    Run(RunArgs),
    /// Tell how a machine is, and change it while it runs
    #[command(
        subcommand,
        after_help = "Examples:
  diskferry machine status vm.toml
  diskferry machine pause vm.toml
  diskferry machine add-disk vm.toml data.vhdx
  diskferry machine snapshot vm.toml --into before-upgrade"
    )]
    Machine(MachineVerb),
    /// Receive disks from other hosts, and serve them once they belong here
    Receive(ReceiveArgs),
    /// Let this site and others know each other, for encrypted moves
    #[command(
        subcommand,
        after_help = "Examples:
  diskferry pair new                                     at each site, once
  diskferry pair trust other-site.pem --as other-site    the other's cert.pem, brought here by hand

Two sites that move disks over a network know each other by their certificates. Read the fingerprint to somebody
at the other site before you trust it. Then
  diskferry receive --listen tls:0.0.0.0:9000 ...
  diskferry mirror start disk.vhdx --to tls:other-site:9000

Nobody else is let in, and nobody else is sent anything. Programs that run learn of changes when they are
started again; a move goes on then."
    )]
    Pair(PairVerb),
    /// Make or look at the third place that decides in a fast switchover
    #[command(
        subcommand,
        after_help = "Examples:
  diskferry arbiter new file:/mnt/third-place/arbiter    once
  diskferry arbiter list file:/mnt/third-place/arbiter

Both hosts of a move reach it. With
  diskferry receive ... --arbiter file:/mnt/third-place/arbiter
  diskferry mirror start disk.vhdx --to ... --switchover fast --arbiter file:/mnt/third-place/arbiter
the target takes the disk over as soon as it has everything and the arbiter says so, which saves a round trip
between the hosts; and if one of them is lost in the middle, the other goes on by itself."
    )]
    Arbiter(ArbiterVerb),
    /// Move a disk that is being served to another host or path
    #[command(
        subcommand,
        after_help = "Examples:
  diskferry mirror start disk.vhdx --to tcp:10.0.0.2:9000 --manual
  diskferry mirror status disk.vhdx
  diskferry mirror cutover disk.vhdx --wait
  diskferry mirror cancel disk.vhdx"
    )]
    Mirror(MirrorVerb),
    /// Say which machines can move by a deadline, in which order, and what the others need
    Plan(PlanArgs),
    /// Move machines as such a plan has it, and plan anew as it goes
    Evacuate(EvacuateArgs),
    /// Write a disk, or what changed of it, as a package of files for another site
    Export(ExportArgs),
    /// Make a disk of a package, or bring one up to date
    Import(ImportArgs),
    /// Measure how fast a disk or a server is
    Bench(BenchArgs),
    /// Write at a steady rate and keep a ledger, or check a disk against one
    #[command(hide = true, subcommand)]
    Load(LoadVerb),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print or write the man pages
    Man(ManArgs),
}

/// How much of a new disk's space is taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PreallocationName {
    /// None: holes until they are written
    Off,
    /// All of it is reserved, so that no write can meet a full host
    Falloc,
    /// All of it is written with zeros
    Full,
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
  diskferry create disk.vhdx 100G --fixed --preallocation full
  diskferry create disk.img 100G              a sparse raw file, by its suffix
  diskferry create child.vhdx --parent base.vhdx

A disk with a parent holds only what differs from it. The parent must not change from then on: see
`diskferry snapshot`.")]
pub(crate) struct CreateArgs {
    /// The file to make; a suffix .vhdx makes a VHDX, any other a raw file
    pub(crate) disk: PathBuf,
    /// Size of the disk, as in 16T or 500GB; that of its parent, if it has one
    #[arg(required_unless_present = "parent", conflicts_with = "parent")]
    pub(crate) size: Option<String>,
    /// Make a differencing disk over this one
    #[arg(long, value_name = "DISK", conflicts_with_all = ["fixed", "sector_size"])]
    pub(crate) parent: Option<PathBuf>,
    /// Bytes per block of a VHDX: a power of two from 1M to 256M [default: by the size]
    #[arg(long, value_name = "SIZE")]
    pub(crate) block_size: Option<String>,
    /// Give every block its place at once; the space is reserved, unless --preallocation says else
    #[arg(long)]
    pub(crate) fixed: bool,
    /// How much of the space of a fixed or raw disk to take [default: falloc if --fixed, else off]
    #[arg(long, value_name = "MODE", conflicts_with = "parent")]
    pub(crate) preallocation: Option<PreallocationName>,
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
  diskferry map disk.vhdx
  diskferry map --offset 1T --length 1G disk.vhdx
  diskferry map --json disk.vhdx | jq 'select(.type == \"extent\" and .allocated)'")]
pub(crate) struct MapArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    /// The disk's format, whatever its suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatName>,
    /// First byte to list
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub(crate) offset: String,
    /// How many bytes to list [default: to the end]
    #[arg(long, value_name = "SIZE")]
    pub(crate) length: Option<String>,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry resize disk.vhdx 20T
  diskferry resize disk.vhdx +1T
  diskferry resize disk.vhdx -500G                  refused if data lies there
  diskferry resize disk.vhdx 1T --discard-data      throws away what lies beyond

A disk that a `diskferry serve` has is resized there, while it is in use. Clients see the new size when
they connect again; until then they keep the old one, and what they ask for beyond a new, nearer end
fails. A disk that is being moved, or has been, is not resized. What the disk holds is not touched:
make partitions and file systems smaller before it, larger after it. A disk built on another one is as
long as it says: behind its old end it reads zero, whatever that one holds; what it shows of it is data.
Disks that are built on a disk refuse it once it has been resized.")]
pub(crate) struct ResizeArgs {
    /// The disk
    pub(crate) disk: PathBuf,
    /// The new size, as in 20T, or the difference, as in +1T or -500G
    #[arg(allow_hyphen_values = true)]
    pub(crate) size: String,
    /// Agree that data beyond the new end is thrown away
    #[arg(long)]
    pub(crate) discard_data: bool,
    /// The disk's format, whatever its suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatName>,
    /// The control socket of its server: unix:PATH [default: found by the disk]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Option<String>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry serve disk.vhdx --listen unix:/run/disk.sock
  diskferry serve disk.vhdx --listen tcp:127.0.0.1:10809 --read-only
  diskferry serve disk.vhdx --listen unix:/run/disk.sock --iops 2000 --bandwidth 100M    for each disk
  diskferry serve disk.vhdx --listen unix:/run/disk.sock --metrics 127.0.0.1:9750    for Prometheus
  diskferry serve root=a.vhdx data=b.vhdx --listen tcp:0.0.0.0:10809 --listen unix:/run/disks.sock
  diskferry serve disk.vhdx --listen tls:0.0.0.0:10809    for sites that are trusted (see `diskferry pair`)
  diskferry serve nbd://127.0.0.1:10809/disk --state disk.vhdx.nbd --listen unix:/run/disk.sock    stands in front of it

Each disk is an export with the name of its file without the suffix, or the name given. A single
disk is also the default export, the one with the empty name. SIGINT and SIGTERM end it in order:
what is in flight is answered, and every disk is closed cleanly.

A disk may be an export of any other NBD server. Its clients connect here from then on, and nobody writes to it past
this server: then it moves while it is used (diskferry mirror start disk.vhdx.nbd --to …, and it arrives as disk.vhdx).
The file NAME.nbd says whose it is. docs/nbd-source.md says what cannot be promised.")]
pub(crate) struct ServeArgs {
    /// The disks: a file or the address of an NBD export, or NAME=one of them
    #[arg(required = true, value_name = "DISK")]
    pub(crate) disks: Vec<PathBuf>,
    /// Where to listen: unix:PATH, tcp:HOST:PORT or tls:HOST:PORT; may be given several times
    #[arg(long, required = true, value_name = "ADDRESS")]
    pub(crate) listen: Vec<String>,
    /// Refuse all changes; others may read the disk too
    #[arg(long)]
    pub(crate) read_only: bool,
    /// The format of the disks, whatever their suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatName>,
    /// Threads that serve [default: one for each processor]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// Listen for control here too: unix:PATH (every disk has a control socket that `mirror` finds)
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Vec<String>,
    /// Serve also a disk that is marked incomplete or handed over; only if no other host can own it
    #[arg(long)]
    pub(crate) take_over: bool,
    #[command(flatten)]
    pub(crate) elsewhere: ElsewhereArgs,
    #[command(flatten)]
    pub(crate) metrics: MetricsArgs,
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}

/// What a bench does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pattern {
    RandomRead,
    RandomWrite,
    SequentialRead,
    SequentialWrite,
}

impl Pattern {
    /// Whether it changes the disk.
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::RandomWrite | Self::SequentialWrite)
    }

    /// Whether it goes anywhere in the area, rather than from its beginning to its end.
    pub(crate) fn random(self) -> bool {
        matches!(self, Self::RandomRead | Self::RandomWrite)
    }
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry bench disk.vhdx
  diskferry bench nbd://host:10809/ --pattern random-write --depth 32 --destroy-data
  diskferry bench nbd+unix:///?socket=/run/disk.sock --json --duration 30s
  diskferry bench scratch.vhdx --pattern random-write --flush-every 32 --prepare --destroy-data

Writes to a block of a dynamic disk that is absent allocate it; --prepare writes the area first, so
that none of the measured writes does. A disk given as a file is opened here and does one thing at a
time; to measure many at a time, serve it.")]
pub(crate) struct BenchArgs {
    /// A disk's file, or the address of an NBD export
    pub(crate) disk: String,
    /// What to do
    #[arg(long, default_value = "random-read")]
    pub(crate) pattern: Pattern,
    /// Bytes of one read or write
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    pub(crate) block_size: String,
    /// Requests outstanding at a time [default: 32 for a server, 1 for a file]
    #[arg(long)]
    pub(crate) depth: Option<usize>,
    /// Flush after every so many writes
    #[arg(long, value_name = "N")]
    pub(crate) flush_every: Option<u64>,
    /// First byte of the area
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub(crate) offset: String,
    /// Bytes of the area [default: to the end]
    #[arg(long, value_name = "SIZE")]
    pub(crate) length: Option<String>,
    /// Write the whole area before measuring
    #[arg(long)]
    pub(crate) prepare: bool,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(crate) duration: String,
    /// Measure so many reads or writes, however long they take
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    pub(crate) ops: Option<u64>,
    /// Where random places come from
    #[arg(long, default_value = "1")]
    pub(crate) seed: u64,
    /// Agree that what the area holds is overwritten
    #[arg(long)]
    pub(crate) destroy_data: bool,
    /// The format of a disk's file, whatever its suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatName>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LoadVerb {
    /// Write and flush at a steady rate, noting every write in a ledger
    Run(LoadRunArgs),
    /// Check that a disk holds what a ledger says was acknowledged
    Verify(LoadVerifyArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry load run nbd://host/ --ledger writes.ledger --rate 500 --flush-every 16
  diskferry load run unix:disk.sock --ledger l --offset 15T --length 1G --phases phase.txt

Ends after --duration, or with SIGINT or SIGTERM: then it waits for what is outstanding and flushes.
A ledger that exists is continued.")]
pub(crate) struct LoadRunArgs {
    /// A disk's file, or the address of an NBD export
    pub(crate) disk: String,
    /// Where to note every write
    #[arg(long, value_name = "FILE")]
    pub(crate) ledger: PathBuf,
    /// Writes each second
    #[arg(long, default_value = "500")]
    pub(crate) rate: u64,
    /// Bytes of one write
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    pub(crate) block_size: String,
    /// First byte of the area
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub(crate) offset: String,
    /// Bytes of the area
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub(crate) length: String,
    /// Flush after every so many writes
    #[arg(long, value_name = "N", default_value = "16")]
    pub(crate) flush_every: u64,
    /// The most writes outstanding
    #[arg(long, default_value = "32")]
    pub(crate) depth: usize,
    /// How long to go on [default: until a signal]
    #[arg(long, value_name = "TIME")]
    pub(crate) duration: Option<String>,
    /// A file that names the phase under way; times are told apart by it
    #[arg(long, value_name = "FILE")]
    pub(crate) phases: Option<PathBuf>,
    /// Where random places and contents come from
    #[arg(long, default_value = "1")]
    pub(crate) seed: u64,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry load verify disk.vhdx --ledger writes.ledger
  diskferry load verify nbd://host/ --ledger writes.ledger --flushed-only")]
pub(crate) struct LoadVerifyArgs {
    /// A disk's file, or the address of an NBD export
    pub(crate) disk: String,
    /// The ledger
    #[arg(long, value_name = "FILE")]
    pub(crate) ledger: PathBuf,
    /// Ask only for what a flush made durable: the server may have been killed
    #[arg(long)]
    pub(crate) flushed_only: bool,
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
