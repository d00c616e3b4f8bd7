//! A package that was found, and its volumes read: none of it is believed before it was looked at.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use package::{Error, ErrorKind, Hash, Item, MANIFEST_LIMIT, Manifest, VolumeEntry, Walker};

use super::cipher::Keys;
use super::folders::find;
use super::sealed::SealedReader;
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;

/// What a whole package ends with.
const ENDINGS: [(&str, bool); 2] = [(".manifest", false), (".manifest.age", true)];

/// A package whose manifest was read.
pub(crate) struct Package {
    pub(crate) manifest: Manifest,
    /// The hash that stands for all of it.
    pub(crate) root: Hash,
    folders: Vec<PathBuf>,
    keys: Keys,
}

impl Package {
    /// Finds the package of that name, or the only one, in these folders.
    pub(crate) fn find(folders: &[PathBuf], name: Option<&str>, keys: Keys) -> Result<Self> {
        let (path, encrypted) = one_manifest(folders, name)?;
        let shown = path.display();
        if encrypted && !keys.are_there() {
            let what = format!("{shown}: is encrypted");
            return Err(Failure::usage(what).hint("--identity FILE or --passphrase-file FILE"));
        }
        if !encrypted && keys.are_there() {
            let what = format!("{shown}: is not encrypted, and a key was given");
            return Err(Failure::new(Exit::Corrupt, what)
                .hint("somebody may have put it there; without a key it is read as it is"));
        }
        let bytes = read_manifest(&path, &keys, encrypted)?;
        let (manifest, root) =
            Manifest::decode(&bytes).map_err(|e| wrong(&shown.to_string(), &e))?;
        let called = Manifest::file_name(&manifest.name, manifest.encrypted);
        if path.file_name().and_then(|name| name.to_str()) != Some(&called) {
            let what = format!("{shown}: is the manifest that is called {called}");
            return Err(Failure::new(Exit::Corrupt, what).hint("give its files their names back"));
        }
        Ok(Self {
            manifest,
            root,
            folders: folders.to_vec(),
            keys,
        })
    }

    /// Refuses any package but the one with this fingerprint.
    pub(crate) fn refuse_other(&self, expected: Option<Hash>) -> Result<()> {
        match expected {
            Some(expected) if expected != self.root => {
                let what = format!("the package's fingerprint is {}, not {expected}", self.root);
                Err(Failure::new(Exit::Mismatch, what)
                    .hint("it is another package, or was tampered with"))
            }
            _ => Ok(()),
        }
    }

    /// What the file of volume `number` is called.
    pub(crate) fn name_of(&self, number: u32) -> String {
        let manifest = &self.manifest;
        Manifest::volume_name(&manifest.name, number, manifest.encrypted)
    }

    /// Which volumes that tell of the disk from `from` on are not there, or not as long as they must be; and
    /// whether the first of those that are wanted is one of them.
    pub(crate) fn incomplete(&self, from: u64) -> (Vec<String>, bool) {
        let wanted = || {
            self.manifest
                .numbered()
                .filter(|(_, entry)| entry.end > from)
        };
        let wrong = |(number, entry)| self.look(number, entry).err();
        let first = wanted().next().and_then(wrong);
        (wanted().filter_map(wrong).collect(), first.is_some())
    }

    /// Refuses a package of which volumes are not there, or not as long as they must be, and names all of them.
    pub(crate) fn refuse_incomplete(&self) -> Result<()> {
        Self::refuse(&self.incomplete(0).0)
    }

    /// Refuses a package of which this is wrong.
    pub(crate) fn refuse(wrong: &[String]) -> Result<()> {
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Failure::new(Exit::Corrupt, wrong.join("\n"))
            .hint("bring these files again; --from may be given several times"))
    }

    /// The file of a volume, if it is as long as it must be.
    fn look(&self, number: u32, entry: &VolumeEntry) -> Result<File, String> {
        let shown = self.shown(number, entry);
        let path = find(&self.folders, &self.name_of(number));
        let path = path.ok_or_else(|| format!("{shown} is missing"))?;
        let file = File::open(&path).map_err(|e| format!("{shown} cannot be opened: {e}"))?;
        let found = file
            .metadata()
            .map_err(|e| format!("{shown} cannot be read: {e}"))?;
        if !found.is_file() {
            return Err(format!("{shown} is no regular file"));
        }
        if found.len() != entry.length {
            let (has, must) = (found.len(), entry.length);
            return Err(format!("{shown} is damaged: it has {has} bytes of {must}"));
        }
        Ok(file)
    }

    /// A volume's name, and what it holds.
    fn shown(&self, number: u32, entry: &VolumeEntry) -> String {
        let name = self.name_of(number);
        format!(
            "{name} (bytes {} to {} of the disk)",
            entry.first, entry.end
        )
    }

    /// Gives all that stands in a volume, each part after it was found to be sound; at the end the volume as a
    /// whole was found to be the one that was exported.
    pub(crate) fn read(&self, number: u32, each: &mut dyn FnMut(Item) -> Result<()>) -> Result<()> {
        let entry = self.manifest.volume(number);
        let walker = Walker::new(&self.manifest, number);
        let (Some(entry), Some(mut walker)) = (entry, walker) else {
            return Ok(());
        };
        let shown = self.shown(number, entry);
        let damaged = |what: &str| Failure::new(Exit::Corrupt, format!("{shown} {what}"));
        let file = self.look(number, entry);
        let file = file.map_err(|what| Failure::new(Exit::Corrupt, what))?;
        let mut input = SealedReader::new(file, &self.keys, self.manifest.encrypted)
            .map_err(|unopened| damaged(&unopened.what))?;
        let mut buffer = vec![0; package::CHUNK as usize];
        loop {
            interrupt::check("the same command goes on")?;
            let wanted = walker.wants();
            let bytes = &mut buffer[..wanted.max(1)];
            let read = input.read(bytes).map_err(|e| unreadable(&shown, &e))?;
            let item = walker.take(&bytes[..read]).map_err(|e| wrong(&shown, &e))?;
            if let Some(item) = item {
                each(item)?;
            }
            if wanted == 0 {
                break;
            }
        }
        if input.finish() != (entry.length, entry.hash) {
            return Err(damaged(
                "is not the file that was exported: its hash is another",
            ));
        }
        Ok(())
    }
}

/// The manifest of that name, or the only one; and whether it is encrypted.
fn one_manifest(folders: &[PathBuf], name: Option<&str>) -> Result<(PathBuf, bool)> {
    let mut found: Vec<(PathBuf, bool)> = Vec::new();
    for folder in folders {
        let failed = |e| Failure::io(format!("{}: cannot be listed", folder.display()), &e);
        for entry in fs::read_dir(folder).map_err(failed)? {
            let file = entry.map_err(failed)?.file_name();
            let Some(file) = file.to_str() else { continue };
            let ending = ENDINGS
                .iter()
                .find_map(|(ending, encrypted)| Some((file.strip_suffix(ending)?, *encrypted)));
            let Some((stem, encrypted)) = ending else {
                continue;
            };
            let wanted = name.is_none_or(|name| name == stem);
            let path = folder.join(file);
            let again = found
                .iter()
                .any(|(other, _)| other.file_name() == path.file_name());
            if wanted && !again {
                found.push((path, encrypted));
            }
        }
    }
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some((one, _)), false) => {
            let what = format!("there are several packages, {} among them", one.display());
            Err(Failure::usage(what).hint("--name says which; or give each a folder of its own"))
        }
        (None, _) => {
            let what = "there is no manifest: no package, or one that was not finished";
            Err(Failure::new(Exit::Failed, what)
                .hint("the export that was interrupted goes on when it is started again"))
        }
    }
}

fn read_manifest(path: &Path, keys: &Keys, encrypted: bool) -> Result<Vec<u8>> {
    let shown = path.display().to_string();
    let file = File::open(path).map_err(|e| Failure::io(format!("{shown}: cannot be read"), &e))?;
    let input = SealedReader::new(file, keys, encrypted);
    let mut input = input.map_err(|unopened| {
        let what = format!("{shown}: {}", unopened.what);
        if unopened.other_key {
            return Failure::new(Exit::Failed, what)
                .hint("give the identity or the passphrase that it was encrypted for");
        }
        Failure::new(Exit::Corrupt, what).hint("bring this file again")
    })?;
    let mut bytes = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let read = input.read(&mut piece).map_err(|e| unreadable(&shown, &e))?;
        bytes.extend_from_slice(&piece[..read]);
        if read == 0 || bytes.len() as u64 > MANIFEST_LIMIT {
            return Ok(bytes);
        }
    }
}

/// A read that failed: of what was encrypted otherwise, or of the medium.
fn unreadable(shown: &str, error: &io::Error) -> Failure {
    let harmed = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof];
    if harmed.contains(&error.kind()) {
        let what = format!("{shown} is damaged: it cannot be decrypted ({error})");
        return Failure::new(Exit::Corrupt, what).hint("bring this file again");
    }
    Failure::io(format!("{shown} cannot be read"), error)
}

fn wrong(shown: &str, error: &Error) -> Failure {
    let what = format!("{shown} {error}");
    match error.kind() {
        ErrorKind::Damaged => Failure::new(Exit::Corrupt, what).hint("bring this file again"),
        ErrorKind::Other => Failure::new(Exit::Corrupt, what)
            .hint("bring the file of that name from the same export"),
        ErrorKind::Unsupported => {
            Failure::new(Exit::Unsupported, what).hint("a later diskferry may know it")
        }
    }
}
