//! What was typed about copying a disk into another, and about comparing two.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;

use blockserver::nbd::uri::Address;
use vdisk::chain::ParentSearch;

use super::create::sector_size;
use super::{DiskName, Shape, block_size, bytes, format_of, search};
use crate::args::{CompareArgs, ConvertArgs, FormatName, GlobalArgs, ProgressMode, SourceFormat};
use crate::failure::{Failure, Result};

/// More readers than this only wait for one another.
const MOST_JOBS: usize = 64;

/// A disk that is only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceName {
    /// What comes in on stdin.
    Stdin,
    /// An export of an NBD server.
    Nbd(Address),
    /// A file or device; without a format its suffix says.
    Image(PathBuf, Option<SourceFormat>),
}

/// A disk that is only read, and where the files may be that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) name: SourceName,
    pub(crate) search: ParentSearch,
}

/// Where a copy goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TargetName {
    Stdout,
    File(PathBuf),
}

/// What `convert` means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag that is typed"
)]
pub(crate) struct Convert {
    pub(crate) source: Input,
    pub(crate) target: TargetName,
    /// Bytes of the new disk, if they are not the source's. A stream must have as many.
    pub(crate) size: Option<u64>,
    /// What to make; its sector is 0 if the source's is to be taken.
    pub(crate) shape: Shape,
    pub(crate) verify: bool,
    pub(crate) restart: bool,
    pub(crate) jobs: usize,
    pub(crate) dry_run: bool,
    pub(crate) force: bool,
}

/// What `compare` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compare {
    pub(crate) disk: Input,
    pub(crate) other: Input,
    pub(crate) jobs: usize,
}

impl SourceFormat {
    /// The format that a path's ending names. The content is never asked: the guest of a raw disk writes
    /// it, and could make its disk appear as an image that names other files.
    pub(crate) fn of_path(path: &Path) -> Self {
        let ending = path.extension().and_then(|ending| ending.to_str());
        match ending.unwrap_or_default().to_ascii_lowercase().as_str() {
            "vhdx" | "avhdx" => Self::Vhdx,
            "qcow2" | "qcow" => Self::Qcow2,
            "vmdk" => Self::Vmdk,
            "vhd" | "vpc" => Self::Vhd,
            _ => Self::Raw,
        }
    }

    /// Its name, as it is typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vhdx => "vhdx",
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
        }
    }
}

impl SourceName {
    pub(super) fn new(typed: &Path, format: Option<SourceFormat>) -> Result<Self> {
        if typed.as_os_str() == "-" {
            return Ok(Self::Stdin);
        }
        let text = typed.to_str().unwrap_or_default();
        Ok(match DiskName::new(text, None)? {
            DiskName::Nbd(address) => Self::Nbd(address),
            DiskName::Image(..) => Self::Image(typed.to_owned(), format),
        })
    }

    /// Its format, as far as its name says.
    pub(crate) fn format(&self) -> SourceFormat {
        match self {
            Self::Image(path, format) => format.unwrap_or_else(|| SourceFormat::of_path(path)),
            _ => SourceFormat::Raw,
        }
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("-"),
            Self::Nbd(address) => address.fmt(f),
            Self::Image(path, _) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("-"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Convert {
    pub(crate) fn new(args: &ConvertArgs, global: &GlobalArgs) -> Result<Self> {
        let name = SourceName::new(&args.source, args.from)?;
        if let (false, Some(format)) = (matches!(name, SourceName::Image(..)), args.from)
            && format != SourceFormat::Raw
        {
            let what = format!("{} cannot be read from there", format.name());
            return Err(Failure::usage(what)
                .hint("streams and servers give the bytes of a disk: leave out --from"));
        }
        let target = if args.target.as_os_str() == "-" {
            TargetName::Stdout
        } else {
            TargetName::File(args.target.clone())
        };
        let format = args.to.unwrap_or_else(|| format_of(&args.target));
        if target == TargetName::Stdout {
            refuse_on_stdout(args, global, format)?;
        }
        let sector = args.sector_size.as_deref().map(sector_size).transpose()?;
        let size = args.size.as_deref();
        let size = size.map(|text| bytes("the size", text)).transpose()?;
        if size == Some(0) {
            return Err(Failure::usage("a disk of no bytes is not possible"));
        }
        if size.is_some() && target == TargetName::Stdout && name != SourceName::Stdin {
            return Err(
                Failure::usage("a disk that goes to stdout has the source's size")
                    .hint("leave out --size, or give a file's name"),
            );
        }
        Ok(Self {
            source: Input {
                name,
                search: search(&args.chain),
            },
            target,
            size,
            shape: Shape {
                format,
                block_size: block_size(args.block_size.as_deref(), format)?,
                sector_size: sector.unwrap_or(0),
                fixed: args.fixed,
            },
            verify: args.verify,
            restart: args.restart,
            jobs: jobs(args.jobs)?,
            dry_run: args.dry_run,
            force: args.force,
        })
    }
}

/// What makes no sense when the disk itself goes to stdout.
fn refuse_on_stdout(args: &ConvertArgs, global: &GlobalArgs, format: FormatName) -> Result<()> {
    if format != FormatName::Raw {
        return Err(Failure::usage("a VHDX cannot be written to a stream")
            .hint("its tables are written after its blocks: give a file's name, or --to raw"));
    }
    if global.json || matches!(global.progress, ProgressMode::Json) {
        return Err(Failure::usage("the disk and JSON cannot both go to stdout")
            .hint("leave out --json and --progress json"));
    }
    if args.verify {
        return Err(Failure::usage("what went to stdout cannot be read again")
            .hint("leave out --verify, or give a file's name"));
    }
    if args.fixed || args.restart {
        return Err(Failure::usage("--fixed and --restart need a file"));
    }
    Ok(())
}

impl Compare {
    pub(crate) fn new(args: &CompareArgs) -> Result<Self> {
        let input = |disk: &Path, format| -> Result<Input> {
            let name = SourceName::new(disk, format)?;
            if name == SourceName::Stdin {
                return Err(Failure::usage("a stream cannot be compared")
                    .hint("`diskferry convert - disk.img` makes it a disk"));
            }
            let search = ParentSearch {
                parent: None,
                folders: args.parent_dir.clone(),
            };
            Ok(Input { name, search })
        };
        Ok(Self {
            disk: input(&args.disk, args.format)?,
            other: input(&args.other, args.other_format)?,
            jobs: jobs(args.jobs)?,
        })
    }
}

/// How many threads read.
pub(super) fn jobs(given: Option<usize>) -> Result<usize> {
    let processors = || thread::available_parallelism().map_or(2, NonZeroUsize::get);
    let jobs = given.unwrap_or_else(|| processors().clamp(2, 8));
    if (1..=MOST_JOBS).contains(&jobs) {
        return Ok(jobs);
    }
    Err(Failure::usage(format!("{jobs} jobs are not possible")).hint("from 1 to 64"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{CommandLine, Verb};
    use crate::failure::Exit;

    fn convert(words: &[&str]) -> Result<Convert> {
        let words = ["diskferry", "convert"].iter().chain(words);
        let typed = CommandLine::try_parse_from(words).unwrap();
        match &typed.verb {
            Verb::Convert(args) => Convert::new(args, &typed.global),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_suffix_says_what_is_read_unless_a_flag_does() {
        let format = |words: &[&str]| convert(words).unwrap().source.name.format();
        for (name, wanted) in [
            ("a.img", SourceFormat::Raw),
            ("/dev/sdb", SourceFormat::Raw),
            ("a.VHDX", SourceFormat::Vhdx),
            ("a.qcow2", SourceFormat::Qcow2),
            ("a.vmdk", SourceFormat::Vmdk),
            ("a.vhd", SourceFormat::Vhd),
            ("nbd://host/", SourceFormat::Raw),
            ("-", SourceFormat::Raw),
        ] {
            assert_eq!(format(&[name, "b.vhdx"]), wanted, "{name}");
        }
        assert_eq!(
            format(&["a.img", "b", "--from", "vmdk"]),
            SourceFormat::Vmdk
        );
    }

    #[test]
    fn what_a_stream_cannot_be_is_refused() {
        for words in [
            &["a.img", "-", "--to", "vhdx"][..],
            &["a.img", "-", "--json"],
            &["a.img", "-", "--progress", "json"],
            &["a.img", "-", "--verify"],
            &["-", "b.vhdx", "--from", "qcow2"],
            &["a.img", "-", "--size", "1G"],
            &["a.img", "b.vhdx", "--jobs", "0"],
            &["-", "b.vhdx", "--size", "0"],
            &["a.img", "b.vhdx", "--sector-size", "1000"],
        ] {
            assert_eq!(convert(words).unwrap_err().exit, Exit::Usage, "{words:?}");
        }
        assert_eq!(convert(&["a.img", "-"]).unwrap().target, TargetName::Stdout);
    }
}
