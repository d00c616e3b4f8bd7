//! The files of an ext4 file system.
//!
//! Driver over the library ext4-view. Paths are walked here, step by step: a link leads to a place in the same
//! file system or nowhere, and what is read as a whole has been measured before.

use std::io::Write;

use ext4_view::{Ext4, Ext4Error, Metadata};

use super::choose::Tree;
use super::{damaged, unreadable, volume};
use crate::{Error, Result};

/// Links on the way to a file, at most, and bytes of a path.
const MOST_LINKS: usize = 40;
const LONGEST_PATH: usize = 4096;
/// Bytes of a folder, and names in it, at most.
const MOST_FOLDER: u64 = 16 << 20;
const MOST_NAMES: usize = 1 << 16;
/// Bytes that are copied at a time.
const COPY: usize = 256 << 10;

/// A file system whose files can be read.
pub(super) struct FileTree {
    ext4: Ext4,
    uuid: String,
    remark: Option<String>,
}

/// A file or folder that is there.
struct Found {
    /// Its path without links.
    path: String,
    metadata: Metadata,
}

impl FileTree {
    pub(super) fn new(ext4: Ext4, uuid: String, remark: Option<String>) -> Self {
        Self { ext4, uuid, remark }
    }

    /// Its UUID, as Linux writes it.
    pub(super) fn uuid(&self) -> &str {
        &self.uuid
    }

    /// What a person should know about it.
    pub(super) fn remark(&self) -> Option<&str> {
        self.remark.as_deref()
    }

    /// Copy a file of at most `most` bytes; returns how many it has.
    pub(super) fn copy(&self, path: &str, most: u64, into: &mut dyn Write) -> Result<u64> {
        let found = self.find(path)?.filter(|found| is_file(&found.metadata));
        let found = found.ok_or_else(|| damaged(format!("{path} is not there")))?;
        let bytes = found.metadata.len();
        if bytes > most {
            return Err(damaged(format!(
                "{path} has {bytes} bytes, which is too much"
            )));
        }
        let mut file = self
            .ext4
            .open(found.path.as_str())
            .map_err(|error| wrong(path, error))?;
        let mut buffer = vec![0; COPY];
        let mut left = bytes;
        while left > 0 {
            let mut filled = 0;
            // The library reads a block at a time.
            while filled < buffer.len().min(left as usize) {
                let read = file.read_bytes(&mut buffer[filled..]);
                match read.map_err(|error| wrong(path, error))? {
                    0 => return Err(damaged(format!("{path} is shorter than it says"))),
                    read => filled += read,
                }
            }
            left = left.saturating_sub(filled as u64);
            let written = into.write_all(&buffer[..filled]);
            written.map_err(|error| Error::host(format!("{path} cannot be copied"), error))?;
        }
        Ok(bytes)
    }

    /// Follow a path; `None` if it leads to nothing.
    fn find(&self, path: &str) -> Result<Option<Found>> {
        let mut ahead: Vec<String> = steps(path);
        let mut behind: Vec<String> = Vec::new();
        let mut links = 0;
        let Some(mut metadata) = self.metadata("/")? else {
            return Ok(None);
        };
        while let Some(step) = ahead.pop() {
            match step.as_str() {
                "." => continue,
                ".." => {
                    behind.pop();
                    continue;
                }
                _ => behind.push(step),
            }
            let here = format!("/{}", behind.join("/"));
            if here.len() > LONGEST_PATH {
                return Err(damaged(format!("{path} leads too far")));
            }
            let Some(found) = self.metadata(&here)? else {
                return Ok(None);
            };
            if found.is_dir() && found.len() > MOST_FOLDER {
                return Err(damaged(format!("the folder {here} is too large")));
            }
            if !found.is_symlink() {
                metadata = found;
                continue;
            }
            links += 1;
            if links > MOST_LINKS || found.len() > LONGEST_PATH as u64 {
                return Err(damaged(format!("the link {here} leads too far")));
            }
            let target = self.ext4.read_link(here.as_str());
            let target = target.map_err(|error| wrong(&here, error))?;
            let Ok(target) = target.to_str() else {
                return Ok(None);
            };
            behind.pop();
            if target.starts_with('/') {
                behind.clear();
            }
            ahead.extend(steps(target));
        }
        if behind.is_empty() {
            return Ok(self.metadata("/")?.map(|metadata| Found {
                path: "/".to_owned(),
                metadata,
            }));
        }
        let path = format!("/{}", behind.join("/"));
        Ok(Some(Found { path, metadata }))
    }

    /// Of what is at a path whose folders are no links.
    fn metadata(&self, path: &str) -> Result<Option<Metadata>> {
        match self.ext4.symlink_metadata(path) {
            Ok(metadata) if path == "/" && metadata.len() > MOST_FOLDER => {
                Err(damaged("the root folder is too large"))
            }
            Ok(metadata) => Ok(Some(metadata)),
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory) => Ok(None),
            Err(error) => Err(wrong(path, error)),
        }
    }
}

/// The steps of a path, the last one first.
fn steps(path: &str) -> Vec<String> {
    let steps = path.split('/').filter(|step| !step.is_empty());
    steps.rev().map(str::to_owned).collect()
}

fn is_file(metadata: &Metadata) -> bool {
    metadata.file_type().is_regular_file()
}

fn wrong(path: &str, error: Ext4Error) -> Error {
    match error {
        Ext4Error::Io(error) => {
            let what = format!("{path} on the disk to start from cannot be read");
            unreadable(what, volume::cause(error))
        }
        error => damaged(format!("{path} cannot be read: {error}")),
    }
}

impl Tree for FileTree {
    fn text(&self, path: &str, most: u64) -> Result<Option<String>> {
        if !self.is_file(path)? {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        self.copy(path, most, &mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn names(&self, path: &str) -> Result<Vec<String>> {
        let found = self.find(path)?.filter(|found| found.metadata.is_dir());
        let Some(found) = found else {
            return Ok(Vec::new());
        };
        let entries = self
            .ext4
            .read_dir(found.path.as_str())
            .map_err(|error| wrong(path, error))?;
        let mut names = Vec::new();
        for entry in entries.take(MOST_NAMES) {
            let entry = entry.map_err(|error| wrong(path, error))?;
            if let Ok(name) = entry.file_name().as_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn is_file(&self, path: &str) -> Result<bool> {
        Ok(self
            .find(path)?
            .is_some_and(|found| is_file(&found.metadata)))
    }
}
