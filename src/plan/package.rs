//! What was typed about disks that travel as packages, and what it means.

use std::path::PathBuf;

use package::{Hash, LEAST_VOLUME, is_name};

use super::convert::jobs;
use super::store::{MOST_IN_STORE, PlaceName, place_name};
use super::{DiskName, Input, Shape, SourceName, block_size, bytes, format_of, search};
use crate::args::{ExportArgs, ImportArgs};
use crate::failure::{Exit, Failure, Result};

/// The longest file of FAT32.
const FAT32: u64 = (4 << 30) - 1;
/// The same in whole sectors of a disc: file systems of discs have that limit too.
const DVD: u64 = (4 << 30) - 2048;

/// What `export` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Export {
    pub(crate) disk: PathBuf,
    pub(crate) source: Input,
    pub(crate) place: PlaceName,
    pub(crate) name: String,
    /// Most bytes of a file.
    pub(crate) limit: u64,
    /// The checkpoint since which changes are wanted.
    pub(crate) since: Option<String>,
    pub(crate) checkpoint: bool,
    pub(crate) verify: bool,
    pub(crate) restart: bool,
    pub(crate) jobs: usize,
}

/// What `import` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Import {
    pub(crate) place: PlaceName,
    pub(crate) name: Option<String>,
    /// The disk, and what to make if it is a new one; `None` to check only. Its sector is the package's.
    pub(crate) disk: Option<(PathBuf, Shape)>,
    pub(crate) restart: bool,
    pub(crate) force: bool,
    pub(crate) expect: Option<Hash>,
}

impl Export {
    pub(crate) fn new(args: &ExportArgs) -> Result<Self> {
        let text = args.disk.to_str().unwrap_or_default();
        let remote = matches!(DiskName::new(text, None), Ok(DiskName::Nbd(_)));
        if remote || text == "-" {
            let what = format!("{text}: nothing tells that it stays the same while it is exported");
            return Err(Failure::new(Exit::Unsupported, what)
                .hint("`diskferry convert` makes a file of it, which can be exported"));
        }
        let place = place_name(&args.to, &args.store)?;
        let limit = limit(&args.volume_size)?;
        if matches!(place, PlaceName::Store(_)) && limit > MOST_IN_STORE {
            let what = format!("volumes of {} are too large for a store", args.volume_size);
            return Err(Failure::usage(what).hint("at most 500G"));
        }
        Ok(Self {
            disk: args.disk.clone(),
            source: Input {
                name: SourceName::Image(args.disk.clone(), args.format),
                search: search(&args.chain),
            },
            place,
            name: named(args)?,
            limit,
            since: args.since.clone(),
            checkpoint: !args.no_checkpoint,
            verify: args.verify,
            restart: args.restart,
            jobs: jobs(args.jobs)?,
        })
    }
}

/// What the files are called.
fn named(args: &ExportArgs) -> Result<String> {
    let stem = args.disk.file_stem().and_then(|stem| stem.to_str());
    let name = args.name.as_deref().or(stem).unwrap_or_default();
    if is_name(name) {
        return Ok(name.to_owned());
    }
    let what = format!("`{name}` cannot be what the files of a package are called");
    Err(Failure::usage(what)
        .hint("--name: up to 64 letters, digits, `-`, `_` and `.`, the first no dot"))
}

/// Most bytes of a file.
fn limit(text: &str) -> Result<u64> {
    let limit = match text {
        "fat32" => FAT32,
        "dvd" => DVD,
        other => bytes("the size of a volume", other)?,
    };
    if limit < LEAST_VOLUME {
        return Err(Failure::usage(format!("volumes of {text} are too small")).hint("at least 2M"));
    }
    Ok(limit)
}

impl Import {
    pub(crate) fn new(args: &ImportArgs) -> Result<Self> {
        let disk = args.disk.as_ref().map(|path| -> Result<_> {
            let format = args.format.unwrap_or_else(|| format_of(path));
            let shape = Shape {
                format,
                block_size: block_size(args.block_size.as_deref(), format)?,
                sector_size: 0,
                fixed: false,
            };
            Ok((path.clone(), shape))
        });
        let expect = args.expect.as_deref().map(|text| {
            let hint = "it has 64 hexadecimal digits, and `diskferry export` prints it";
            Hash::parse(text)
                .ok_or_else(|| Failure::usage(format!("`{text}` is no fingerprint")).hint(hint))
        });
        Ok(Self {
            place: place_name(&args.from, &args.store)?,
            name: args.name.clone(),
            disk: disk.transpose()?,
            restart: args.restart,
            force: args.force,
            expect: expect.transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{CommandLine, Verb};

    fn export(words: &[&str]) -> Result<Export> {
        let words = ["diskferry", "export", "--to", "d"].iter().chain(words);
        match CommandLine::try_parse_from(words).unwrap().verb {
            Verb::Export(args) => Export::new(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_fit_the_poorest_file_system_unless_a_size_is_asked_for() {
        assert_eq!(export(&["a.vhdx"]).unwrap().limit, 4_294_967_295);
        let limit = |size| export(&["a.vhdx", "--volume-size", size]).unwrap().limit;
        assert_eq!(limit("4G"), 4 << 30);
        assert!(limit("dvd") < limit("fat32"));
        let small = export(&["a.vhdx", "--volume-size", "1M"]);
        assert_eq!(small.unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn files_are_called_as_the_disk_unless_that_is_no_name_everywhere() {
        assert_eq!(export(&["x/a.vhdx"]).unwrap().name, "a");
        assert_eq!(export(&["a b.vhdx"]).unwrap_err().exit, Exit::Usage);
        assert_eq!(export(&["a b.vhdx", "--name", "ab"]).unwrap().name, "ab");
        for name in ["../a", "", "-é", ".a"] {
            let name = format!("--name={name}");
            assert!(export(&["a.vhdx", &name]).is_err(), "{name}");
        }
    }

    #[test]
    fn what_may_change_while_it_is_read_is_refused() {
        for disk in ["nbd://host/", "unix:s", "-"] {
            assert_eq!(
                export(&[disk]).unwrap_err().exit,
                Exit::Unsupported,
                "{disk}"
            );
        }
    }
}
