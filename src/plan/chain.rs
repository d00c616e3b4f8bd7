//! What was typed about disks that are built on others.

use std::path::{Path, PathBuf};

use vdisk::chain::ParentSearch;

use super::{block_size, format_of};
use crate::args::{ChainArgs, CommitArgs, FlattenArgs, FormatName, RebaseArgs, SnapshotArgs};
use crate::failure::{Failure, Result};

/// What `snapshot` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) base: PathBuf,
    pub(crate) child: PathBuf,
    pub(crate) block_size: Option<u32>,
    pub(crate) search: ParentSearch,
}

/// What `commit` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) disk: PathBuf,
    pub(crate) delete: bool,
    pub(crate) force: bool,
    pub(crate) search: ParentSearch,
}

/// What `rebase` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rebase {
    pub(crate) disk: PathBuf,
    pub(crate) onto: PathBuf,
    pub(crate) search: ParentSearch,
}

/// What `flatten` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flatten {
    pub(crate) disk: PathBuf,
    pub(crate) search: ParentSearch,
}

impl Flatten {
    pub(crate) fn new(args: &FlattenArgs) -> Result<Self> {
        only_vhdx(&args.disk, format_of(&args.disk))?;
        Ok(Self {
            disk: args.disk.clone(),
            search: search(&args.chain),
        })
    }
}

impl Rebase {
    pub(crate) fn new(args: &RebaseArgs) -> Result<Self> {
        for disk in [&args.disk, &args.onto] {
            only_vhdx(disk, format_of(disk))?;
        }
        Ok(Self {
            disk: args.disk.clone(),
            onto: args.onto.clone(),
            search: search(&args.chain),
        })
    }
}

/// Only a VHDX can be built on another disk.
pub(super) fn only_vhdx(disk: &Path, format: FormatName) -> Result<()> {
    if format == FormatName::Vhdx {
        return Ok(());
    }
    let what = format!("{}: only a VHDX can have a parent", disk.display());
    Err(Failure::usage(what).hint("give it the suffix .vhdx"))
}

impl Snapshot {
    pub(crate) fn new(args: &SnapshotArgs) -> Result<Self> {
        for disk in [&args.base, &args.child] {
            only_vhdx(disk, format_of(disk))?;
        }
        Ok(Self {
            base: args.base.clone(),
            child: args.child.clone(),
            block_size: block_size(args.block_size.as_deref(), FormatName::Vhdx)?,
            search: search(&args.chain),
        })
    }
}

impl Commit {
    pub(crate) fn new(args: &CommitArgs) -> Result<Self> {
        only_vhdx(&args.disk, format_of(&args.disk))?;
        Ok(Self {
            disk: args.disk.clone(),
            delete: args.delete,
            force: args.force,
            search: search(&args.chain),
        })
    }
}

/// Where parents may be.
pub(crate) fn search(args: &ChainArgs) -> ParentSearch {
    ParentSearch {
        parent: args.parent.clone(),
        folders: args.parent_dir.clone(),
    }
}
