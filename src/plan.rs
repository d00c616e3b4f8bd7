//! What was typed, made into what it means: numbers for sizes, formats for suffixes, defaults.
//!
//! Everything that can be refused without touching a disk is refused here.

mod chain;
mod convert;
mod create;
mod elsewhere;
mod limit;
mod machine;
mod metadata;
mod metrics;
mod new_size;
mod package;
mod store;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blockserver::nbd::uri::{Address, AddressError, Endpoint};
use blockserver::throttle::Limits;
use vdisk::chain::ParentSearch;
use vdisk::disk::ImageFormat;

pub(crate) use self::chain::{Commit, Flatten, Rebase, Snapshot, search};
pub(crate) use self::convert::{Compare, Convert, Input, SourceName, TargetName};
pub(crate) use self::create::{Content, Create, Preallocation};
pub(crate) use self::limit::{limits, rates};
pub(crate) use self::machine::{Machine, disk_format, format_name, is_disk, mac_of};
pub(crate) use self::metadata::{ItemName, SetItem, Source, only_images};
use crate::args::{BenchArgs, FormatName, LoadRunArgs, MapArgs, Pattern, ReceiveArgs, ServeArgs};
use crate::failure::{Failure, Result};
use crate::load::ledger::Area;
use crate::site::elsewhere::Behind;
use crate::site::taking::Taking;
use crate::size;

pub(crate) use self::metrics::metrics;
pub(crate) use self::new_size::NewSize;
pub(crate) use self::package::{Export, Import};
pub(crate) use self::store::{PlaceName, StoreName};

/// A disk to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) format: FormatName,
    /// Bytes per block of a VHDX; `None` leaves it to the library.
    pub(crate) block_size: Option<u32>,
    /// Bytes per logical sector of a VHDX.
    pub(crate) sector_size: u32,
    /// Whether all space is taken at once.
    pub(crate) fixed: bool,
}

/// What `map` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    pub(crate) disk: PathBuf,
    pub(crate) format: Option<FormatName>,
    pub(crate) offset: u64,
    pub(crate) length: Option<u64>,
    pub(crate) search: ParentSearch,
}

/// A disk that is asked things: here, or at a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DiskName {
    /// A file to be opened here.
    Image(PathBuf, Option<FormatName>),
    /// An export of an NBD server.
    Nbd(Address),
}

/// When a measurement ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    Ops(u64),
    Elapsed(Duration),
}

/// What `bench` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bench {
    pub(crate) disk: DiskName,
    pub(crate) pattern: Pattern,
    pub(crate) block: u32,
    pub(crate) depth: usize,
    pub(crate) flush_every: Option<u64>,
    pub(crate) offset: u64,
    pub(crate) length: Option<u64>,
    pub(crate) prepare: bool,
    pub(crate) until: Until,
    pub(crate) seed: u64,
}

/// A disk to be served, under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Its format if it was given; else its suffix says.
    pub(crate) format: Option<FormatName>,
    /// The export of another server for which the path stands, if it does.
    pub(crate) behind: Option<Behind>,
}

/// What `serve` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Serve {
    pub(crate) disks: Vec<Served>,
    pub(crate) listen: Vec<Endpoint>,
    pub(crate) read_only: bool,
    /// 0: one for each processor.
    pub(crate) workers: usize,
    /// Control sockets besides those that every disk has.
    pub(crate) control: Vec<PathBuf>,
    /// Serve also what another host may own.
    pub(crate) take_over: bool,
    /// How much may be asked of each disk.
    pub(crate) limits: Limits,
    pub(crate) search: ParentSearch,
    /// Where Prometheus reads.
    pub(crate) metrics: Option<SocketAddr>,
}

/// What `receive` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Receive {
    pub(crate) listen: String,
    pub(crate) into: PathBuf,
    pub(crate) serve: Vec<Endpoint>,
    /// What sources are told, if not the first of `serve`.
    pub(crate) advertise: Option<Endpoint>,
    /// Where to listen for control besides.
    pub(crate) control: Vec<PathBuf>,
    /// 0: one for each processor.
    pub(crate) workers: usize,
    pub(crate) taking: Taking,
    pub(crate) templates: Vec<Input>,
    /// Where Prometheus reads.
    pub(crate) metrics: Option<SocketAddr>,
}

/// What `load run` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) disk: DiskName,
    pub(crate) area: Area,
    pub(crate) ledger: PathBuf,
    pub(crate) rate: u64,
    pub(crate) flush_every: u64,
    pub(crate) depth: usize,
    pub(crate) duration: Option<Duration>,
    pub(crate) phases: Option<PathBuf>,
}

/// The format that a file's suffix promises.
pub(crate) fn format_of(path: &Path) -> FormatName {
    match ImageFormat::of_path(path) {
        ImageFormat::Vhdx => FormatName::Vhdx,
        ImageFormat::Raw => FormatName::Raw,
    }
}

/// A time, as in 10s, 500ms or 2m.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let millis = match &text[end..] {
        "ms" => Some(1),
        "" | "s" => Some(1_000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let number: Option<u64> = text[..end].parse().ok();
    let total = number.zip(millis).and_then(|(n, unit)| n.checked_mul(unit));
    total.map(Duration::from_millis).ok_or_else(|| {
        Failure::usage(format!("`{text}` is no time")).hint("times look like 10s, 500ms or 2m")
    })
}

impl DiskName {
    /// An address of a server, or else a file's name.
    pub(crate) fn new(text: &str, format: Option<FormatName>) -> Result<Self> {
        let short = ["unix:", "tcp:", "tls:"];
        let address = text.contains("://") || short.iter().any(|word| text.starts_with(word));
        if !address {
            return Ok(Self::Image(PathBuf::from(text), format));
        }
        let parsed = text.parse();
        parsed
            .map(Self::Nbd)
            .map_err(|e: AddressError| Failure::usage(e.to_string()))
    }
}

impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(path, _) => write!(f, "{}", path.display()),
            Self::Nbd(address) => address.fmt(f),
        }
    }
}

/// The bytes that `text`, given as `what`, means.
pub(crate) fn bytes(what: &str, text: &str) -> Result<u64> {
    size::parse(text).map_err(|why| {
        Failure::usage(format!("{what} `{text}`: {why}")).hint("sizes look like 16T, 64M or 500GB")
    })
}

impl Map {
    pub(crate) fn new(args: &MapArgs) -> Result<Self> {
        let length = args.length.as_deref();
        Ok(Self {
            disk: args.disk.clone(),
            format: args.format,
            offset: bytes("the offset", &args.offset)?,
            length: length.map(|text| bytes("the length", text)).transpose()?,
            search: search(&args.chain),
        })
    }
}

impl Served {
    /// `DISK` or `NAME=DISK`; a file whose own name holds a `=` is taken as it is.
    pub(crate) fn new(typed: &Path, format: Option<FormatName>) -> Result<Self> {
        let named = typed.to_str().and_then(|text| text.split_once('='));
        let (name, path) = match named {
            Some((name, path)) if !typed.exists() => (name.to_owned(), PathBuf::from(path)),
            _ => {
                let stem = typed.file_stem().and_then(|stem| stem.to_str());
                (stem.unwrap_or_default().to_owned(), typed.to_owned())
            }
        };
        if name.is_empty() || name.len() > 255 {
            let what = format!("{}: makes no name for an export", typed.display());
            return Err(Failure::usage(what).hint("give it one: NAME=DISK"));
        }
        Ok(Self {
            name,
            path,
            format,
            behind: None,
        })
    }
}

impl Serve {
    pub(crate) fn new(args: &ServeArgs) -> Result<Self> {
        if args.disks.len() > 1 && args.chain.parent.is_some() {
            let what = "--parent can be given for one disk only";
            return Err(Failure::usage(what).hint("--parent-dir allows folders for all of them"));
        }
        let mut disks: Vec<Served> = Vec::new();
        let mut exports = 0;
        for typed in &args.disks {
            let disk = match elsewhere::typed(typed) {
                Some(named) => {
                    exports += 1;
                    let state = args.elsewhere.state.get(exports - 1);
                    elsewhere::served(named, state, args.elsewhere.plain)?
                }
                None => Served::new(typed, args.format)?,
            };
            if let Some(other) = disks.iter().find(|other| other.name == disk.name) {
                let what = format!(
                    "{} and {} would both be called `{}`",
                    other.path.display(),
                    disk.path.display(),
                    disk.name
                );
                return Err(Failure::usage(what).hint("give one another name: NAME=DISK"));
            }
            disks.push(disk);
        }
        elsewhere::refuse_spare(&args.elsewhere, exports)?;
        Ok(Self {
            disks,
            listen: args
                .listen
                .iter()
                .map(|text| endpoint(text))
                .collect::<Result<_>>()?,
            read_only: args.read_only,
            workers: args.workers.unwrap_or(0),
            control: args
                .control
                .iter()
                .map(|text| control_path(text))
                .collect::<Result<_>>()?,
            take_over: args.take_over,
            limits: limits(&args.limits)?,
            search: search(&args.chain),
            metrics: metrics(&args.metrics)?,
        })
    }
}

impl Receive {
    pub(crate) fn new(args: &ReceiveArgs) -> Result<Self> {
        let serve: Vec<_> = args
            .serve
            .iter()
            .map(|text| endpoint(text))
            .collect::<Result<_>>()?;
        let advertise = args.advertise.as_deref().map(endpoint).transpose()?;
        if let (None, Some(Endpoint::Tcp { host, .. } | Endpoint::Tls { host, .. })) =
            (&advertise, serve.first())
            && ["0.0.0.0", "::", "[::]"].contains(&host.as_str())
        {
            let what = format!("{host} is no address that a source could send its clients to");
            return Err(Failure::usage(what).hint(
                "--advertise tls:HOST:PORT names one, or tcp:HOST:PORT where that is served",
            ));
        }
        Ok(Self {
            listen: args.listen.clone().unwrap_or_default(),
            into: args.into.clone().unwrap_or_default(),
            serve,
            advertise,
            control: args
                .control
                .iter()
                .map(|text| control_path(text))
                .collect::<Result<_>>()?,
            workers: args.workers.unwrap_or(0),
            taking: taking(args)?,
            templates: args
                .template
                .iter()
                .map(|disk| template(disk))
                .collect::<Result<_>>()?,
            metrics: metrics(&args.metrics)?,
        })
    }
}

/// An image in which blocks of disks may be.
fn template(disk: &Path) -> Result<Input> {
    let name = SourceName::new(disk, None)?;
    if name == SourceName::Stdin {
        return Err(Failure::usage("a stream cannot be a template"));
    }
    let search = ParentSearch::default();
    Ok(Input { name, search })
}

/// What a site was told to take.
fn taking(args: &ReceiveArgs) -> Result<Taking> {
    let size = |what, text: &Option<String>| text.as_deref().map(|text| bytes(what, text));
    Ok(Taking {
        expected: args.expect.clone(),
        largest: size("the largest disk", &args.max_disk).transpose()?,
        quota: size("the quota", &args.quota).transpose()?,
    })
}

/// The library's name of a format.
pub(crate) fn library_format(format: FormatName) -> ImageFormat {
    match format {
        FormatName::Vhdx => ImageFormat::Vhdx,
        FormatName::Raw => ImageFormat::Raw,
    }
}

/// A control socket: `unix:PATH`.
pub(crate) fn control_path(text: &str) -> Result<PathBuf> {
    match endpoint(text)? {
        Endpoint::Unix(path) => Ok(path),
        Endpoint::Tcp { .. } | Endpoint::Tls { .. } => {
            Err(Failure::usage(format!("`{text}` is no unix socket"))
                .hint("control is for this host alone: unix:PATH"))
        }
    }
}

/// The same endpoint for programs that run in other folders.
pub(crate) fn from_anywhere(endpoint: Endpoint) -> Endpoint {
    match endpoint {
        Endpoint::Unix(path) => Endpoint::Unix(std::path::absolute(&path).unwrap_or(path)),
        tcp @ (Endpoint::Tcp { .. } | Endpoint::Tls { .. }) => tcp,
    }
}

/// Where to listen or to connect.
pub(crate) fn endpoint(text: &str) -> Result<Endpoint> {
    text.parse().map_err(|_: AddressError| {
        Failure::usage(format!("`{text}` is no address"))
            .hint("use unix:PATH, tcp:HOST:PORT or tls:HOST:PORT")
    })
}

impl Bench {
    pub(crate) fn new(args: &BenchArgs) -> Result<Self> {
        if (args.pattern.writes() || args.prepare) && !args.destroy_data {
            let what = format!("this overwrites what {} holds", args.disk);
            return Err(Failure::usage(what).hint("--destroy-data says that it may"));
        }
        let disk = DiskName::new(&args.disk, args.format)?;
        let most = if matches!(disk, DiskName::Image(..)) {
            1
        } else {
            4096
        };
        let depth = args.depth.unwrap_or(most.min(32));
        if depth == 0 || depth > most {
            return Err(
                Failure::usage(format!("a depth of {depth} is not possible here")).hint(format!(
                    "at most {most}; a file does one thing at a time, a server many"
                )),
            );
        }
        if args.flush_every == Some(0) {
            return Err(Failure::usage("--flush-every 0 would never flush").hint("leave it out"));
        }
        let length = args.length.as_deref();
        Ok(Self {
            disk,
            pattern: args.pattern,
            block: request_size(&args.block_size)?,
            depth,
            flush_every: args.flush_every,
            offset: bytes("the offset", &args.offset)?,
            length: length.map(|text| bytes("the length", text)).transpose()?,
            prepare: args.prepare,
            until: match args.ops {
                Some(ops) => Until::Ops(ops),
                None => Until::Elapsed(duration(&args.duration)?),
            },
            seed: args.seed,
        })
    }
}

impl Load {
    pub(crate) fn new(args: &LoadRunArgs) -> Result<Self> {
        let area = Area {
            seed: args.seed,
            block: u64::from(request_size(&args.block_size)?),
            offset: bytes("the offset", &args.offset)?,
            length: bytes("the length", &args.length)?,
        };
        // Blocks in flight are set aside, so there have to be more than can be.
        if area.blocks() <= 2 * args.depth as u64 {
            return Err(Failure::usage(
                "the area has too few blocks for so many outstanding writes",
            )
            .hint("raise --length or lower --depth"));
        }
        if args.rate == 0 || args.flush_every == 0 || args.depth == 0 {
            return Err(Failure::usage(
                "--rate, --flush-every and --depth are at least 1",
            ));
        }
        Ok(Self {
            disk: DiskName::new(&args.disk, None)?,
            area,
            ledger: args.ledger.clone(),
            rate: args.rate,
            flush_every: args.flush_every,
            depth: args.depth,
            duration: args.duration.as_deref().map(duration).transpose()?,
            phases: args.phases.clone(),
        })
    }
}

/// Bytes of one read or write: whole sectors, no more than one request carries.
fn request_size(text: &str) -> Result<u32> {
    let size = bytes("the block size", text)?;
    if size == 0 || size > 32 << 20 || !size.is_multiple_of(512) {
        return Err(
            Failure::usage(format!("the block size {text} is not possible"))
                .hint("whole sectors of 512 bytes, at most 32M"),
        );
    }
    Ok(size as u32)
}

/// A block size that VHDX allows: a power of two from 1 MiB to 256 MiB (MS-VHDX 2.6.2.1).
fn block_size(text: Option<&str>, format: FormatName) -> Result<Option<u32>> {
    let Some(text) = text else {
        return Ok(None);
    };
    if format == FormatName::Raw {
        return Err(Failure::usage("a raw disk has no blocks")
            .hint("leave out --block-size, or give the file the suffix .vhdx"));
    }
    let size = bytes("the block size", text)?;
    if size.is_power_of_two() && (1 << 20..=256 << 20).contains(&size) {
        return Ok(Some(size as u32));
    }
    let nearest = size.next_power_of_two().clamp(1 << 20, 256 << 20);
    Err(Failure::usage(format!(
        "the block size {text} is not a power of two from 1M to 256M"
    ))
    .hint(format!("--block-size {}", size::exact(nearest))))
}

/// Refuses what is not a multiple of a sector, with what would be.
fn multiple_of(what: &str, size: u64, unit: u64) -> Result<()> {
    if size.is_multiple_of(unit) {
        return Ok(());
    }
    let near = size::neighbours(size, unit);
    Err(Failure::usage(format!(
        "{what}, {size} bytes, is not a multiple of the sector, {unit} bytes"
    ))
    .hint(format!("nearest: {near}")))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{CommandLine, Verb};
    use crate::failure::Exit;

    fn create(words: &[&str]) -> Result<Create> {
        let words = ["diskferry", "create"].iter().chain(words);
        match CommandLine::try_parse_from(words).unwrap().verb {
            Verb::Create(args) => Create::new(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_suffix_gives_the_format_unless_a_flag_does() {
        assert_eq!(
            create(&["a.vhdx", "1T"]).unwrap().shape.format,
            FormatName::Vhdx
        );
        assert_eq!(
            create(&["a.VHDX", "1T"]).unwrap().shape.format,
            FormatName::Vhdx
        );
        assert_eq!(
            create(&["a.img", "1T"]).unwrap().shape.format,
            FormatName::Raw
        );
        let forced = create(&["a.img", "1T", "--format", "vhdx"]).unwrap();
        assert_eq!(forced.shape.format, FormatName::Vhdx);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused_with_what_could() {
        let refused = |words: &[&str]| {
            let failure = create(words).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            failure.hint.unwrap()
        };
        assert_eq!(refused(&["a.vhdx", "10000"]), "nearest: 9728 or 10K");
        assert_eq!(
            refused(&["a.vhdx", "512", "--sector-size", "4096"]),
            "nearest: 4K"
        );
        assert_eq!(
            refused(&["a.vhdx", "1T", "--block-size", "3M"]),
            "--block-size 4M"
        );
        assert_eq!(
            refused(&["a.vhdx", "1T", "--block-size", "1G"]),
            "--block-size 256M"
        );
        assert_eq!(
            refused(&["a.vhdx", "1T", "--sector-size", "1000"]),
            "choose 512 or 4096"
        );
        refused(&["a.img", "1T", "--block-size", "1M"]);
        refused(&["a.vhdx", "0"]);
        refused(&["a.vhdx", "big"]);
    }
}
