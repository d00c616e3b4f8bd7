//! What an image says of itself, without reading its BAT. Never changes the file; marked, dirty and
//! differencing images are told about like others.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::engine::Mark;
use crate::error::Result;
use crate::format::{Finding, Guid, Metadata, ParentLocator};
use crate::open::{LiveLog, Opening, Strict, Structures, View};
use crate::storage::Storage;

/// What an image says of itself. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Info {
    /// Always "vhdx".
    pub format: &'static str,
    /// Who made the file, as it says.
    pub creator: String,
    /// "dynamic", "fixed" or "differencing".
    pub kind: &'static str,
    /// Size of the disk.
    pub virtual_size: u64,
    /// Size of a payload block.
    pub block_size: u32,
    /// Size of a logical sector.
    pub logical_sector: u32,
    /// Size of a physical sector.
    pub physical_sector: u32,
    /// The GUIDs that tell the disk and its versions apart.
    pub ids: Ids,
    /// Length of the file.
    pub file_len: u64,
    /// The log.
    pub log: LogInfo,
    /// "incomplete" for the target of an unfinished migration, "handed-over" for a former source.
    pub mark: Option<&'static str>,
    /// Of a differencing disk: the disk it is built on, as it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentInfo>,
    /// What is off the specification and read without harm.
    pub warnings: Vec<Finding>,
}

/// What a differencing disk says of the disk it is built on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParentInfo {
    /// The versions of the parent's data that it may be built on: one, or two while a merge is under
    /// way.
    pub versions: Vec<Guid>,
    /// Its path from the folder of this image, the only one that is ever followed.
    pub relative_path: Option<String>,
    /// Everything that the locator says, paths of Windows included.
    pub locator: BTreeMap<String, String>,
}

/// The GUIDs of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ids {
    /// Of the disk (SCSI page 0x83).
    pub disk: Guid,
    /// Of the file's content.
    pub file_write: Guid,
    /// Of the disk's content.
    pub data_write: Guid,
}

/// The log of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LogInfo {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Whether it must be replayed: the image was not closed.
    pub dirty: bool,
}

/// Reads what an image says of itself.
pub fn info(storage: &mut dyn Storage) -> Result<Info> {
    let mut judge = Strict::default();
    let opening = Opening::read(storage, &mut judge)?;
    let log = LiveLog::read(storage, &opening.header, &mut judge)?;
    let (overlay, len) = match &log {
        Some(log) => log.overlay(opening.file_len)?,
        None => (BTreeMap::new(), opening.file_len),
    };
    let mut view = View {
        storage,
        overlay,
        len,
    };
    let structures = Structures::read(&mut view, &opening.header, &mut judge)?;
    let metadata = &structures.metadata;
    Ok(Info {
        format: "vhdx",
        creator: opening.identifier.creator,
        kind: kind(metadata),
        virtual_size: metadata.virtual_size,
        block_size: metadata.block_size,
        logical_sector: metadata.logical_sector,
        physical_sector: metadata.physical_sector,
        ids: Ids {
            disk: metadata.disk_id,
            file_write: opening.header.file_write,
            data_write: opening.header.data_write,
        },
        file_len: opening.file_len,
        log: LogInfo {
            offset: opening.header.log_at.0,
            len: u64::from(opening.header.log_len),
            dirty: log.is_some(),
        },
        mark: metadata.mark.map(|mark| match mark {
            Mark::Incomplete => "incomplete",
            Mark::HandedOver => "handed-over",
        }),
        parent: metadata.parent.as_ref().map(parent).transpose()?,
        warnings: judge.warnings,
    })
}

fn parent(locator: &ParentLocator) -> Result<ParentInfo> {
    let pair = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    Ok(ParentInfo {
        versions: locator.linkages()?,
        relative_path: locator.relative_path(),
        locator: locator.pairs().map(pair).collect(),
    })
}

fn kind(metadata: &Metadata) -> &'static str {
    if metadata.parent.is_some() {
        "differencing"
    } else if metadata.leave_allocated {
        "fixed"
    } else {
        "dynamic"
    }
}
