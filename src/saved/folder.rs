//! The folder of a snapshot: one that is being made, and one that is opened and believed.
//!
//! It has another name until everything in it is durable, and the manifest is written last. So a folder without
//! one, or of the other name, is what a snapshot left that did not end; it is never taken for one.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use vmm::memory::MemoryImage;
use vmm::snapshot::MachineState;

use super::manifest::{Manifest, StateFile};
use crate::failure::{Exit, Failure, Result};

const MANIFEST: &str = "snapshot.json";
const STATE: &str = "machine.state";
const MEMORY: &str = "memory";
const DESCRIPTION: &str = "vm.toml";
/// A manifest is never longer.
const LONGEST: u64 = 1 << 20;

/// A folder that is being made; what is in it goes unless it is finished.
pub(crate) struct Made {
    place: PathBuf,
    partial: PathBuf,
    finished: bool,
}

impl Made {
    /// Begin to make the folder at `place`, an absolute path.
    pub(crate) fn begin(place: &Path) -> Result<Self> {
        if fs::symlink_metadata(place).is_ok() {
            let what = format!("{}: exists already", place.display());
            return Err(Failure::usage(what).hint("name a folder that does not exist yet"));
        }
        let name = place.file_name();
        let nameless = || Failure::usage(format!("{}: is not a folder's name", place.display()));
        let mut partial = name.ok_or_else(nameless)?.to_owned();
        partial.push(format!(".partial-{}", std::process::id()));
        let partial = place.with_file_name(partial);
        // What a guest keeps in its memory is nobody else's to read.
        let made = DirBuilder::new().mode(0o700).create(&partial);
        made.map_err(|e| cannot("made", &partial)(e))?;
        Ok(Self {
            place: place.to_owned(),
            partial,
            finished: false,
        })
    }

    /// Put a copy of the machine's description into it.
    pub(crate) fn describe(&self, machine: &Path) -> Result<()> {
        let text = fs::read(machine).map_err(cannot("read", machine))?;
        self.write(DESCRIPTION, &text)
    }

    /// Put the state into it, durably.
    pub(crate) fn state(&self, bytes: &[u8]) -> Result<()> {
        self.write(STATE, bytes)
    }

    /// Where the memory goes.
    pub(crate) fn memory(&self) -> PathBuf {
        self.partial.join(MEMORY)
    }

    /// All is in it: it gets its manifest and its name, durably.
    pub(crate) fn finish(mut self, manifest: &Manifest) -> Result<()> {
        self.write(MANIFEST, &manifest.to_bytes()?)?;
        settle(&self.partial)?;
        fs::rename(&self.partial, &self.place).map_err(cannot("made", &self.place))?;
        self.finished = true;
        let above = self.place.parent().unwrap_or(Path::new("/"));
        settle(above)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.partial.join(name);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(cannot("written", &path))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody takes it for a snapshot, wherever it stays.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

fn cannot(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::io(format!("{}: cannot be {what}", path.display()), &error)
}

fn settle(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(cannot("made durable", folder))
}

/// A machine that was saved, with all that can be known of the folder without reading its memory.
pub(crate) struct Saved {
    pub(crate) manifest: Manifest,
    pub(crate) state: MachineState,
    pub(crate) memory: MemoryImage,
}

impl Saved {
    /// Open the snapshot at `place`. Refuses what is incomplete, damaged, or put together from several.
    pub(crate) fn open(place: &Path) -> Result<Self> {
        let path = place.join(MANIFEST);
        let bytes = match read(&path, LONGEST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let what = format!(
                    "{}: is not the snapshot of a machine, or an incomplete one",
                    place.display()
                );
                return Err(Failure::usage(what).hint(
                    "`diskferry machine snapshot` makes one; what it left when it was killed may be removed",
                ));
            }
            result => result.map_err(cannot("read", &path))?,
        };
        let manifest = Manifest::parse(&bytes);
        let manifest = manifest.map_err(|why| damaged(&path, &why))?;
        let path = place.join(STATE);
        let bytes = read(&path, manifest.state.bytes).map_err(cannot("read", &path))?;
        if StateFile::of(&bytes) != manifest.state {
            return Err(damaged(&path, "is not what was written"));
        }
        let state = MachineState::decode(&bytes);
        let state = state.map_err(|why| damaged(&path, &why.to_string()))?;
        let path = place.join(MEMORY);
        let memory = MemoryImage::open(&path).map_err(|error| match error.kind() {
            vmm::ErrorKind::BadSnapshot => Failure::new(Exit::Corrupt, error.to_string()),
            _ => Failure::new(Exit::Failed, error.to_string()),
        })?;
        if memory.id() != *manifest.id.as_bytes() || memory.memory() != manifest.memory {
            return Err(damaged(&path, "is of another snapshot"));
        }
        Ok(Self {
            manifest,
            state,
            memory,
        })
    }
}

fn damaged(path: &Path, why: &str) -> Failure {
    Failure::new(Exit::Corrupt, format!("{}: {why}", path.display()))
}

/// The bytes of a file, refused if they are more than `longest`.
fn read(path: &Path, longest: u64) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    File::open(path)?
        .take(longest.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > longest {
        return Err(io::Error::other("longer than it should be"));
    }
    Ok(bytes)
}
