//! What was typed about disks that travel as packages.

use std::path::PathBuf;

use clap::Args;

use super::{ChainArgs, FormatName, SourceFormat};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry export disk.vhdx --to usb/monday
  diskferry export disk.vhdx --to usb/tuesday --since last
  diskferry export disk.vhdx --to usb1/disk --to usb2/disk --volume-size 4G
  diskferry export disk.qcow2 --to out --encrypt-to age1...
  diskferry export disk.vhdx --to dvd --volume-size dvd --verify
  diskferry export disk.vhdx --to s3://bucket/disks/monday
  diskferry export disk.vhdx --to s3://bucket/monday --endpoint https://store.example

Writes NAME.001, NAME.002 and so on, and at the end NAME.manifest; without that one a package is not whole. An
export that was interrupted is gone on with by the same command; --to may then name more folders. Nobody may write the disk meanwhile: of
one that is in use, `diskferry snapshot` keeps a moment that can be exported. Where changes are tracked
(`diskferry track on`) the export takes a checkpoint, `export-` and the package's number, and a later export
--since that checkpoint holds only what changed.

A store is one that speaks S3; its credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL) or are those of the cloud's machine or container.")]
pub(crate) struct ExportArgs {
    /// The disk: a file
    pub(crate) disk: PathBuf,
    /// A folder for the package, made if it is not there; the next one is for what the ones before have no room for.
    /// Or one store, as in the examples
    #[arg(long, required = true, value_name = "DIR")]
    pub(crate) to: Vec<PathBuf>,
    /// What the files are called [default: as the disk]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Most bytes of a file: a size as in 4G, fat32 (4 GiB - 1), or dvd
    #[arg(long, value_name = "SIZE", default_value = "fat32")]
    pub(crate) volume_size: String,
    /// Only what changed since this checkpoint, which an export took; `last` is the youngest
    #[arg(long, value_name = "CHECKPOINT")]
    pub(crate) since: Option<String>,
    /// Take no checkpoint: nothing can be exported --since this package
    #[arg(long)]
    pub(crate) no_checkpoint: bool,
    /// Read all files once more before the manifest is written
    #[arg(long)]
    pub(crate) verify: bool,
    /// Throw away what an interrupted export has made, and start over
    #[arg(long)]
    pub(crate) restart: bool,
    /// The disk's format, whatever its suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<SourceFormat>,
    /// Threads that read and pack [default: one for each processor, at most 8]
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) lock: LockArgs,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}

/// For whom a package is encrypted.
#[derive(Args, Debug)]
pub(crate) struct LockArgs {
    /// Encrypt for this recipient of age, age1...; may be given several times
    #[arg(long, value_name = "RECIPIENT", conflicts_with = "passphrase_file")]
    pub(crate) encrypt_to: Vec<String>,
    /// Encrypt for the recipients in this file, one a line
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    pub(crate) recipients_file: Vec<PathBuf>,
    /// Encrypt with the passphrase that is the first line of this file
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry import disk.vhdx --from usb/monday
  diskferry import disk.vhdx --from usb/tuesday          what changed, onto what monday left
  diskferry import disk.vhdx --from usb1/disk --from usb2/disk
  diskferry import disk.vhdx --from usb/monday --identity key.txt
  diskferry import --check --from usb/monday
  diskferry import disk.vhdx --from s3://bucket/disks/monday
  diskferry receive --seed disk.vhdx                     afterwards: a move sends only what is different

A package of a whole disk makes a new disk, which has its name only when it is whole. A package of changes is checked as
a whole, and then applied to the disk that the package left upon which it builds, and to no other: a disk that was
written since is refused. An import that was interrupted is gone on with by the same command; until then nobody else
opens the disk. The fingerprint that the export printed, read to you by whoever made the package and given as
--expect, says that it is the very same package.")]
pub(crate) struct ImportArgs {
    /// The disk to make, or to apply changes to
    #[arg(required_unless_present = "check")]
    pub(crate) disk: Option<PathBuf>,
    /// A folder in which files of the package are; may be given several times. Or one store, as in the examples
    #[arg(long, required = true, value_name = "DIR")]
    pub(crate) from: Vec<PathBuf>,
    /// What the files are called, where there are several packages
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Only read all of the package, and say what is wrong with it
    #[arg(long, conflicts_with_all = ["disk", "restart", "force", "format", "block_size"])]
    pub(crate) check: bool,
    /// Throw away what an interrupted import has made, and start over
    #[arg(long)]
    pub(crate) restart: bool,
    /// Replace the disk if it exists, by one of a package of a whole disk
    #[arg(long)]
    pub(crate) force: bool,
    /// The format of a new disk, whatever its suffix says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatName>,
    /// Bytes per block of a new VHDX [default: by the size]
    #[arg(long, value_name = "SIZE")]
    pub(crate) block_size: Option<String>,
    /// The fingerprint of the package; any other one is refused
    #[arg(long, value_name = "FINGERPRINT")]
    pub(crate) expect: Option<String>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
}

/// How a store is reached. Credentials are never arguments: every user of a host sees those.
#[derive(Args, Debug, Default)]
pub(crate) struct StoreArgs {
    /// The store's address, if it is not Amazon's [default: that in the environment]
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// The bucket's region [default: that in the environment, or us-east-1]
    #[arg(long, value_name = "REGION")]
    pub(crate) region: Option<String>,
    /// Speak to a store on another host without encryption
    #[arg(long)]
    pub(crate) allow_http: bool,
}

/// What opens an encrypted package. With one of them, a package that is not encrypted is refused.
#[derive(Args, Debug)]
pub(crate) struct KeyArgs {
    /// A file with identities of age, AGE-SECRET-KEY-1...; may be given several times
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    pub(crate) identity: Vec<PathBuf>,
    /// A file whose first line is the passphrase
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}
