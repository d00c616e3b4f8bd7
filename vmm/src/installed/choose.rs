//! Which of the kernels in a file system is started.
//!
//! Machine: asks for texts, names and files, and decides. The order is that of boot loaders: what GRUB's
//! configuration says, then the entries of the Boot Loader Specification, then Debian's links to the newest
//! kernel, then the newest by name. Whatever names a kernel that is not there is passed over and told.

use std::collections::BTreeMap;

use super::{entries, grub, release};
use crate::{ErrorKind, Result};

/// Bytes of a configuration, at most.
const MOST_TEXT: u64 = 1 << 20;
/// Bytes of an entry, at most.
const MOST_ENTRY_TEXT: u64 = 64 << 10;
/// Entries and versions that are looked at, at most.
const MOST_ENTRIES: usize = 256;
/// Remarks about a file system, at most.
const MOST_REMARKS: usize = 32;
/// Folders that hold what a boot loader needs: of a root file system, and of one that is for this alone.
const FOLDERS: [&str; 2] = ["/boot", ""];

/// How the names of kernels end that were replaced, or are being unpacked.
const LEFT_OVER: [&str; 3] = [".old", ".dpkg-new", ".dpkg-tmp"];

/// What named the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// GRUB's configuration.
    Grub,
    /// An entry of the Boot Loader Specification.
    LoaderEntry,
    /// The links `vmlinuz` and `initrd.img`.
    Links,
    /// Nothing; it has the highest version.
    Newest,
}

impl Source {
    /// In a word, for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Grub => "grub",
            Self::LoaderEntry => "loader_entry",
            Self::Links => "links",
            Self::Newest => "newest",
        }
    }
}

/// A file system, as far as this has to see it. Paths are absolute; links are followed inside of it.
pub(super) trait Tree {
    /// The text of a file, or `None` if there is no file. Longer ones are an error.
    fn text(&self, path: &str, most: u64) -> Result<Option<String>>;
    /// The names in a folder, in any order; none if it is no folder.
    fn names(&self, path: &str) -> Result<Vec<String>>;
    /// Whether there is a file.
    fn is_file(&self, path: &str) -> Result<bool>;
}

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) source: Source,
    pub(super) title: Option<String>,
    pub(super) kernel: String,
    pub(super) initrds: Vec<String>,
    pub(super) arguments: String,
    /// UUID of the file system that the files are in, if it is another one.
    pub(super) volume: Option<String>,
}

/// What was looked at, and what was strange about it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) looked: Vec<String>,
    pub(super) remarks: Vec<String>,
}

/// A file system beside the one that is looked at: its UUID, and it.
pub(super) type Beside<'a, T> = (&'a str, &'a T);

/// Choose in the file system `tree` of this UUID.
///
/// # Errors
///
/// Only what the disk says when it cannot be read: all else is passed over and told.
pub(super) fn choose<T: Tree>(
    tree: &T,
    (uuid, beside): (&str, &[Beside<'_, T>]),
    seen: &mut Seen,
) -> Result<Option<Choice>> {
    for folder in FOLDERS {
        for name in ["grub", "grub2"] {
            let place = (folder, name);
            let choice = by_grub(tree, (place, beside), seen);
            if let Some(choice) = seen.heed(choice)?.flatten() {
                return Ok(Some(choice));
            }
        }
        let choice = by_entries(tree, (folder, "", &BTreeMap::new()), seen);
        if let Some(choice) = seen.heed(choice)?.flatten() {
            return Ok(Some(choice));
        }
    }
    let choice = match by_links(tree, seen)? {
        None => by_version(tree, seen)?,
        found => found,
    };
    Ok(choice.map(|choice| Choice {
        arguments: format!("root=UUID={uuid} ro"),
        ..choice
    }))
}

impl Seen {
    fn remark(&mut self, what: String) {
        if self.remarks.len() < MOST_REMARKS {
            self.remarks.push(what);
        }
    }

    /// What was read, unless it is damaged, which becomes a remark: something else may be whole.
    fn heed<T>(&mut self, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(error) if error.kind() == ErrorKind::BadKernel => {
                self.remark(error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether there is such a file; a damaged way to it is a remark.
    fn has_file(&mut self, tree: &impl Tree, path: &str) -> Result<bool> {
        Ok(self.heed(tree.is_file(path))?.unwrap_or(false))
    }
}

fn by_grub<T: Tree>(
    tree: &T,
    ((folder, name), beside): ((&str, &str), &[Beside<'_, T>]),
    seen: &mut Seen,
) -> Result<Option<Choice>> {
    let path = format!("{folder}/{name}/grub.cfg");
    seen.looked.push(path.clone());
    let Some(text) = tree.text(&path, MOST_TEXT)? else {
        return Ok(None);
    };
    let saved = tree.text(&format!("{folder}/{name}/grubenv"), MOST_TEXT);
    let saved = seen.heed(saved)?.flatten();
    let menu = grub::read(&text, saved.as_deref());
    if menu.by_entries && menu.entry.is_none() {
        return by_entries(tree, (folder, &menu.default, &menu.variables), seen);
    }
    let Some(entry) = menu.entry else {
        seen.remark(format!("{path} has no entry"));
        return Ok(None);
    };
    if entry.kernel.is_empty() {
        let what = format!("{path} starts `{}`, which is no Linux", entry.title);
        seen.remark(what);
        return Ok(None);
    }
    let named = entry.volume.as_deref();
    let other = beside.iter().find(|(uuid, _)| Some(*uuid) == named);
    let choice = Choice {
        source: Source::Grub,
        title: Some(entry.title).filter(|title| !title.is_empty()),
        kernel: entry.kernel,
        initrds: entry.initrds,
        arguments: entry.arguments,
        volume: other.map(|(uuid, _)| (*uuid).to_owned()),
    };
    there(other.map_or(tree, |(_, tree)| tree), choice, (&path, seen))
}

fn by_entries(
    tree: &impl Tree,
    (folder, default, variables): (&str, &str, &BTreeMap<String, String>),
    seen: &mut Seen,
) -> Result<Option<Choice>> {
    let place = format!("{folder}/loader/entries");
    seen.looked.push(format!("{place}/*.conf"));
    let mut found = Vec::new();
    let mut names = tree.names(&place)?;
    names.retain(|name| name.strip_suffix(".conf").is_some());
    names.sort_by(|one, other| release::compare(other, one));
    for name in names.into_iter().take(MOST_ENTRIES) {
        let text = tree.text(&format!("{place}/{name}"), MOST_ENTRY_TEXT);
        if let Some(text) = seen.heed(text)?.flatten() {
            found.extend(entries::read(&name, &text, variables));
        }
    }
    let loader = match default {
        "" => {
            let text = tree.text(&format!("{folder}/loader/loader.conf"), MOST_TEXT);
            seen.heed(text)?.flatten()
        }
        default => Some(format!("default {default}")),
    };
    let default = entries::loader_default(loader.as_deref().unwrap_or(""));
    let Some(entry) = entries::default_of(found, default) else {
        return Ok(None);
    };
    let path = format!("{place}/{}.conf", entry.name);
    let choice = Choice {
        source: Source::LoaderEntry,
        title: Some(entry.title).filter(|title| !title.is_empty()),
        kernel: entry.kernel,
        initrds: entry.initrds,
        arguments: entry.arguments,
        volume: None,
    };
    there(tree, choice, (&path, seen))
}

/// The choice, if its files are there in `tree`, which is the file system that it names; in `/boot` if they are
/// not where it says, since an entry may have been written for a file system that is mounted there.
fn there(
    tree: &impl Tree,
    choice: Choice,
    (path, seen): (&str, &mut Seen),
) -> Result<Option<Choice>> {
    for folder in ["", "/boot"] {
        let within = |path: &String| format!("{folder}/{}", path.trim_start_matches('/'));
        let kernel = within(&choice.kernel);
        if !seen.has_file(tree, &kernel)? {
            continue;
        }
        let initrds: Vec<String> = choice.initrds.iter().map(within).collect();
        for initrd in &initrds {
            if !seen.has_file(tree, initrd)? {
                let what = format!("{path} names the initrd {initrd}, which is not there");
                seen.remark(what);
                return Ok(None);
            }
        }
        return Ok(Some(Choice {
            kernel,
            initrds,
            ..choice
        }));
    }
    let kernel = &choice.kernel;
    let what = format!("{path} names the kernel {kernel}, which is not there");
    seen.remark(what);
    Ok(None)
}

fn by_links(tree: &impl Tree, seen: &mut Seen) -> Result<Option<Choice>> {
    for folder in ["", "/boot"] {
        let (kernel, initrd) = (format!("{folder}/vmlinuz"), format!("{folder}/initrd.img"));
        seen.looked.push(kernel.clone());
        if seen.has_file(tree, &kernel)? {
            let initrds = if seen.has_file(tree, &initrd)? {
                vec![initrd]
            } else {
                Vec::new()
            };
            return Ok(Some(bare(Source::Links, kernel, initrds)));
        }
    }
    Ok(None)
}

fn by_version(tree: &impl Tree, seen: &mut Seen) -> Result<Option<Choice>> {
    seen.looked.push("/boot/vmlinuz-*".to_owned());
    let names = seen.heed(tree.names("/boot"))?.unwrap_or_default();
    let versions = names
        .iter()
        .filter_map(|name| name.strip_prefix("vmlinuz-"));
    let mut versions: Vec<&str> = versions
        .filter(|version| !LEFT_OVER.iter().any(|end| version.ends_with(end)))
        .collect();
    versions.sort_by(|one, other| release::compare(other, one));
    for version in versions.into_iter().take(MOST_ENTRIES) {
        let initrds = [
            format!("initrd.img-{version}"),
            format!("initramfs-{version}.img"),
        ];
        let initrd = initrds.iter().find(|name| names.contains(name));
        let initrd = initrd.map(|name| format!("/boot/{name}"));
        let kernel = format!("/boot/vmlinuz-{version}");
        let mut whole = true;
        for path in [Some(&kernel), initrd.as_ref()].into_iter().flatten() {
            if !seen.has_file(tree, path)? {
                seen.remark(format!("{path} is no file"));
                whole = false;
            }
        }
        if whole {
            let initrds = initrd.into_iter().collect();
            return Ok(Some(bare(Source::Newest, kernel, initrds)));
        }
    }
    Ok(None)
}

fn bare(source: Source, kernel: String, initrds: Vec<String>) -> Choice {
    Choice {
        source,
        title: None,
        kernel,
        initrds,
        arguments: String::new(),
        volume: None,
    }
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
