//! The memory of a machine: one file without a name, mapped where the guest sees it.
//!
//! Driver. The file is a memfd whose size is sealed, so that no mapping of it can end in a fault, and a
//! page of it exists once it is touched. Must never touch a page itself, but to restore it. The layout is that of
//! [`crate::layout`]; how it is saved and comes back is in `docs/vm-snapshot-memory.md`.
//!
//! | module | what |
//! |---|---|
//! | `image` | codec of the file that memory is saved in |
//! | `write`, `read` | drivers of that file; `buffer` is the room they use |
//! | `pending` | machine: what is read next while the guest runs already |
//! | `lazy`, `userfault` | drivers of that |

mod buffer;
mod image;
mod lazy;
mod pending;
mod read;
#[cfg(test)]
mod saved_tests;
mod userfault;
mod write;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use blockserver::virtio::GuestMemory;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{
    Bytes as _, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

use self::buffer::Buffer;
use self::lazy::{Lazy, WhenLost};
pub use self::read::MemoryImage;
use self::userfault::UserFaults;
pub use self::write::Written;
use crate::layout::{self, GIB, PAGE};
use crate::{Error, ErrorKind, Result};

/// Least and greatest memory of a machine, in bytes.
pub const MEMORY_BYTES: Range<u64> = 0x20_0000..1024 * GIB + 1;
/// Bytes of a huge page.
const HUGE: u64 = 0x20_0000;

/// A machine's memory.
#[derive(Debug)]
pub struct Memory {
    guest: GuestMemory,
    file: Arc<File>,
    bytes: u64,
    /// Bytes of pages that were saved before.
    restored: u64,
    /// What is still to come of it. Kept until nobody touches the memory any more.
    lazy: Option<Lazy>,
}

/// How memory comes back that was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// While the machine runs: what is touched comes first.
    Lazy,
    /// It is there already, and why it did not come while the machine runs.
    Eager(String),
}

/// What faults of a machine's memory come to, or why they cannot be had. A process that is confined gets none any
/// more, and opens it before.
#[derive(Debug)]
pub struct Faults {
    opened: io::Result<UserFaults>,
    huge: bool,
}

impl Faults {
    /// Have it for one memory; with `huge`, of huge pages.
    #[must_use]
    pub fn open(huge: bool) -> Self {
        Self {
            opened: UserFaults::open(huge),
            huge,
        }
    }
}

/// A part of memory as the kernel is told of it: a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Where the guest sees it.
    pub(crate) guest: u64,
    /// Where it is mapped here.
    pub(crate) host: u64,
    /// Its size.
    pub(crate) bytes: u64,
}

impl Memory {
    /// `bytes` of memory, of huge pages (2 MiB) if asked so. Nothing of it is used yet.
    pub fn new(bytes: u64, huge: bool) -> Result<Self> {
        let unit = if huge { HUGE } else { PAGE };
        if !MEMORY_BYTES.contains(&bytes) || !bytes.is_multiple_of(unit) {
            let what = format!(
                "a machine has 2 MiB to 1 TiB of memory, in units of {unit} bytes, not {bytes}"
            );
            return Err(Error::invalid(what));
        }
        let file = Arc::new(sealed(bytes, huge)?);
        let mut offset = 0;
        let mut regions = Vec::new();
        for range in layout::memory_ranges(bytes) {
            let size = range.end - range.start;
            let mapped = map(&file, (offset, huge), &range);
            regions.push(mapped.map_err(|error| {
                if !huge {
                    return error;
                }
                let pages = bytes / HUGE;
                let what = format!(
                    "{error}; it takes {pages} free huge pages of 2 MiB, which `sysctl vm.nr_hugepages` sets aside"
                );
                Error::new(error.kind(), what)
            })?);
            offset += size;
        }
        let guest = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| Error::invalid(format!("memory cannot be laid out so: {error}")))?;
        Ok(Self {
            guest: Arc::new(guest),
            file,
            bytes,
            restored: 0,
            lazy: None,
        })
    }

    /// The memory that `image` holds, of the pages that `faults` is for. It comes in while it is used, where this
    /// process may answer its own faults; else it is there when this returns.
    ///
    /// Until [`Self::wait`] has returned it must not be reached through [`Self::file`]: only touches of its
    /// mapping wait for what is to come. What cannot be had ends no call here; see [`Self::lost`].
    pub fn restored(image: MemoryImage, faults: Faults) -> Result<(Self, Arrival)> {
        let Faults { opened, huge } = faults;
        let mut memory = Self::new(image.memory(), huge)?;
        memory.restored = image.stored();
        let arrival = match opened {
            Ok(faults) => {
                let place = (memory.slots(), huge);
                memory.lazy = Some(Lazy::start(image, place, faults)?);
                Arrival::Lazy
            }
            Err(error) => {
                memory.fill(&image)?;
                Arrival::Eager(format!(
                    "faults of the machine's memory cannot be had ({error}): that needs /dev/userfaultfd, \
                     CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1"
                ))
            }
        };
        Ok((memory, arrival))
    }

    /// The same, all of it there when this returns.
    pub fn restored_eagerly(image: &MemoryImage, huge: bool) -> Result<Self> {
        let mut memory = Self::new(image.memory(), huge)?;
        memory.restored = image.stored();
        memory.fill(image)?;
        Ok(memory)
    }

    /// Read all that the image has.
    fn fill(&self, image: &MemoryImage) -> Result<()> {
        let mut buffer = Buffer::new();
        for entry in image.entries() {
            image.read(entry, &mut buffer)?;
            let mut rest = buffer.bytes();
            for (first, count) in entry.pages.runs() {
                let (run, behind) = rest.split_at(count * PAGE as usize);
                rest = behind;
                let offset = u64::from(entry.extent) * image::EXTENT + first as u64 * PAGE;
                let address = GuestAddress(image::address_of(offset));
                let put = self.guest.write_slice(run, address);
                put.map_err(|error| Error::invalid(format!("memory that was read: {error}")))?;
            }
        }
        Ok(())
    }

    /// Write it to the new file at `path`, of the snapshot `id`, durably: what exists of it and is not zero. First
    /// waits for what is still to come. Nothing may change it meanwhile: processors and devices stand still.
    pub fn save(&self, path: &Path, id: [u8; 16]) -> Result<Written> {
        self.wait()?;
        write::write(&self.file, self.bytes, (path, id))
    }

    /// Return when all of it is there; fails when that cannot be.
    pub fn wait(&self) -> Result<()> {
        self.lazy.as_ref().map_or(Ok(()), Lazy::wait)
    }

    /// Bytes of pages that came, or come, from a file.
    #[must_use]
    pub fn restored_bytes(&self) -> u64 {
        self.restored
    }

    /// Why a part of the memory cannot be had, if so.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.lazy.as_ref().and_then(Lazy::lost)
    }

    /// Bytes that are still to come, at most.
    #[must_use]
    pub fn to_come(&self) -> u64 {
        self.lazy.as_ref().map_or(0, Lazy::left)
    }

    /// Have `call` told, from any thread, why a part of the memory cannot be had. Whoever touches that part is never
    /// answered, until this is dropped.
    pub(crate) fn when_lost(&self, call: WhenLost) {
        if let Some(lazy) = &self.lazy {
            lazy.when_lost(call);
        }
    }

    /// The memory as devices use it.
    #[must_use]
    pub fn guest(&self) -> &GuestMemory {
        &self.guest
    }

    /// The file behind it: the memory below the hole, then the memory above.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// How much it is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The first address behind all memory.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.guest.last_addr().0.saturating_add(1)
    }

    /// Its parts, lowest first.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        let regions = self.guest.iter();
        regions
            .map(|region| Slot {
                guest: region.start_addr().0,
                host: region.as_ptr() as u64,
                bytes: region.len(),
            })
            .collect()
    }
}

/// A memfd of a size that can no longer change.
fn sealed(bytes: u64, huge: bool) -> Result<File> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if huge {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let failed = |what| move |error| Error::host(format!("memory of a machine: {what}"), error);
    let file =
        memfd_create(c"diskferry-memory", flags).map_err(failed("cannot make a file for it"))?;
    ftruncate(&file, bytes).map_err(failed("the file cannot be as large"))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).map_err(failed("its size cannot be sealed"))?;
    Ok(File::from(file))
}

/// Huge pages are reserved here, since whoever touched one that the host does not have would be killed.
fn map(
    file: &Arc<File>,
    (offset, huge): (u64, bool),
    range: &Range<u64>,
) -> Result<GuestRegionMmap<()>> {
    let size = usize::try_from(range.end - range.start)
        .map_err(|_| Error::invalid("memory larger than this host can address"))?;
    let part = FileOffset::from_arc(Arc::clone(file), offset);
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let mut flags = MapFlags::SHARED;
    flags.set(MapFlags::NORESERVE, !huge);
    let mapped = MmapRegion::build(
        Some(part),
        size,
        access.bits().cast_signed(),
        flags.bits().cast_signed(),
    );
    let region = mapped.map_err(|error| {
        let what = format!("{size} bytes of memory cannot be mapped: {error}");
        Error::new(ErrorKind::Host, what)
    })?;
    let address = GuestAddress(range.start);
    GuestRegionMmap::new(region, address)
        .ok_or_else(|| Error::invalid("memory that ends beyond all addresses"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::Bytes;

    use super::*;
    use crate::layout::HOLE;

    #[test]
    fn memory_costs_nothing_until_it_is_touched() {
        let memory = Memory::new(512 * GIB, false).unwrap();
        assert_eq!(memory.end(), 513 * GIB);
        for at in [0, HOLE.start - 8, HOLE.end, 513 * GIB - 8] {
            memory.guest().write_obj(at, GuestAddress(at)).unwrap();
            assert_eq!(
                memory.guest().read_obj::<u64>(GuestAddress(at)).unwrap(),
                at
            );
        }
        assert!(
            memory
                .guest()
                .write_obj(0_u8, GuestAddress(HOLE.start))
                .is_err()
        );
        assert!(memory.file().metadata().unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn huge_pages_that_the_host_does_not_have_are_missed_before_they_are_touched() {
        // More than any host has set aside.
        let error = Memory::new(1024 * GIB, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Host);
        assert!(
            error.to_string().contains("524288 free huge pages"),
            "{error}"
        );
    }

    #[test]
    fn the_size_of_memory_is_sealed() {
        let memory = Memory::new(4 << 20, false).unwrap();
        assert!(memory.file().set_len(0).is_err());
        assert!(memory.file().set_len(8 << 20).is_err());
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for (bytes, huge) in [
            (0, false),
            (4096, false),
            (1 << 41, false),
            ((2 << 20) + 1, false),
            ((2 << 20) + 4096, true),
        ] {
            assert_eq!(
                Memory::new(bytes, huge).unwrap_err().kind(),
                ErrorKind::InvalidArgument
            );
        }
    }
}
