//! What was typed of a disk to be made.

use std::path::PathBuf;

use super::chain::only_vhdx;
use super::{Shape, block_size, bytes, format_of, multiple_of};
use crate::args::{CreateArgs, FormatName, PreallocationName};
use crate::failure::{Failure, Result};

/// What `create` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Create {
    pub(crate) disk: PathBuf,
    pub(crate) content: Content,
    pub(crate) shape: Shape,
    pub(crate) preallocation: Preallocation,
    pub(crate) force: bool,
}

/// How much of a new disk's space is taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preallocation {
    /// None: it is a hole until it is written.
    Off,
    /// All of it is reserved on the host.
    Reserved,
    /// All of it is written with zeros.
    Written,
}

/// What a new disk holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// So many bytes of nothing.
    Empty(u64),
    /// What the disk at this path holds.
    Parent(PathBuf),
}

impl Create {
    pub(crate) fn new(args: &CreateArgs) -> Result<Self> {
        let sector_size = sector_size(&args.sector_size)?;
        let format = args.format.unwrap_or_else(|| format_of(&args.disk));
        let content = match (&args.parent, &args.size) {
            (Some(parent), _) => {
                only_vhdx(&args.disk, format)?;
                Content::Parent(parent.clone())
            }
            (None, size) => {
                let size = size.as_deref().unwrap_or_default();
                Content::Empty(size_of_disk(size, sector_size)?)
            }
        };
        let shape = Shape {
            format,
            block_size: block_size(args.block_size.as_deref(), format)?,
            sector_size,
            fixed: args.fixed,
        };
        Ok(Self {
            disk: args.disk.clone(),
            content,
            preallocation: preallocation(args.preallocation, &shape)?,
            shape,
            force: args.force,
        })
    }
}

/// Bytes of a logical sector.
pub(super) fn sector_size(text: &str) -> Result<u32> {
    match bytes("the sector size", text)? {
        512 => Ok(512),
        4096 => Ok(4096),
        other => Err(
            Failure::usage(format!("the sector size {other} is not possible"))
                .hint("choose 512 or 4096"),
        ),
    }
}

/// The size of a disk of whole sectors.
fn size_of_disk(text: &str, sector_size: u32) -> Result<u64> {
    let size = bytes("the size", text)?;
    if size == 0 {
        return Err(Failure::usage("a disk of no bytes is not possible")
            .hint("sizes look like 16T, 64M or 500GB"));
    }
    multiple_of("the size", size, u64::from(sector_size))?;
    Ok(size)
}

/// A dynamic disk has no space to be taken: which blocks it will have, its guest decides.
fn preallocation(given: Option<PreallocationName>, shape: &Shape) -> Result<Preallocation> {
    let chosen = match given {
        None if shape.fixed => Preallocation::Reserved,
        None | Some(PreallocationName::Off) => Preallocation::Off,
        Some(PreallocationName::Falloc) => Preallocation::Reserved,
        Some(PreallocationName::Full) => Preallocation::Written,
    };
    if chosen != Preallocation::Off && shape.format == FormatName::Vhdx && !shape.fixed {
        let what = "a dynamic disk takes space as it is written; only a fixed one has all of it";
        return Err(Failure::usage(what).hint("add --fixed, or leave --preallocation away"));
    }
    Ok(chosen)
}
