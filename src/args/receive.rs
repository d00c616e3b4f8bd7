//! What `receive` is told.

use std::path::PathBuf;

use clap::Args;

use super::metrics::MetricsArgs;
use super::pair::IdentityArgs;

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry receive --listen tls:0.0.0.0:9000 --into /srv/disks --serve tls:10.0.0.2:10809
  diskferry receive --listen tls:0.0.0.0:9000 --into /srv/disks --serve tls:10.0.0.2:10810 --serve tcp:10.0.0.2:10809
  diskferry receive --listen tcp:127.0.0.1:9000 --into . --serve unix:/run/disks.sock
  diskferry receive --listen tls:0.0.0.0:9000 --into /srv/disks --serve tls:10.0.0.2:10809 --expect db.vhdx --quota 500G
  diskferry receive --listen tls:0.0.0.0:9000 --into /srv/disks --serve tls:10.0.0.2:10809 --metrics 127.0.0.1:9750
  diskferry receive --listen tls:0.0.0.0:9000 --into /srv/disks --serve tls:10.0.0.2:10809 --template /srv/images/debian-12.vhdx
  diskferry receive --seed /srv/disks/disk.vhdx                      it came on a drive: take it for an older copy
  diskferry receive --promote-at-last-epoch /srv/disks/disk.vhdx     the source is lost for good

Disks arrive in the folder under the names of their files, refused by every program until they are
complete. From the moment a disk belongs to this host it is served. The address to serve at is also
the one to which the source sends its clients' requests; if they must use another, --advertise it.
At tls:HOST:PORT those are encrypted as the move is, between sites that know each other; clients of this site
can be served elsewhere too. Where the move is encrypted and they are not, --plain has to be said.

--expect, --max-disk and --quota say what is taken; a move that has begun may end, whatever they say after a restart. A move that
would need more than the quota ends with an error, and its source stays the owner.

A copy that came another way saves most of the transfer: --seed marks it as one, once, and the move that comes
for a disk of that name compares all of it with the source's and brings only what is different. How old or how
torn the copy is does not matter, but it must open. `serve --take-over` makes a disk of its own of it again.

Disks that were made from an image which is here too need not bring what is the same: --template names such images, of any
format that `convert` reads. Each block is compared by its hash before it is taken, so it does not matter whether they are
in use or what became of them; they are only read.

A disk whose source stays in step with it (mirror start --manual) follows it from one consistent moment to
the next, every 0.1 s or so. If the source is lost for good, --promote-at-last-epoch makes the disk what the source's
was at the last of them; serve it then. Disks that were started together follow together: with any one of them all
that lie in its folder are promoted, to one moment. If that is refused because one of them is missing or was being
handed over, --apart promotes the one alone. Use it only if nothing will serve the source's disk again.

A disk that belongs to this host is controlled as one of `diskferry serve` is: it can be limited, resized and moved on
(diskferry mirror start /srv/disks/disk.vhdx --to …), and is forwarded to its next owner then, also after a restart.")]
pub(crate) struct ReceiveArgs {
    /// Where sources connect: tls:HOST:PORT, encrypted and only for sites that are known, or tcp:HOST:PORT
    #[arg(long, value_name = "ADDRESS", required_unless_present_any = ["promote", "seed"])]
    pub(crate) listen: Option<String>,
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
    /// Let disks, or what is asked of them, cross the network unencrypted, from anybody
    #[arg(long)]
    pub(crate) plain: bool,
    /// The folder for the disks
    #[arg(long, value_name = "DIR", required_unless_present_any = ["promote", "seed"])]
    pub(crate) into: Option<PathBuf>,
    /// Where NBD clients connect: unix:PATH, tls:HOST:PORT or tcp:HOST:PORT; may be given several times
    #[arg(long, value_name = "ADDRESS", required_unless_present_any = ["promote", "seed"])]
    pub(crate) serve: Vec<String>,
    /// Take an image for an older copy of the disk that will come under its name, and end
    #[arg(long, value_name = "DISK", conflicts_with_all = ["listen", "into", "serve", "promote"])]
    pub(crate) seed: Option<PathBuf>,
    /// Make a disk that follows a lost one this host's own, as that was at the last consistent marker, and end
    #[arg(
        long = "promote-at-last-epoch",
        value_name = "DISK",
        conflicts_with_all = ["listen", "into", "serve"]
    )]
    pub(crate) promote: Option<PathBuf>,
    /// Take only disks of that name, as in db.vhdx; may be given several times [default: any]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["seed", "promote"])]
    pub(crate) expect: Vec<String>,
    /// Take no disk that is larger, as in 2T
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["seed", "promote"])]
    pub(crate) max_disk: Option<String>,
    /// Let the files in the folder take at most so many bytes, as in 500G
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["seed", "promote"])]
    pub(crate) quota: Option<String>,
    /// An image of which blocks are not sent that a new disk has at the same place: what it was made from, or an older copy;
    /// may be given several times
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["seed", "promote"])]
    pub(crate) template: Vec<PathBuf>,
    /// Promote that disk alone, though it is one of a group: each of them is then at a moment of its own
    #[arg(long, requires = "promote")]
    pub(crate) apart: bool,
    #[arg(
        long,
        value_name = "ARBITER",
        help = "Who decides in fast switchovers: file:/DIRECTORY or etcd:http://HOST:PORT (see `diskferry arbiter`)"
    )]
    pub(crate) arbiter: Option<String>,
    /// The NBD address that sources are told [default: the first --serve]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) advertise: Option<String>,
    /// Listen for control here too: unix:PATH (every disk that is owned here has a control socket that `mirror` finds)
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Vec<String>,
    #[command(flatten)]
    pub(crate) metrics: MetricsArgs,
    /// Threads that serve [default: one for each processor]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
}
