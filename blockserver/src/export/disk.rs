//! A disk as the server holds it: the engine that decides, the map that all workers read, the file.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, statx};
use vdisk::engine::{BlockMap, Engine};

use crate::uring::ALIGNMENT;

/// A disk that can be served. It must be the only user of its file in this process.
#[derive(Debug)]
pub struct Disk {
    id: u64,
    engine: Mutex<Engine>,
    map: Arc<BlockMap>,
    file: File,
    alignment: u32,
    /// A data sync failed: what the medium holds is unknown.
    failed: AtomicBool,
}

impl Disk {
    /// A disk of this engine on this file. `alignment` is what [`prepare_file`] answered for the
    /// file; the engine must have been told the same (or more) for unaligned writes.
    #[must_use]
    pub fn new(file: File, engine: Engine, alignment: u32) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let map = Arc::clone(engine.map());
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            engine: Mutex::new(engine),
            map,
            file,
            alignment,
            failed: AtomicBool::new(false),
        })
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

    /// What reads and writes of the file must be multiples of, in bytes; 1 when the page cache
    /// takes everything.
    #[must_use]
    pub fn alignment(&self) -> u32 {
        self.alignment
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
        self.failed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_failed(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }
}

/// Make a file bypass the page cache where its file system allows that, and answer what its reads
/// and writes must then be multiples of, in bytes; 1 when it goes through the page cache.
///
/// `raw` says that the file's length is the disk's, so that a length which is not a multiple of the
/// alignment can not be served directly.
#[must_use]
pub fn prepare_file(file: &File, raw: bool) -> u32 {
    match direct_alignment(file, raw) {
        Some(alignment) if set_direct(file) => alignment,
        _ => 1,
    }
}

fn direct_alignment(file: &File, raw: bool) -> Option<u32> {
    let wanted = StatxFlags::DIOALIGN | StatxFlags::SIZE;
    let stat = statx(file.as_fd(), "", AtFlags::EMPTY_PATH, wanted).ok()?;
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 || stat.stx_dio_offset_align == 0 {
        return None;
    }
    let alignment = stat.stx_dio_offset_align.max(stat.stx_dio_mem_align);
    let fits = alignment.is_power_of_two()
        && alignment as usize <= ALIGNMENT
        && (!raw || stat.stx_size.is_multiple_of(u64::from(alignment)));
    fits.then_some(alignment)
}

fn set_direct(file: &File) -> bool {
    fcntl_getfl(file)
        .and_then(|flags| fcntl_setfl(file, flags | OFlags::DIRECT))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_file_of_odd_length_goes_through_the_page_cache() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(1_000_001).expect("room");
        assert_eq!(prepare_file(&file, true), 1);
        assert!(!fcntl_getfl(&file).expect("flags").contains(OFlags::DIRECT));
    }

    #[test]
    fn a_file_is_direct_exactly_when_it_has_an_alignment() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(1 << 20).expect("room");
        let alignment = prepare_file(&file, true);
        let direct = fcntl_getfl(&file).expect("flags").contains(OFlags::DIRECT);
        assert_eq!(direct, alignment > 1);
        assert!(alignment.is_power_of_two());
    }
}
