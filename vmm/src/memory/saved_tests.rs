//! Memory that is saved and comes back.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::image::EXTENT;
use super::*;
use crate::ErrorKind;
use crate::layout::HOLE;

const MIB: u64 = 1 << 20;
const ID: [u8; 16] = *b"a snapshot of it";

struct Saved {
    _folder: tempfile::TempDir,
    path: PathBuf,
    /// Addresses that hold themselves.
    addresses: Vec<u64>,
}

impl Saved {
    /// Memory of `bytes` with content in a few places, saved.
    fn new(bytes: u64) -> (Self, Written) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        let memory = Memory::new(bytes, false).unwrap();
        let end = memory.end();
        let mut addresses = vec![0, 8, PAGE, 5 * PAGE, EXTENT + PAGE, end - PAGE - 8, end - 8];
        if bytes > HOLE.start {
            addresses.extend([HOLE.start - 8, HOLE.end, HOLE.end + 40 * EXTENT]);
        }
        for address in &addresses {
            let there = GuestAddress(*address);
            memory.guest().write_obj(address + 1, there).unwrap();
        }
        // A page that exists and is zero.
        let zero = GuestAddress(3 * PAGE);
        memory.guest().write_obj(0_u64, zero).unwrap();
        let written = memory.save(&path, ID).unwrap();
        let saved = Self {
            _folder: folder,
            path,
            addresses,
        };
        (saved, written)
    }

    fn open(&self) -> MemoryImage {
        MemoryImage::open(&self.path).unwrap()
    }

    #[track_caller]
    fn is_in(&self, memory: &Memory) {
        for address in &self.addresses {
            let held: u64 = memory.guest().read_obj(GuestAddress(*address)).unwrap();
            assert_eq!(held, address + 1);
        }
        for address in [3 * PAGE, 4 * PAGE, 7 * PAGE, memory.end() - 3 * PAGE] {
            let held: u64 = memory.guest().read_obj(GuestAddress(address)).unwrap();
            assert_eq!(held, 0, "{address:#x}");
        }
    }
}

fn lazily(image: MemoryImage) -> Memory {
    let (memory, arrival) = Memory::restored(image, Faults::open(false)).unwrap();
    assert_eq!(arrival, Arrival::Lazy, "these tests need userfaultfd");
    memory
}

#[test]
fn memory_that_was_saved_is_the_same_again_at_once_or_bit_by_bit() {
    for bytes in [4 * MIB, 16 * MIB + 3 * PAGE, 4 * GIB] {
        let (saved, written) = Saved::new(bytes);
        let len = fs::metadata(&saved.path).unwrap().len();
        assert_eq!(written.file_bytes, len);
        assert!(written.memory_bytes <= 12 * PAGE, "{written:?}");
        let image = saved.open();
        assert_eq!((image.memory(), image.id()), (bytes, ID));
        assert_eq!(image.stored(), written.memory_bytes);
        saved.is_in(&Memory::restored_eagerly(&image, false).unwrap());
        let memory = lazily(image);
        saved.is_in(&memory);
        memory.wait().unwrap();
        assert_eq!(memory.to_come(), 0);
        saved.is_in(&memory);
    }
}

#[test]
fn large_memory_that_is_hardly_touched_is_saved_small() {
    let (saved, written) = Saved::new(512 * GIB);
    assert!(written.file_bytes < MIB, "{written:?}");
    let on_disk = fs::metadata(&saved.path).unwrap().blocks() * 512;
    assert!(on_disk < MIB, "{on_disk}");
    let memory = lazily(saved.open());
    saved.is_in(&memory);
    memory.wait().unwrap();
    let exists = memory.file().metadata().unwrap().blocks() * 512;
    assert!(exists < MIB, "{exists}");
}

#[test]
fn what_the_kernel_reads_and_writes_for_this_process_is_waited_for_too() {
    let (saved, _) = Saved::new(64 * MIB);
    let memory = lazily(saved.open());
    let file = tempfile::tempfile().unwrap();
    // Both are system calls on the memory's mapping.
    let at = GuestAddress(EXTENT + PAGE);
    memory
        .guest()
        .write_volatile_to(at, &mut file.try_clone().unwrap(), 8)
        .unwrap();
    let mut held = [0; 8];
    file.read_exact_at(&mut held, 0).unwrap();
    assert_eq!(u64::from_le_bytes(held), EXTENT + PAGE + 1);
    saved.is_in(&memory);
}

#[test]
fn memory_that_is_saved_again_before_it_is_all_in_is_whole() {
    let (saved, _) = Saved::new(256 * MIB);
    let memory = lazily(saved.open());
    let again = saved.path.with_extension("again");
    memory.save(&again, ID).unwrap();
    let image = MemoryImage::open(&again).unwrap();
    saved.is_in(&Memory::restored_eagerly(&image, false).unwrap());
}

#[test]
fn memory_that_is_let_go_while_it_comes_in_leaves_no_thread_behind() {
    let (saved, _) = Saved::new(256 * MIB);
    for _ in 0..20 {
        drop(lazily(saved.open()));
    }
}

#[test]
fn a_damaged_page_is_never_seen_and_its_place_is_told() {
    let (saved, _) = Saved::new(64 * MIB);
    let file = fs::OpenOptions::new().write(true).open(&saved.path);
    // The pages of the first extent come first or not: all of them are damaged.
    let pages = saved.open().stored();
    for at in (0..pages).step_by(PAGE as usize) {
        let file = file.as_ref().unwrap();
        file.write_all_at(&[0xEE], image::HEADER_BYTES as u64 + at + 100)
            .unwrap();
    }
    let refused = Memory::restored_eagerly(&saved.open(), false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BadSnapshot);
    let memory = lazily(saved.open());
    let (told, hears) = mpsc::channel();
    memory.when_lost(Box::new(move |why| told.send(why).unwrap()));
    let why = hears.recv_timeout(Duration::from_mins(1)).unwrap();
    assert!(why.contains("damaged") && why.contains("0x"), "{why}");
    assert_eq!(memory.wait().unwrap_err().kind(), ErrorKind::BadSnapshot);
    assert!(memory.save(&saved.path.with_extension("b"), ID).is_err());
    // Who touches it waits, whatever happens; nobody sees a wrong byte.
    let guest = memory.guest().clone();
    let (saw, sees) = mpsc::channel();
    let waits = std::thread::spawn(move || {
        let held: u64 = guest.read_obj(GuestAddress(0)).unwrap();
        saw.send(held).unwrap();
    });
    assert!(sees.recv_timeout(Duration::from_millis(200)).is_err());
    drop(memory);
    waits.join().unwrap();
}

#[test]
fn files_that_are_not_whole_are_refused() {
    let (saved, _) = Saved::new(16 * MIB);
    let whole = fs::read(&saved.path).unwrap();
    let other = saved.path.with_extension("cut");
    for len in [0, 100, 4096, whole.len() / 2, whole.len() - 1] {
        fs::write(&other, &whole[..len]).unwrap();
        let refused = MemoryImage::open(&other).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BadSnapshot, "{len}: {refused}");
    }
    let absent = MemoryImage::open(&saved.path.with_extension("absent"));
    assert_eq!(absent.unwrap_err().kind(), ErrorKind::Host);
}

/// With `--nocapture` it says how fast that is here.
#[test]
fn one_gib_is_saved_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory");
    let memory = Memory::new(GIB, false).unwrap();
    let mut block = vec![0_u8; MIB as usize];
    for (at, byte) in block.iter_mut().enumerate() {
        *byte = (at * 31 % 251) as u8 | 1;
    }
    for at in 0..GIB / MIB {
        memory
            .guest()
            .write_slice(&block, GuestAddress(at * MIB))
            .unwrap();
    }
    let since = Instant::now();
    let written = memory.save(&path, ID).unwrap();
    println!(
        "saved {} bytes in {:?}",
        written.file_bytes,
        since.elapsed()
    );
    drop(memory);
    let since = Instant::now();
    let memory = lazily(MemoryImage::open(&path).unwrap());
    println!("ready after {:?}", since.elapsed());
    let touched = Instant::now();
    let held: u8 = memory.guest().read_obj(GuestAddress(GIB / 2)).unwrap();
    println!("first touch after {:?}", touched.elapsed());
    assert_eq!(held, block[0]);
    memory.wait().unwrap();
    println!("all there after {:?}", since.elapsed());
    let mut end = vec![0; MIB as usize];
    let last = GuestAddress(GIB - MIB);
    memory.guest().read_slice(&mut end, last).unwrap();
    assert!(end == block);
}
