//! Physical memory: windows into it, and the arena that the rings of devices come from.
//!
//! A window is read and written word by word, never borrowed: what is in it also belongs to a device or another
//! vCPU. It lies in memory that no Rust value lives in: a device's registers, or memory beyond the
//! program.

use core::sync::atomic::{AtomicU64, Ordering};

use super::boot::{Boot, LOADERS, Region};

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// Where the program begins: the address in its linker script.
const PROGRAM: u64 = 2 << 20;

/// The first byte of the arena that was not given away; 0 stands for its beginning.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// A number that can be read from memory in one access.
pub(crate) trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

/// A stretch of physical memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    start: u64,
    len: u64,
}

impl Window {
    /// The registers of a device, which are not memory.
    pub(crate) fn device(boot: &Boot, start: u64, len: u64) -> Self {
        let end = start
            .checked_add(len)
            .expect("registers within the address space");
        assert!(
            boot.memory()
                .all(|ram| end <= ram.start || ram.end() <= start),
            "registers at {start:#x} are memory"
        );
        assert!(start >= LOADERS, "registers at {start:#x}");
        Self { start, len }
    }

    /// Memory of a test.
    #[cfg(test)]
    pub(crate) fn test(memory: &mut [u64]) -> Self {
        Self {
            start: memory.as_mut_ptr() as u64,
            len: size_of_val(memory) as u64,
        }
    }

    /// A region of [`spare`].
    pub(crate) fn spare(region: Region) -> Self {
        let Region { start, len } = region;
        assert!(start >= program_end() || start >= LOADERS && start + len <= PROGRAM);
        Self { start, len }
    }

    /// Its physical address.
    pub(crate) fn address(&self) -> u64 {
        self.start
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// `len` bytes of it from `offset` on.
    pub(crate) fn part(&self, offset: u64, len: u64) -> Self {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.len),
            "{len} bytes at {offset} of {}",
            self.len
        );
        Self {
            start: self.start + offset,
            len,
        }
    }

    /// The word at `offset`.
    pub(crate) fn read<T: Word>(&self, offset: u64) -> T {
        let at = self.part(offset, size_of::<T>() as u64).start as *const T;
        assert!(at.is_aligned());
        // SAFETY: within the window, mapped and aligned; any bits are a value of a `Word`.
        unsafe { at.read_volatile() }
    }

    /// Writes the word at `offset`.
    pub(crate) fn write<T: Word>(&self, offset: u64, value: T) {
        let at = self.part(offset, size_of::<T>() as u64).start as *mut T;
        assert!(at.is_aligned());
        // SAFETY: as above, and no Rust value lives in a window.
        unsafe { at.write_volatile(value) }
    }

    /// Makes every whole word of it `value`.
    pub(crate) fn fill(&self, value: u64) {
        for at in (0..self.len & !7).step_by(8) {
            self.write(at, value);
        }
    }

    /// Makes all of it zero.
    pub(crate) fn clear(&self) {
        // SAFETY: as above.
        unsafe { (self.start as *mut u8).write_bytes(0, self.len as usize) }
    }
}

/// Takes `len` bytes of the arena, on whole pages. What is in them is not known.
pub(crate) fn take(boot: &Boot, len: u64) -> Window {
    let begins = program_end();
    let holds = |ram: &Region| ram.start <= begins && begins < ram.end();
    let arena = boot
        .memory()
        .find(holds)
        .expect("memory around the program");
    let len = len.next_multiple_of(PAGE);
    let start = TAKEN.load(Ordering::Relaxed).max(begins);
    assert!(
        start + len <= arena.end(),
        "the machine has too little memory: {len} bytes more are needed"
    );
    TAKEN.store(start + len, Ordering::Relaxed);
    Window { start, len }
}

/// Gives everything back to the arena.
pub(crate) fn give_back() {
    TAKEN.store(0, Ordering::Relaxed);
}

/// The memory that holds neither the program nor what the boot loader left.
pub(crate) fn spare(boot: &Boot) -> impl Iterator<Item = Region> {
    let below = |ram: Region| ram.within(LOADERS, PROGRAM);
    let above = |ram: Region| ram.within(program_end(), u64::MAX);
    let both = boot.memory().flat_map(move |ram| [below(ram), above(ram)]);
    both.filter(|region| region.len > 0)
}

/// Where the program ends, on a page.
fn program_end() -> u64 {
    #[cfg(freestanding)]
    {
        unsafe extern "C" {
            /// Set by the linker script.
            static GUEST_END: u8;
        }
        &raw const GUEST_END as u64
    }
    #[cfg(not(freestanding))]
    PROGRAM
}
