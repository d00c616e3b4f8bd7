//! What was typed, made into what it means: numbers for sizes, formats for suffixes, defaults.
//!
//! Everything that can be refused without touching a disk is refused here.

use std::path::{Path, PathBuf};

use crate::args::{CreateArgs, FormatName};
use crate::failure::{Failure, Result};
use crate::size;

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

/// What `create` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Create {
    pub(crate) disk: PathBuf,
    /// Bytes of the disk.
    pub(crate) size: u64,
    pub(crate) shape: Shape,
    pub(crate) force: bool,
}

/// The format that a file's suffix promises.
pub(crate) fn format_of(path: &Path) -> FormatName {
    match path.extension().and_then(|e| e.to_str()) {
        Some(suffix) if suffix.eq_ignore_ascii_case("vhdx") => FormatName::Vhdx,
        _ => FormatName::Raw,
    }
}

/// The bytes that `text`, given as `what`, means.
pub(crate) fn bytes(what: &str, text: &str) -> Result<u64> {
    size::parse(text).map_err(|why| {
        Failure::usage(format!("{what} `{text}`: {why}")).hint("sizes look like 16T, 64M or 500GB")
    })
}

impl Create {
    pub(crate) fn new(args: &CreateArgs) -> Result<Self> {
        let sector_size = match bytes("the sector size", &args.sector_size)? {
            512 => 512,
            4096 => 4096,
            other => {
                return Err(
                    Failure::usage(format!("the sector size {other} is not possible"))
                        .hint("choose 512 or 4096"),
                );
            }
        };
        let size = bytes("the size", &args.size)?;
        if size == 0 {
            return Err(Failure::usage("a disk of no bytes is not possible")
                .hint("sizes look like 16T, 64M or 500GB"));
        }
        multiple_of("the size", size, u64::from(sector_size))?;
        let format = args.format.unwrap_or_else(|| format_of(&args.disk));
        Ok(Self {
            disk: args.disk.clone(),
            size,
            shape: Shape {
                format,
                block_size: block_size(args.block_size.as_deref(), format)?,
                sector_size,
                fixed: args.fixed,
            },
            force: args.force,
        })
    }
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
