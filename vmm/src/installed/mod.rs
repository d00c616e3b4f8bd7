//! What an installed disk would start: its kernel, initrd and command line, read out of its own file systems.
//!
//! Driver: [`load`] looks at every partition that may hold them and copies two files. What the bytes mean is
//! said by codecs (`grub`, `entries`, `mbr`, `superblock`, `journal`, `release`), which of several
//! kernels it is by `choose`. The disk is another's: sizes are bounded before memory is taken, nothing is
//! written, links lead nowhere but into the same file system, and a library that panics or goes round in
//! circles on what it reads ends this reading and nothing else. Layouts are those of UEFI 2.10 (5), of the Boot
//! Loader Specification and of what `grub-mkconfig` writes; `docs/vmm.md` tells what is looked for.

mod choose;
mod disk;
mod entries;
mod grub;
mod journal;
mod mbr;
mod partitions;
mod release;
mod superblock;
#[cfg(test)]
mod tests;
mod tree;
mod volume;

use std::fmt::Write as _;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::confine::{self, Kind};
use crate::{Error, ErrorKind, Result};
use choose::Choice;
pub use choose::Source;
pub use disk::BootDisk;
use disk::Reader;
use partitions::Partition;
use tree::FileTree;

/// Bytes of a kernel, at most.
const MOST_KERNEL: u64 = 512 << 20;
/// Bytes of all initrds together, at most.
const MOST_INITRD: u64 = 1 << 30;
/// How long a reading may think without asking for a byte before it is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the two files go.
pub struct Files {
    /// Gets the kernel.
    pub kernel: Box<dyn Write + Send>,
    /// Gets the initrds, one after the other, as a boot loader lays them into memory.
    pub initrd: Box<dyn Write + Send>,
}

/// What an installed disk starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The partition, as a person calls it: `partition 1`, or `no partition` for a file system straight on the disk.
    pub partition: String,
    /// What named the kernel.
    pub source: Source,
    /// Title of the boot entry, if there was one.
    pub title: Option<String>,
    /// Path of the kernel in its file system.
    pub kernel: String,
    /// Its bytes.
    pub kernel_bytes: u64,
    /// Paths of the initrds, in their order.
    pub initrds: Vec<String>,
    /// Bytes of all of them.
    pub initrd_bytes: u64,
    /// The command line that the disk has for it.
    pub arguments: String,
    /// What a person should know: a journal that was not read, a configuration that was passed over.
    pub remarks: Vec<String>,
}

impl Installed {
    /// The command line to start it with: the disk's, a serial console if there is none in it, and `more`.
    /// Says also whether the console was added.
    #[must_use]
    pub fn command_line(&self, more: &str) -> (String, bool) {
        let more = more.trim();
        let words = || self.arguments.split(' ').chain(more.split(' '));
        let missing = !words().any(|word| word.starts_with("console=ttyS"));
        let mut line = self.arguments.trim().to_owned();
        for part in [if missing { "console=ttyS0" } else { "" }, more] {
            if !part.is_empty() {
                let _ = write!(line, "{}{part}", if line.is_empty() { "" } else { " " });
            }
        }
        (line, missing)
    }
}

/// Find what `disk` starts, and copy its kernel and initrd to `into`.
///
/// The reading has a thread of its own. If it goes round in circles over a damaged file system it is left
/// behind there, and this returns; the caller is expected to end its process soon.
///
/// # Errors
///
/// [`ErrorKind::BadKernel`] with all that was looked at, if there is nothing to start or it cannot be read;
/// [`ErrorKind::Host`] if the disk itself cannot be read.
pub fn load(disk: Arc<dyn BootDisk>, into: Files) -> Result<Installed> {
    let reader = Reader::new(disk);
    let progress = reader.progress();
    let (sender, receiver) = channel();
    let reading = move || {
        confine::thread(Kind::Reader);
        let read = catch_unwind(AssertUnwindSafe(|| search(&reader, into)));
        let read = read.unwrap_or_else(|_| Err(gave_up("its file system is damaged")));
        let _ = sender.send(read);
    };
    let thread = thread::Builder::new().name("boot-disk".into());
    thread
        .spawn(reading)
        .map_err(|error| Error::host("no thread that reads the disk", error))?;
    let mut seen = progress.count();
    loop {
        match receiver.recv_timeout(PATIENCE) {
            Ok(read) => return read,
            Err(RecvTimeoutError::Disconnected) => return Err(gave_up("its reading was ended")),
            Err(RecvTimeoutError::Timeout) if progress.is_reading() || progress.count() != seen => {
                seen = progress.count();
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(gave_up("its file system leads round in circles"));
            }
        }
    }
}

fn gave_up(why: &str) -> Error {
    Error::kernel(format!("the disk cannot be started from: {why}; {INSTEAD}"))
}

/// What can always be done.
const INSTEAD: &str =
    "copy the kernel and the initrd out of it and name them (boot.kernel, boot.initrd)";

/// A file system that was opened, and its place.
struct Candidate {
    partition: Partition,
    tree: FileTree,
}

fn search(reader: &Reader, into: Files) -> Result<Installed> {
    let (mut looked, mut passed) = (Vec::new(), Vec::new());
    let mut candidates = Vec::new();
    for partition in partitions::list(reader)? {
        let name = &partition.name;
        match volume::open(reader, &partition) {
            Ok(volume::Opened::Tree(tree)) => candidates.push(Candidate { partition, tree }),
            Ok(volume::Opened::Other(what)) => looked.push(format!("{name}: {what}")),
            // Another file system may be whole.
            Err(error) if error.kind() == ErrorKind::BadKernel => {
                let what = format!("{name}: {error}");
                looked.push(what.clone());
                passed.push(what);
            }
            Err(error) => return Err(error),
        }
    }
    for (place, candidate) in candidates.iter().enumerate() {
        let mut seen = choose::Seen::default();
        let uuid = candidate.tree.uuid();
        let beside = candidates
            .iter()
            .map(|other| (other.tree.uuid(), &other.tree));
        let beside: Vec<_> = beside.filter(|(other, _)| *other != uuid).collect();
        let name = &candidate.partition.name;
        if let Some(choice) = choose::choose(&candidate.tree, (uuid, &beside), &mut seen)? {
            passed.append(&mut seen.remarks);
            return read(&candidates, (place, &choice), (into, passed));
        }
        passed.extend(seen.remarks.iter().map(|what| format!("{name}: {what}")));
        let told = seen.looked.into_iter().chain(seen.remarks);
        looked.push(format!("{name} ({})", told.collect::<Vec<_>>().join(", ")));
    }
    Err(nothing(&looked))
}

/// Why nothing was found, with all that was looked at.
fn nothing(looked: &[String]) -> Error {
    let looked = if looked.is_empty() {
        "it has no partition and no file system".to_owned()
    } else {
        format!("looked at {}", looked.join("; "))
    };
    Error::kernel(format!(
        "nothing on the disk says what to start: {looked}; {INSTEAD}"
    ))
}

fn read(
    candidates: &[Candidate],
    (place, choice): (usize, &Choice),
    (into, mut remarks): (Files, Vec<String>),
) -> Result<Installed> {
    // An entry may name the file system that its files are in.
    let named = choice.volume.as_deref().and_then(|uuid| {
        candidates
            .iter()
            .find(|candidate| candidate.tree.uuid() == uuid)
    });
    let candidate = named.unwrap_or(&candidates[place]);
    let name = &candidate.partition.name;
    let tree = &candidate.tree;
    let Files {
        mut kernel,
        mut initrd,
    } = into;
    let kernel_bytes = tree.copy(&choice.kernel, MOST_KERNEL, &mut *kernel)?;
    let mut initrd_bytes = 0;
    for path in &choice.initrds {
        initrd_bytes += tree.copy(path, MOST_INITRD - initrd_bytes, &mut *initrd)?;
    }
    for mut written in [kernel, initrd] {
        let flushed = written.flush();
        flushed.map_err(|error| Error::host("what was read cannot be kept", error))?;
    }
    remarks.extend(tree.remark().map(|what| format!("{name}: {what}")));
    Ok(Installed {
        partition: name.clone(),
        source: choice.source,
        title: choice.title.clone(),
        kernel: choice.kernel.clone(),
        kernel_bytes,
        initrds: choice.initrds.clone(),
        initrd_bytes,
        arguments: choice.arguments.clone(),
        remarks,
    })
}

/// Bytes could not be read while `what` was done: because of the disk's content, or of the disk.
fn unreadable(what: impl Into<String>, error: std::io::Error) -> Error {
    match disk::refusal(&error) {
        Some(_) => damaged(what).because(error),
        None => Error::host(what, error),
    }
}

/// What is wrong with the disk's content, as an error.
fn damaged(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::BadKernel, what)
}
