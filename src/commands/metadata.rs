//! `diskferry metadata`: the items that programs keep in a disk's file.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use bytes::Bytes;
use serde::Serialize;
use vdisk::disk::random_bits;
use vdisk::format::Guid;
use vdisk::metadata::{self, ItemInfo};
use vdisk::storage::FileStorage;

use super::commit::refuse_others;
use super::image;
use crate::args::{
    MetadataGetArgs, MetadataListArgs, MetadataRemoveArgs, MetadataSetArgs, MetadataVerb,
};
use crate::failure::{Exit, Failure, Result};
use crate::plan::{ItemName, SetItem, Source, only_images};
use crate::report::Report;
use crate::{site, size};

/// The most that an item holds.
const MOST: u64 = 1 << 20;

#[derive(Serialize)]
struct Listed {
    path: String,
    items: Vec<ItemInfo>,
}

#[derive(Serialize)]
struct Got {
    path: String,
    id: Guid,
    len: usize,
    /// The same bytes as text, if they are text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    hex: String,
}

#[derive(Serialize)]
struct Changed {
    path: String,
    id: Guid,
    /// What it holds now; absent when it was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    len: Option<usize>,
    of_disk: bool,
}

pub(crate) fn run(verb: &MetadataVerb, report: Report) -> Result<()> {
    match verb {
        MetadataVerb::List(args) => list(args, report),
        MetadataVerb::Get(args) => get(args, report),
        MetadataVerb::Set(args) => set(args, report),
        MetadataVerb::Remove(args) => remove(args, report),
    }
}

fn list(args: &MetadataListArgs, report: Report) -> Result<()> {
    only_images(&args.disk)?;
    let listed = Listed {
        path: args.disk.display().to_string(),
        items: items(&args.disk)?,
    };
    if !report.is_json() {
        return report.result("metadata", &listed, table);
    }
    for item in &listed.items {
        Report::line("metadata-item", item)?;
    }
    Ok(())
}

fn items(disk: &Path) -> Result<Vec<ItemInfo>> {
    let mut storage = image::open_storage(disk)?;
    Ok(metadata::list(&mut storage).map_err(|error| error.in_file(disk))?)
}

fn table(listed: &Listed) -> String {
    let mut text = String::new();
    for item in &listed.items {
        let whose = match (item.user, item.name) {
            (true, _) => "user",
            (false, Some(name)) => name,
            (false, None) => "not known",
        };
        let disk = if item.virtual_disk {
            ", of the disk"
        } else {
            ""
        };
        let len = size::show(u64::from(item.len));
        let _ = writeln!(text, "{}  {len:>9}  {whose}{disk}", item.id);
    }
    text
}

fn get(args: &MetadataGetArgs, report: Report) -> Result<()> {
    let name = ItemName::to_get(args)?;
    let mut storage = image::open_storage(&name.disk)?;
    let found = metadata::get(&mut storage, name.id).map_err(|error| error.in_file(&name.disk))?;
    let content = found.ok_or_else(|| missing(&name))?;
    if let Some(path) = &args.file {
        write_new(path, &content)?;
    } else if !report.is_json() {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(&content).and_then(|()| stdout.flush());
        return written.map_err(|e| Failure::io("cannot write to stdout", &e));
    }
    let got = Got {
        path: name.disk.display().to_string(),
        id: name.id,
        len: content.len(),
        text: String::from_utf8(content.to_vec()).ok(),
        hex: hex(&content),
    };
    let len = size::show(content.len() as u64);
    report.event("metadata-item", &got, &format!("{}: {len}", got.id))
}

fn hex(content: &[u8]) -> String {
    content.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    let failed = |e: io::Error| Failure::io(format!("{}: cannot be written", path.display()), &e);
    let mut file = File::create_new(path).map_err(failed)?;
    let written = file.write_all(content);
    if written.is_err() {
        // Half of it serves nobody; why it is only half says more than that it cannot be removed.
        let _ = fs::remove_file(path);
    }
    written.map_err(failed)
}

fn missing(name: &ItemName) -> Failure {
    let what = format!("{}: has no user item {}", name.disk.display(), name.id);
    Failure::new(Exit::Failed, what).hint("`diskferry metadata list` shows those it has")
}

fn set(args: &MetadataSetArgs, report: Report) -> Result<()> {
    let plan = SetItem::new(args)?;
    let content = content(&plan.content)?;
    let len = content.len();
    let disk = &plan.item.disk;
    let old = users_item(&plan.item)?;
    let of_disk = plan.of_disk || old.is_some_and(|item| item.virtual_disk);
    let mut storage = open_to_change(&plan.item, (of_disk, plan.force))?;
    let content = (content, plan.of_disk);
    metadata::set(&mut storage, plan.item.id, content, &mut random_bits)
        .map_err(|error| error.in_file(disk))?;
    let changed = Changed {
        path: disk.display().to_string(),
        id: plan.item.id,
        len: Some(len),
        of_disk,
    };
    let sentence = format!("{}: {} holds {len} bytes", changed.path, changed.id);
    report.event("metadata-set", &changed, &sentence)
}

fn remove(args: &MetadataRemoveArgs, report: Report) -> Result<()> {
    let name = ItemName::to_remove(args)?;
    let old = users_item(&name)?.ok_or_else(|| missing(&name))?;
    let mut storage = open_to_change(&name, (old.virtual_disk, args.force))?;
    metadata::remove(&mut storage, name.id, &mut random_bits)
        .map_err(|error| error.in_file(&name.disk))?;
    let changed = Changed {
        path: name.disk.display().to_string(),
        id: name.id,
        len: None,
        of_disk: old.virtual_disk,
    };
    let sentence = format!("{}: {} is removed", changed.path, changed.id);
    report.event("metadata-removed", &changed, &sentence)
}

/// What there is under the name now.
fn users_item(name: &ItemName) -> Result<Option<ItemInfo>> {
    let mut items = items(&name.disk)?.into_iter();
    Ok(items.find(|item| item.user && item.id == name.id))
}

/// Opens the disk's file for a change of its items; one of an item of the disk only if no others that
/// are built on it are found.
fn open_to_change(name: &ItemName, (of_disk, force): (bool, bool)) -> Result<FileStorage> {
    site::disk::refuse_moved(&name.disk)?;
    if of_disk && !force {
        let mut storage = image::open_storage(&name.disk)?;
        let told = vdisk::info::info(&mut storage).map_err(|error| error.in_file(&name.disk))?;
        refuse_others(&name.disk, &name.disk, told.ids.data_write)?;
    }
    image::patiently(|| FileStorage::open(&name.disk, true))
}

/// What the item is to hold; one byte too much at most, which the library refuses.
fn content(source: &Source) -> Result<Bytes> {
    let mut content = Vec::new();
    match source {
        Source::Text(text) => content.extend_from_slice(text.as_bytes()),
        Source::Stdin => {
            let read = io::stdin().lock().take(MOST + 1).read_to_end(&mut content);
            read.map_err(|e| Failure::io("cannot read stdin", &e))?;
        }
        Source::File(path) => {
            let read =
                File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut content));
            read.map_err(|e| Failure::io(format!("{}: cannot be read", path.display()), &e))?;
        }
    }
    Ok(content.into())
}
