//! What was typed about the metadata items of a disk.

use std::path::{Path, PathBuf};

use vdisk::format::Guid;

use super::chain::only_vhdx;
use super::format_of;
use crate::args::{MetadataGetArgs, MetadataRemoveArgs, MetadataSetArgs};
use crate::failure::{Failure, Result};

/// An item of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ItemName {
    pub(crate) disk: PathBuf,
    pub(crate) id: Guid,
}

/// Where a content comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Text(String),
    File(PathBuf),
    Stdin,
}

/// What `metadata set` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetItem {
    pub(crate) item: ItemName,
    pub(crate) content: Source,
    pub(crate) of_disk: bool,
    pub(crate) force: bool,
}

impl ItemName {
    fn new(disk: &Path, guid: &str) -> Result<Self> {
        only_images(disk)?;
        let id = guid.parse().map_err(|_| {
            Failure::usage(format!("`{guid}` is no GUID"))
                .hint("GUIDs look like 6f1de1f2-5a3e-4c9b-8f0e-3d1d4ac12a01; `uuidgen` makes one")
        })?;
        Ok(Self {
            disk: disk.to_owned(),
            id,
        })
    }

    pub(crate) fn to_get(args: &MetadataGetArgs) -> Result<Self> {
        Self::new(&args.disk, &args.guid)
    }

    pub(crate) fn to_remove(args: &MetadataRemoveArgs) -> Result<Self> {
        Self::new(&args.disk, &args.guid)
    }
}

/// Only a VHDX has metadata.
pub(crate) fn only_images(disk: &Path) -> Result<()> {
    let why = only_vhdx(disk, format_of(disk));
    why.map_err(|failure| Failure {
        what: format!("{}: only a VHDX has metadata items", disk.display()),
        ..failure
    })
}

impl SetItem {
    pub(crate) fn new(args: &MetadataSetArgs) -> Result<Self> {
        let content = match (&args.text, &args.file) {
            (Some(text), _) => Source::Text(text.clone()),
            (None, Some(file)) if file.as_os_str() == "-" => Source::Stdin,
            (None, file) => Source::File(file.clone().unwrap_or_default()),
        };
        Ok(Self {
            item: ItemName::new(&args.disk, &args.guid)?,
            content,
            of_disk: args.of_disk,
            force: args.force,
        })
    }
}
