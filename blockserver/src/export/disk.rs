//! A disk as the server holds it: the engine that decides, the map that all workers read, the file.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, fstatfs, statx};
use vdisk::chain::{Layer, ParentSearch, open_chain};
use vdisk::disk::{ImageFormat, OpenOptions};
use vdisk::engine::{BlockMap, Engine, Mark};
use vdisk::storage::{exclude, share, unlock};

use super::elsewhere::{Elsewhere, There};
use crate::nbd::uri::Address;
use crate::uring::ALIGNMENT;

/// A disk that can be served. It must be the only user of its file in this process.
#[derive(Debug)]
pub struct Disk {
    id: u64,
    engine: Mutex<Engine>,
    map: Arc<BlockMap>,
    file: File,
    alignment: u32,
    logical_sector: u32,
    in_memory: bool,
    /// A data sync failed: what the medium holds is unknown.
    failed: AtomicBool,
    /// The disk it is built on.
    parent: Option<Arc<Self>>,
    /// Where its bytes are, if another server has them: neither engine nor file are asked for any then.
    there: Option<There>,
}

impl Disk {
    /// Open and lock the image at `path`, and those it is built on, which lie in the same folder or
    /// below it. Their files bypass the page cache where the file system allows that;
    /// `options.alignment` is set accordingly.
    pub fn open(path: &Path, options: &OpenOptions) -> vdisk::Result<Arc<Self>> {
        Self::open_with(path, options, &ParentSearch::default())
    }

    /// [`Self::open`], with parents found as `search` says.
    pub fn open_with(
        path: &Path,
        options: &OpenOptions,
        search: &ParentSearch,
    ) -> vdisk::Result<Arc<Self>> {
        let format = options.format.unwrap_or_else(|| ImageFormat::of_path(path));
        let alignment = direct_alignment(path, format == ImageFormat::Raw);
        let mut options = *options;
        options.alignment = alignment.map_or(1, u64::from);
        let chain = open_chain(path, &options, search)?;
        let mut beneath = None;
        for layer in chain.parents.into_iter().rev() {
            let alignment = direct_alignment(layer.storage.path(), false);
            beneath = Some(Self::of(layer, alignment, beneath.take()));
        }
        Ok(Self::of(chain.top, alignment, beneath))
    }

    /// Open the image at `path` as [`Self::open`] does, but leave its file to the page cache.
    pub fn open_buffered(path: &Path, options: &OpenOptions) -> vdisk::Result<Arc<Self>> {
        let mut options = *options;
        options.alignment = 1;
        let chain = open_chain(path, &options, &ParentSearch::default())?;
        let parents = chain.parents.into_iter().rev();
        let beneath = parents.fold(None, |beneath, layer| Some(Self::of(layer, None, beneath)));
        Ok(Self::of(chain.top, None, beneath))
    }

    /// One layer of a chain over those beneath it, direct if it has an alignment and may be.
    fn of(layer: Layer, alignment: Option<u32>, beneath: Option<Arc<Self>>) -> Arc<Self> {
        let file = layer.storage.into_file();
        // The engine has read what it needs through the page cache; from here on nobody does.
        let alignment = alignment.filter(|_| set_direct(&file)).unwrap_or(1);
        Self::over(
            file,
            layer.engine,
            (alignment, layer.sector.max(512)),
            beneath,
        )
    }

    /// A disk of this engine on this file. Reads and writes of the file must be multiples of
    /// `alignment` bytes (1 when it goes through the page cache), and the engine must have been told
    /// the same for writes.
    #[must_use]
    pub fn new(file: File, engine: Engine, alignment: u32) -> Arc<Self> {
        Self::over(file, engine, (alignment, 512), None)
    }

    /// A disk whose bytes are an export of another server. `file` stands for it here, is held as long as the disk and is
    /// never read or written. `rested` says that a process before this one may have sent the server what it is still at:
    /// it is given two seconds before it is asked for anything.
    #[must_use]
    pub fn elsewhere(found: Elsewhere, file: File, rested: bool) -> Arc<Self> {
        let engine = Engine::raw(found.size(), 1, found.read_only());
        Self::held(
            file,
            engine,
            (1, 512),
            (None, Some(There::begin(found, rested))),
        )
    }

    /// Such a disk of `size` bytes that was handed over to a new owner: the server is asked for nothing any more.
    #[must_use]
    pub fn elsewhere_no_more(size: u64, file: File) -> Arc<Self> {
        let engine = Engine::raw(size, 1, false);
        Self::held(file, engine, (1, 512), (None, Some(There::gone())))
    }

    fn over(file: File, engine: Engine, sizes: (u32, u32), parent: Option<Arc<Self>>) -> Arc<Self> {
        Self::held(file, engine, sizes, (parent, None))
    }

    fn held(
        file: File,
        engine: Engine,
        (alignment, logical_sector): (u32, u32),
        (parent, there): (Option<Arc<Self>>, Option<There>),
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let map = Arc::clone(engine.map());
        let in_memory = is_in_memory(&file);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            engine: Mutex::new(engine),
            map,
            file,
            alignment,
            logical_sector,
            in_memory,
            failed: AtomicBool::new(false),
            parent,
            there,
        })
    }

    /// Whether its bytes are an export of another server.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.there.is_some()
    }

    /// Which export those are, unless it was handed over.
    #[must_use]
    pub fn behind(&self) -> Option<&Address> {
        self.there.as_ref()?.address()
    }

    /// How those are reached.
    pub(crate) fn there(&self) -> Option<&There> {
        self.there.as_ref()
    }

    /// The smallest unit of a request, bytes.
    pub(crate) fn min_block(&self) -> u32 {
        self.there.as_ref().map_or(1, There::min_block)
    }

    /// The disk it is built on.
    pub(crate) fn parent(&self) -> Option<&Arc<Self>> {
        self.parent.as_ref()
    }

    /// Size in bytes as clients see it.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.map.size()
    }

    /// Whether nothing may be written.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.map.read_only()
    }

    /// Give the file's lock back, in order: the kernel keeps a ring's files, and so their locks, for a
    /// while after the ring has gone. The disk must not be in use any more.
    pub fn unlock(&self) {
        // What fails here comes with the end of the process.
        let _ = unlock(&self.file);
        if let Some(parent) = &self.parent {
            parent.unlock();
        }
    }

    /// Let others read the file, which is in nobody's use now, as the parent of another disk; see
    /// [`vdisk::storage::share`].
    pub fn share(&self) -> std::io::Result<()> {
        share(&self.file)
    }

    /// Have the shared file for this disk alone again; see [`vdisk::storage::exclude`].
    pub fn exclude(&self) -> std::io::Result<()> {
        exclude(&self.file)
    }

    /// The mark that is in the image.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        self.engine().mark()
    }

    /// What reads and writes of the file must be multiples of, in bytes; 1 when the page cache
    /// takes everything.
    #[must_use]
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// Whether its file lies in memory: the kernel's rings hand each operation on such a one to a thread of theirs, which
    /// takes longer than the copy.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// Bytes of a logical sector, as the image says; 512 where it does not.
    #[must_use]
    pub fn logical_sector(&self) -> u32 {
        self.logical_sector
    }

    /// Tells disks of this process apart.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn map(&self) -> &Arc<BlockMap> {
        &self.map
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn engine(&self) -> MutexGuard<'_, Engine> {
        // A panic in the engine is a defect that ends the worker; others see its last whole step.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a data sync failed. The kernel reports such a failure once and may then drop the
    /// data, so a later sync that succeeds proves nothing: the disk takes no more changes.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.map.failed()
    }

    pub(crate) fn set_failed(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Disk {
    /// Gives the file's lock back: a ring may keep the file open for a while longer.
    fn drop(&mut self) {
        // What fails here comes when the file is closed.
        let _ = unlock(&self.file);
    }
}

/// What reads and writes that bypass the page cache must be multiples of for the file at `path`, in
/// bytes; `None` where its file system does not allow them, or does not say.
///
/// `raw` says that the file's length is the disk's, so that a length which is not a multiple of the
/// alignment can not be served directly.
fn direct_alignment(path: &Path, raw: bool) -> Option<u32> {
    let wanted = StatxFlags::DIOALIGN | StatxFlags::SIZE;
    let stat = statx(CWD, path, AtFlags::empty(), wanted).ok()?;
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 || stat.stx_dio_offset_align == 0 {
        return None;
    }
    let alignment = stat.stx_dio_offset_align.max(stat.stx_dio_mem_align);
    let fits = alignment.is_power_of_two()
        && alignment as usize <= ALIGNMENT
        && (!raw || stat.stx_size.is_multiple_of(u64::from(alignment)));
    fits.then_some(alignment)
}

/// Whether it is a file of a tmpfs or ramfs. A device's node may lie on such a one, and its bytes do not.
fn is_in_memory(file: &File) -> bool {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58F6;
    file.metadata().is_ok_and(|about| about.is_file())
        && fstatfs(file).is_ok_and(|about| [TMPFS, RAMFS].contains(&about.f_type))
}

fn set_direct(file: &File) -> bool {
    fcntl_getfl(file)
        .and_then(|flags| fcntl_setfl(file, flags | OFlags::DIRECT))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(len: u64) -> Arc<Disk> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(len).expect("room");
        Disk::open(file.path(), &OpenOptions::default()).expect("a raw disk")
    }

    fn is_direct(disk: &Disk) -> bool {
        fcntl_getfl(disk.file())
            .expect("flags")
            .contains(OFlags::DIRECT)
    }

    #[test]
    fn a_raw_file_of_odd_length_goes_through_the_page_cache() {
        let disk = opened(1_000_001);
        assert_eq!(
            (disk.size(), disk.alignment(), is_direct(&disk)),
            (1_000_001, 1, false)
        );
    }

    #[test]
    fn files_are_in_memory_and_devices_are_not() {
        let in_memory = |path: &Path| is_in_memory(&File::open(path).expect("it is there"));
        let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory");
        assert!(in_memory(file.path()));
        assert!(!in_memory(Path::new("/dev/null")));
    }

    #[test]
    fn a_file_is_direct_exactly_when_it_has_an_alignment() {
        let disk = opened(1 << 20);
        assert_eq!(is_direct(&disk), disk.alignment() > 1);
        assert!(disk.alignment().is_power_of_two());
    }
}
