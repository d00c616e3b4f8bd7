//! A package that was found, and its volumes read: none of it is believed before it was looked at.

use std::io;

use package::{Error, ErrorKind, Hash, Item, MANIFEST_LIMIT, Manifest, VolumeEntry, Walker};

use super::cipher::{HEAD_LIMIT, Keys};
use super::place::Place;
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
    place: Box<dyn Place>,
    keys: Keys,
}

impl Package {
    /// Finds the package of that name, or the only one, in this place.
    pub(crate) fn find(place: Box<dyn Place>, name: Option<&str>, keys: Keys) -> Result<Self> {
        let (file, encrypted) = one_manifest(&*place, name)?;
        let shown = place.shown(&file);
        if encrypted && !keys.are_there() {
            let what = format!("{shown}: is encrypted");
            return Err(Failure::usage(what).hint("--identity FILE or --passphrase-file FILE"));
        }
        if !encrypted && keys.are_there() {
            let what = format!("{shown}: is not encrypted, and a key was given");
            return Err(Failure::new(Exit::Corrupt, what)
                .hint("somebody may have put it there; without a key it is read as it is"));
        }
        let bytes = read_manifest(&*place, &file, &keys, encrypted)?;
        let (manifest, root) = Manifest::decode(&bytes).map_err(|e| wrong(&shown, &e))?;
        let called = Manifest::file_name(&manifest.name, manifest.encrypted);
        if file != called {
            let what = format!("{shown}: is the manifest that is called {called}");
            return Err(Failure::new(Exit::Corrupt, what).hint("give its files their names back"));
        }
        Ok(Self {
            manifest,
            root,
            place,
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
    pub(crate) fn incomplete(&self, from: u64) -> Result<(Vec<String>, bool)> {
        let (mut wrong, mut first) = (Vec::new(), None);
        for (number, entry) in self.manifest.numbered() {
            if entry.end <= from {
                continue;
            }
            let looked = self.look(number, entry);
            first.get_or_insert(looked.is_err());
            match looked {
                Ok(()) => {}
                Err(failure) if failure.exit == Exit::Corrupt => wrong.push(failure.what),
                // Of a place that does not answer nothing is known.
                Err(failure) => return Err(failure),
            }
        }
        Ok((wrong, first.unwrap_or(false)))
    }

    /// Refuses a package of which volumes are not there, or not as long as they must be, and names all of them.
    pub(crate) fn refuse_incomplete(&self) -> Result<()> {
        Self::refuse(&self.incomplete(0)?.0)
    }

    /// Refuses a package of which this is wrong.
    pub(crate) fn refuse(wrong: &[String]) -> Result<()> {
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Failure::new(Exit::Corrupt, wrong.join("\n"))
            .hint("bring these files again; --from may be given several times"))
    }

    /// Whether the file of a volume is there, and as long as it must be.
    fn look(&self, number: u32, entry: &VolumeEntry) -> Result<()> {
        let shown = self.shown(number, entry);
        let wrong = match self.place.length(&self.name_of(number))? {
            Some(has) if has == entry.length => return Ok(()),
            Some(has) => format!("{shown} is damaged: it has {has} bytes of {}", entry.length),
            None => format!("{shown} is missing"),
        };
        Err(Failure::new(Exit::Corrupt, wrong))
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
        self.look(number, entry)?;
        let file = self.place.open(&self.name_of(number), entry.length)?;
        let mut input = SealedReader::new(file, &self.keys, self.manifest.encrypted)
            .map_err(|unopened| damaged(&unopened.what))?;
        let mut buffer = vec![0; package::CHUNK as usize];
        loop {
            interrupt::check("the same command goes on")?;
            let wanted = walker.wants();
            let bytes = &mut buffer[..wanted.max(1)];
            let read = input
                .read(bytes)
                .map_err(|e| self.unreadable(number, entry, &e))?;
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

    fn unreadable(&self, number: u32, entry: &VolumeEntry, error: &io::Error) -> Failure {
        let shown = self.shown(number, entry);
        unreadable(&*self.place, &self.name_of(number), &shown, error)
    }
}

/// The manifest of that name, or the only one; and whether it is encrypted.
fn one_manifest(place: &dyn Place, name: Option<&str>) -> Result<(String, bool)> {
    let mut found: Vec<(String, bool)> = Vec::new();
    let files = match name {
        // A place may be full of others; two are looked for.
        Some(name) => present(place, name)?,
        None => place.names()?,
    };
    for file in files {
        let ending = ENDINGS
            .iter()
            .find_map(|(ending, encrypted)| Some((file.strip_suffix(ending)?, *encrypted)));
        let Some((stem, encrypted)) = ending else {
            continue;
        };
        let wanted = name.is_none_or(|name| name == stem);
        if wanted && !found.iter().any(|(other, _)| *other == file) {
            found.push((file, encrypted));
        }
    }
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some((one, _)), false) => {
            let one = place.shown(&one);
            let what = format!("there are several packages, {one} among them");
            Err(Failure::usage(what).hint("--name says which; or give each a folder of its own"))
        }
        (None, _) => {
            let what = "there is no manifest: no package, or one that was not finished";
            Err(Failure::new(Exit::Failed, what)
                .hint("the export that was interrupted goes on when it is started again"))
        }
    }
}

/// Which of the manifests that a package of this name may have are there.
fn present(place: &dyn Place, name: &str) -> Result<Vec<String>> {
    if !package::is_name(name) {
        return Err(Failure::usage(format!("`{name}` is no name of a package")));
    }
    let mut files = Vec::new();
    for (ending, _) in ENDINGS {
        let file = format!("{name}{ending}");
        if place.length(&file)?.is_some() {
            files.push(file);
        }
    }
    Ok(files)
}

/// Most bytes of the file of a manifest: it may be encrypted.
const FILE_LIMIT: u64 = MANIFEST_LIMIT + MANIFEST_LIMIT / 1024 + HEAD_LIMIT as u64;

fn read_manifest(place: &dyn Place, file: &str, keys: &Keys, encrypted: bool) -> Result<Vec<u8>> {
    let shown = place.shown(file);
    let stored = place.load(file, FILE_LIMIT)?.unwrap_or_default();
    let input = SealedReader::new(Box::new(io::Cursor::new(stored)), keys, encrypted);
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
        let read = input.read(&mut piece);
        let read = read.map_err(|e| unreadable(place, file, &shown, &e))?;
        bytes.extend_from_slice(&piece[..read]);
        if read == 0 || bytes.len() as u64 > MANIFEST_LIMIT {
            return Ok(bytes);
        }
    }
}

/// A read that failed: of what was encrypted otherwise, or of the medium.
fn unreadable(place: &dyn Place, name: &str, shown: &str, error: &io::Error) -> Failure {
    let harmed = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof];
    if harmed.contains(&error.kind()) {
        let what = format!("{shown} is damaged: it cannot be decrypted ({error})");
        return Failure::new(Exit::Corrupt, what).hint("bring this file again");
    }
    place.failed(name, "cannot be read", error)
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
