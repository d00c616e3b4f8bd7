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
    /// Draw the disk: what of it is there already, what is to be copied, dirty, hot or on its way
    Map(MirrorMapArgs),
    /// Switch over as soon as the target is in step
    Cutover(MirrorCutoverArgs),
    /// Have a disk that has moved go back to where it came from
    Rollback(MirrorRollbackArgs),
    /// Copy at most so many bytes a second
    Rate(MirrorRateArgs),
    /// Be in step by another time than was said at the start
    Deadline(MirrorDeadlineArgs),
    /// Find out whether both sides have the same, while both are in use
    Verify(MirrorVerifyArgs),
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
  diskferry mirror start disk.vhdx --to tls:10.0.0.2:9000 --way-back tls:10.0.0.1:9001 --way-back-for 8h
  diskferry mirror start disk.vhdx --to 'nbd+unix:///?socket=/run/qemu.sock' --wait      any NBD server

With a deadline the status says all the time how long it will take and how sure that is, to how many bytes a second
writers are held, and, as soon as it is known, that it cannot be kept and what it would need.

The disk stays in use. Once the target is in step the source switches over by itself, unless --manual;
from then on it forwards its clients' requests.

Several disks of one server that are started together, with --manual and to another host, follow together: what the target
has of them, if this host is lost, is what one power cut would have left on all of them. Each is switched over by itself;
if one of them is cancelled, or fails, so are the others. After a crash they go on once one server has all of them again.

If the target has something of the disk already (of an earlier move, of the time before it moved away, or a
seed that was brought there: diskferry receive --seed), both read what they have, compare it by hashes, and only
what is different is sent.

With --way-back the disk can go back after it has moved: the target keeps the file here in step for that time, and
`diskferry mirror rollback` there hands the disk over to this server again, whose clients stay connected. Several disks that
move together go back together; they have to lie in one folder here.

An export of any NBD server can be the target too: nbd://HOST:PORT/EXPORT, nbds://HOST:PORT/EXPORT (encrypted; its
certificate is trusted with `diskferry pair trust`) or nbd+unix:///EXPORT?socket=PATH, at least as large as the disk. It gets the bytes of the disk, raw. That protocol knows no order among writes, no owner and no moments,
so the following cannot be promised:
  * While it follows, the target is no disk of any moment: it is this disk only once the move has ended. If this host is
    lost before, what is there is of no use.
  * That the disk has moved is written down here alone. Nothing keeps others from writing to the export, or this server's
    owner from starting a second one there: see to it that nobody else uses it.
  * It is durable there if the server's flush is honest. A server without one is refused, except --without-flush.
  * What the server was sent over a connection that was lost it may do later; it is given two seconds for that.
  * Bytes are not checked on their way or afterwards, except by TCP; `mirror verify` needs one of ours.
  * After a restart of this server before the move has ended, it is begun again and all is copied again.
  * There is no way back, no deadline and no arbiter.")]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(crate) struct MirrorStartArgs {
    #[command(flatten)]
    pub(crate) disk: MirrorArgs,
    /// tls:HOST:PORT or tcp:HOST:PORT of a `diskferry receive`, an export of any NBD server, or a new file on this host
    #[arg(long, value_name = "TARGET")]
    pub(crate) to: String,
    /// Let the disk cross the network unencrypted
    #[arg(long)]
    pub(crate) plain: bool,
    /// Move to an NBD server although it cannot say what is durable there
    #[arg(long)]
    pub(crate) without_flush: bool,
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
    /// Slow clients' writes down by at most so many percent, for the deadline and for a moment before the switchover [default: as far as it takes]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) max_slowdown: Option<u8>,
    /// Wait here for the disk to come back once it has moved: tls:HOST:PORT or tcp:HOST:PORT of this host, as the target reaches it
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) way_back: Option<String>,
    /// For how long, as in 30m or 8h [default: 24h]
    #[arg(long, value_name = "TIME", requires = "way_back")]
    pub(crate) way_back_for: Option<String>,
    /// Begin from an empty disk, whatever the target has of it
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Copy at most so many bytes a second, as in 20M or 20M,08:00-18:00=5M; new writes always travel
    #[arg(long, value_name = "SIZE")]
    pub(crate) rate: Option<String>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry mirror map disk.vhdx
  diskferry mirror map disk.vhdx --wait        drawn again and again until the move has ended
  diskferry mirror map disk.vhdx --cells 64 --json

The disk from its first byte to its last, line by line. A cell shows the most urgent thing that is the matter with any byte in
it: on its way, hot (written again and again), dirty (written after it was copied), to be copied, not looked at yet, copied, or
not allocated. Drawing costs the server the same however large the disk is. What is not a terminal gets no colours and no
redrawing; without a UTF-8 locale only ASCII is used.")]
pub(crate) struct MirrorMapArgs {
    /// The disk, as it was given to `diskferry serve`
    pub(crate) disk: PathBuf,
    /// The control socket of its server: unix:PATH [default: found by the disk]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Option<String>,
    /// Stay until the disk has moved or the move has ended; Ctrl-C leaves it running
    #[arg(long)]
    pub(crate) wait: bool,
    /// Draw at most so many cells [default: what fits the terminal]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) cells: Option<u16>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry mirror rate disk.vhdx 20M
  diskferry mirror rate disk.vhdx none
  diskferry mirror rate disk.vhdx 50M,mon-fri@08:00-18:00=5M      less by day; the last one that fits holds

Times are those of the server's clock; a span may go over midnight, as in 22:00-06:00=none. Holds from now on. What is packed takes less of the network than that. What clients write anew always travels at once.")]
pub(crate) struct MirrorRateArgs {
    #[command(flatten)]
    pub(crate) disk: MirrorArgs,
    /// Bytes a second that the copy reads, `none` for as fast as it goes, also by the time of day
    #[arg(value_name = "SIZE")]
    pub(crate) rate: String,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry mirror deadline disk.vhdx 20m
  diskferry mirror deadline disk.vhdx 20m --max-slowdown 50
  diskferry mirror deadline disk.vhdx none      clients write as fast as they like

Counts from now, and takes the place of what was said before, also of --max-slowdown.")]
pub(crate) struct MirrorDeadlineArgs {
    #[command(flatten)]
    pub(crate) disk: MirrorArgs,
    /// Within which time, as in 90s, 30m or 2h; `none` for no deadline
    #[arg(value_name = "TIME")]
    pub(crate) deadline: String,
    /// Slow clients' writes down by at most so many percent for it [default: as far as it takes]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) max_slowdown: Option<u8>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry mirror verify disk.vhdx --wait
  diskferry mirror verify disk.vhdx --wait --json

Both sides read all that is allocated here and compare it by hashes, and see that the rest is zero there; `mirror rate` holds
it back. It begins once the target is in step and does not keep it from following. A block that is different three times, with
nobody writing to it in between, is wrong: it is said which was the first, and all of them are copied again and looked at again.
One that runs is waited for, none is begun beside it. With --wait the exit code is 6 if something was wrong. Ctrl-C leaves it running; `mirror status` shows how far it is.")]
pub(crate) struct MirrorVerifyArgs {
    /// The disk, as it was given to `diskferry serve`
    pub(crate) disk: PathBuf,
    /// The control socket of its server: unix:PATH [default: found by the disk]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Option<String>,
    /// Stay until all of it was compared
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry mirror rollback /srv/disks/disk.vhdx --wait

Said where the disk is owned now. It needs a move that was started with --way-back, and the time that was given then not
to be over. It is a safe switchover as any other: the disk there has all that was written here, and whose requests were
sent here by the other server is served by that again without connecting anew.")]
pub(crate) struct MirrorRollbackArgs {
    #[command(flatten)]
    pub(crate) disk: MirrorArgs,
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
  diskferry mirror status disk.vhdx --wait --json | jq 'select(.type == \"summary\").report'
  diskferry mirror status data.vhdx log.vhdx

A move that has ended leaves a report: how long each phase took, what was read, sent and saved, how fast it went, how fast
clients wrote, the pause, and the first estimate beside what it took. It stays in the status until the disk's next move. Of
several disks there is a line for each and one for all of them.")]
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
