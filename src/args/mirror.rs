//! What `mirror` is told.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::SwitchoverName;

#[derive(Subcommand, Debug)]
pub(crate) enum MirrorVerb {
    /// Begin to move a disk that is being served
    Start(MirrorStartArgs),
    /// Say how the move stands
    Status(MirrorArgs),
    /// Switch over as soon as the target is in step
    Cutover(MirrorCutoverArgs),
    /// Copy at most so many bytes a second
    Rate(MirrorRateArgs),
    /// End the move; the source stays the owner
    Cancel(MirrorArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry mirror start disk.vhdx --to tls:10.0.0.2:9000 --wait
  diskferry mirror start disk.vhdx --to tls:10.0.0.2:9000 --manual
  diskferry mirror start disk.vhdx --to /faster/disk.vhdx --wait      another path of this host
  diskferry mirror start disk.vhdx --to tls:10.0.0.2:9000 --fresh     copy all of it again
  diskferry mirror start disk.vhdx --to tls:10.0.0.2:9000 --deadline 30m --max-slowdown 50
  diskferry mirror start data.vhdx log.vhdx --to tls:10.0.0.2:9000 --manual     disks of one machine, at one moment
  diskferry mirror start disk.vhdx --to tls:10.0.0.2:9000 --switchover fast --arbiter file:/mnt/third/arbiter

With a deadline the status says all the time how long it will take and how sure that is, to how many bytes a second
writers are held, and, as soon as it is known, that it cannot be kept and what it would need.

The disk stays in use. Once the target is in step the source switches over by itself, unless --manual;
from then on it forwards its clients' requests.

Several disks of one server that are started together, with --manual and to another host, follow together: what the target
has of them, if this host is lost, is what one power cut would have left on all of them. Each is switched over by itself;
if one of them is cancelled, or fails, so are the others.

If the target has something of the disk already (of an earlier move, of the time before it moved away, or a
seed that was brought there: diskferry receive --seed), both read what they have, compare it by hashes, and only
what is different is sent.")]
pub(crate) struct MirrorStartArgs {
    #[command(flatten)]
    pub(crate) disk: MirrorArgs,
    /// tls:HOST:PORT or tcp:HOST:PORT of a `diskferry receive`, or a new file on this host
    #[arg(long, value_name = "TARGET")]
    pub(crate) to: String,
    /// Let the disk cross the network unencrypted
    #[arg(long)]
    pub(crate) plain: bool,
    /// Stay in step until `diskferry mirror cutover`
    #[arg(long)]
    pub(crate) manual: bool,
    /// Switch over only when the pause is estimated to be at most this long [default: 300]
    #[arg(long, value_name = "MILLISECONDS")]
    pub(crate) max_pause: Option<u64>,
    /// How the disk changes its owner [default: safe]
    #[arg(long, value_name = "HOW")]
    pub(crate) switchover: Option<SwitchoverName>,
    #[arg(
        long,
        value_name = "ARBITER",
        help = "Who decides in a fast switchover: file:/DIRECTORY or etcd:http://HOST:PORT, as at the target"
    )]
    pub(crate) arbiter: Option<String>,
    /// Be in step within that time, as in 90s, 30m or 2h: clients' writes are slowed down as far as that takes
    #[arg(long, value_name = "TIME")]
    pub(crate) deadline: Option<String>,
    /// Slow clients' writes down by at most so many percent for the deadline [default: as far as it takes]
    #[arg(long, value_name = "PERCENT", requires = "deadline", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) max_slowdown: Option<u8>,
    /// Begin from an empty disk, whatever the target has of it
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Copy at most so many bytes a second, as in 20M; new writes always travel
    #[arg(long, value_name = "SIZE")]
    pub(crate) rate: Option<String>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry mirror rate disk.vhdx 20M
  diskferry mirror rate disk.vhdx none

Holds from now on. What is packed takes less of the network than that. What clients write anew always travels at once.")]
pub(crate) struct MirrorRateArgs {
    #[command(flatten)]
    pub(crate) disk: MirrorArgs,
    /// Bytes a second that the copy reads, or `none` for as fast as it goes
    #[arg(value_name = "SIZE")]
    pub(crate) rate: String,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry mirror cutover disk.vhdx --wait
  diskferry mirror cutover disk.vhdx --switchover safe     the arbiter is away")]
pub(crate) struct MirrorCutoverArgs {
    #[command(flatten)]
    pub(crate) disk: MirrorArgs,
    /// How, if not as the move was started
    #[arg(long, value_name = "HOW")]
    pub(crate) switchover: Option<SwitchoverName>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry mirror status disk.vhdx --wait
  diskferry mirror status data.vhdx log.vhdx")]
pub(crate) struct MirrorArgs {
    /// The disks, as they were given to `diskferry serve`
    #[arg(required = true, value_name = "DISK")]
    pub(crate) disks: Vec<PathBuf>,
    /// The control socket of its server: unix:PATH [default: found by the disk]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Option<String>,
    /// Stay until the disk has moved or the move has ended; Ctrl-C leaves it running
    #[arg(long)]
    pub(crate) wait: bool,
}
