//! The state of a machine that has arrived, until it is used: a file beside the one that describes the machine.
//!
//! It is used once. Before the machine's first step its name goes, durably: a state that is restored twice would run over disks
//! that are newer than it. And it is used only until the host starts anew: nothing waits for the disk while it
//! arrives, since a machine whose host loses power loses its memory anyway, wherever that was.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use mirror::net::{DiskPort, Done, ReadDone, StatusDone};
use rustix::fs::{FallocateFlags, fallocate};
use vdisk::engine::Mark;
use vmm::description::Description;
use vmm::memory::MemoryImage;
use vmm::snapshot::MachineState;

use super::volume::{self, First, HEAD};
use crate::commands::image::{self, Known};
use crate::failure::{Exit, Failure, Result};
use crate::plan;
use crate::saved::folder::Saved;
use crate::saved::manifest::{Manifest, StateFile};

/// What the name of the file ends with.
const SUFFIX: &str = ".state";
/// Behind the volume: which start of the host it was received in.
const TRAILER: u64 = 4096;
/// Where in there it says how disks were when all had arrived; before it, in which start of the host.
const SEAL: usize = 1024;
const PAGE: usize = 4096;
static ZEROS: [u8; PAGE] = [0; PAGE];

/// Where the state of a machine arrives; `described` is the file itself.
pub(crate) fn place(described: &Path) -> PathBuf {
    let mut name = described.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

/// Names this start of the host. Asked for once: who is confined later may not ask.
pub(crate) fn this_start() -> io::Result<&'static [u8]> {
    static START: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(known) = START.get() {
        return Ok(known);
    }
    let mut id = fs::read("/proc/sys/kernel/random/boot_id")?;
    id.resize(TRAILER as usize, 0);
    Ok(START.get_or_init(|| id))
}

/// What is behind the volume, if the file is as long as it has to be.
fn trailer(file: &File, memory: u64) -> io::Result<Option<Vec<u8>>> {
    let size = volume::size(memory);
    if file.metadata()?.len() != size + TRAILER {
        return Ok(None);
    }
    let mut found = vec![0; TRAILER as usize];
    file.read_exact_at(&mut found, size)?;
    Ok(Some(found))
}

/// Whether there is a state at `path` that may be used: it was received since the host started.
pub(crate) fn is_there(path: &Path, memory: u64) -> bool {
    let read = || -> io::Result<bool> {
        let found = trailer(&File::open(path)?, memory)?;
        let start = this_start()?;
        Ok(found.is_some_and(|found| found[..SEAL] == start[..SEAL]))
    };
    read().unwrap_or(false)
}

/// Stands for the disks of the machine as they are: none is written without another one.
fn disks_as_they_are(vm: &Description) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    for disk in vm.disks.iter().filter(|disk| !disk.read_only) {
        let known = image::know(&disk.path, disk.format.map(plan::format_name))?;
        let version = match &known {
            Known::Vhdx(info) => info.ids.data_write.to_string(),
            Known::Raw(_) => {
                let failed = |e| Failure::io(disk.path.display(), &e);
                let found = fs::metadata(&disk.path).map_err(failed)?;
                format!("{}.{}", found.mtime(), found.mtime_nsec())
            }
        };
        for part in [disk.name.as_str(), "\0", &version, "\0"] {
            hasher.update(part.as_bytes());
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

/// All of the machine is here, and nobody has its disks open: note how they are, since the state fits to nothing
/// else. What was noted before stays.
pub(crate) fn seal(path: &Path, vm: &Description) -> Result<()> {
    let failed = |e| Failure::io(format!("{}: cannot be written", path.display()), &e);
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(failed)?;
    let found = trailer(&file, vm.memory).map_err(failed)?;
    if found.is_some_and(|found| found[SEAL..SEAL + 32] == [0; 32]) {
        let at = volume::size(vm.memory) + SEAL as u64;
        file.write_all_at(&disks_as_they_are(vm)?, at)
            .map_err(failed)?;
    }
    Ok(())
}

/// Refuse a state whose machine's disks were written since.
fn unsealed(path: &Path, file: &File, vm: &Description) -> Result<()> {
    let failed = |e| Failure::io(format!("{}: cannot be read", path.display()), &e);
    let found = trailer(file, vm.memory)
        .map_err(failed)?
        .unwrap_or_default();
    let noted = found.get(SEAL..SEAL + 32).unwrap_or_default();
    if noted == [0; 32] {
        let what = format!("{}: has not arrived with all of its disks", path.display());
        return Err(Failure::new(Exit::InUse, what)
            .hint("the command that receives the machine goes on: `diskferry run --receive`"));
    }
    if noted == disks_as_they_are(vm)? {
        return Ok(());
    }
    let what = format!(
        "{}: the machine's disks were written since it arrived",
        path.display()
    );
    Err(Failure::new(Exit::Mismatch, what).hint(
        "its memory fits only to the very disks that it had; remove that file and the machine begins from them, as \
         after a power cut",
    ))
}

/// Make sure that nobody uses the state at `path` any more.
pub(crate) fn use_up(path: &Path) -> Result<()> {
    let failed = |e| Failure::io(format!("{}: cannot be removed", path.display()), &e);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new(".")));
    folder.and_then(|folder| folder.sync_all()).map_err(failed)
}

/// The state at `path`, of the machine that `vm` describes.
pub(crate) fn open(path: &Path, vm: &Description) -> Result<Saved> {
    let memory = vm.memory;
    let wrong = |why: String| Failure::new(Exit::Corrupt, format!("{}: {why}", path.display()));
    let failed = |e| Failure::io(format!("{}: cannot be read", path.display()), &e);
    if !is_there(path, memory) {
        return Err(wrong(
            "is not the state of this machine, or not of this start of the host".into(),
        ));
    }
    let file = File::open(path).map_err(failed)?;
    unsealed(path, &file, vm)?;
    let mut first = [0; First::BYTES];
    file.read_exact_at(&mut first, 0).map_err(failed)?;
    let first = First::decode(&first).map_err(|why| wrong(why.to_owned()))?;
    let part = |range: &std::ops::Range<u64>| {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start).map(|()| bytes)
    };
    let manifest = part(&first.manifest).map_err(failed)?;
    let state = part(&first.state).map_err(failed)?;
    if !first.fits(&manifest, &state) || first.memory != memory {
        return Err(wrong("is not what was sent".into()));
    }
    let manifest = Manifest::parse(&manifest).map_err(wrong)?;
    if StateFile::of(&state) != manifest.state {
        return Err(wrong("is put together from several".into()));
    }
    let state = MachineState::decode(&state).map_err(|why| wrong(why.to_string()))?;
    let memory = MemoryImage::raw(path, HEAD, (memory, *manifest.id.as_bytes()));
    let memory = memory.map_err(|error| crate::commands::run::cannot(&error))?;
    Ok(Saved {
        manifest,
        state,
        memory,
    })
}

/// The file as a session writes it.
pub(crate) struct Receiving {
    /// None when it was used: there is nothing to go on with, and nothing that would be.
    file: Option<File>,
    size: u64,
}

impl Receiving {
    /// Begin anew at `path`, for a volume of `size` bytes.
    pub(crate) fn create(path: &Path, size: u64) -> io::Result<Arc<Self>> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        // All of the guest's memory: nobody else's to read.
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.set_len(size + TRAILER)?;
        file.write_all_at(this_start()?, size)?;
        let file = Some(file);
        Ok(Arc::new(Self { file, size }))
    }

    /// Go on with what is at `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Arc<Self>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            result => Some(result?),
        };
        let len = file
            .as_ref()
            .map_or(Ok(0), |file| file.metadata().map(|found| found.len()));
        let size = len?.saturating_sub(TRAILER);
        Ok(Arc::new(Self { file, size }))
    }

    /// Its file, if it was not used.
    fn unused(&self) -> io::Result<&File> {
        let used = || io::Error::other("the state of the machine was used");
        self.file.as_ref().ok_or_else(used)
    }

    /// Write what is not zero; what was not written is.
    fn put(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let file = self.unused()?;
        let mut at = 0;
        for (bytes, zero) in pages(data) {
            if !zero {
                file.write_all_at(bytes, offset + at)?;
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }
}

/// Runs of pages that are all zero, or not.
fn pages(data: &[u8]) -> Vec<(&[u8], bool)> {
    let zero = |page: &[u8]| *page == ZEROS[..page.len()];
    let mut runs = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        let first = zero(&rest[..rest.len().min(PAGE)]);
        let alike = rest.chunks(PAGE).take_while(|page| zero(page) == first);
        let len = alike.map(<[u8]>::len).sum();
        let (run, behind) = rest.split_at(len);
        runs.push((run, first));
        rest = behind;
    }
    runs
}

impl DiskPort for Receiving {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, len: u32, done: ReadDone) {
        let mut bytes = vec![0; len as usize];
        let file = self.unused();
        let read = file.and_then(|file| file.read_exact_at(&mut bytes, offset));
        done(read.map(|()| bytes.into()));
    }

    fn write(&self, offset: u64, data: Bytes, done: Done) {
        super::reached("state");
        done(self.put(offset, &data));
    }

    fn zero(&self, offset: u64, len: u64, done: Done) {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let file = self.unused();
        done(file.and_then(|file| Ok(fallocate(file, how, offset, len)?)));
    }

    /// See the module: it lives as long as the host does.
    fn flush(&self, done: Done) {
        done(Ok(()));
    }

    fn status(&self, _offset: u64, _len: u64, done: StatusDone) {
        done(Err(io::Error::other(
            "the state of a machine is only received",
        )));
    }

    /// Its record says all.
    fn park(&self, _mark: Option<Mark>, done: Done) {
        done(Ok(()));
    }
}
