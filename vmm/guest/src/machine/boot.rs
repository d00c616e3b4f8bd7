//! What the boot loader left: the `hvm_start_info` of the PVH boot protocol, version 1.
//!
//! It and all that it points to lie in the first MiB, which the guest never writes to.

/// Its first word.
const MAGIC: u32 = 0x336e_c578;
/// Where the boot loader's memory ends.
pub(crate) const LOADERS: u64 = 1 << 20;
/// Bytes of one entry of the memory map.
const ENTRY: u64 = 24;
/// The type of memory that may be used.
const RAM: u32 = 1;

/// A stretch of memory that may be used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    /// The address of its first byte.
    pub(crate) start: u64,
    /// How many bytes it has.
    pub(crate) len: u64,
}

impl Region {
    /// The address behind its last byte.
    pub(crate) fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// What of it lies from `start` to `end`; nothing is a region of no bytes.
    pub(crate) fn within(&self, start: u64, end: u64) -> Self {
        let (start, end) = (self.start.max(start), self.end().min(end));
        Self {
            start,
            len: end.saturating_sub(start),
        }
    }
}

/// What the boot loader said.
#[derive(Debug)]
pub(crate) struct Boot {
    command_line: &'static str,
    map: u64,
    entries: u64,
}

impl Boot {
    /// Reads it.
    pub(crate) fn read(at: u64) -> Self {
        assert!(read32(at) == MAGIC, "no hvm_start_info at {at:#x}");
        assert!(
            read32(at + 4) >= 1,
            "an hvm_start_info without a memory map"
        );
        Self {
            command_line: text(read64(at + 24)),
            map: read64(at + 40),
            entries: u64::from(read32(at + 48)),
        }
    }

    /// What the guest has to do.
    pub(crate) fn command_line(&self) -> &'static str {
        self.command_line
    }

    /// The memory of the machine.
    pub(crate) fn memory(&self) -> impl Iterator<Item = Region> {
        let map = self.map;
        (0..self.entries)
            .map(move |entry| map + entry * ENTRY)
            .filter(|at| read32(at + 16) == RAM)
            .map(|at| Region {
                start: read64(at),
                len: read64(at + 8),
            })
    }
}

fn checked(at: u64, len: u64) -> *const u8 {
    let end = at.checked_add(len);
    assert!(
        at != 0 && end.is_some_and(|end| end <= LOADERS),
        "the boot loader points to {at:#x}, above its own memory"
    );
    at as *const u8
}

fn read32(at: u64) -> u32 {
    // SAFETY: `checked`: it lies in the first MiB, which is mapped and which nobody writes.
    unsafe { checked(at, 4).cast::<u32>().read_unaligned() }
}

fn read64(at: u64) -> u64 {
    // SAFETY: as above.
    unsafe { checked(at, 8).cast::<u64>().read_unaligned() }
}

/// The text that ends with a zero byte at `at`; none at address 0.
fn text(at: u64) -> &'static str {
    if at == 0 {
        return "";
    }
    // SAFETY: as above, for each byte up to the zero.
    let byte = |at: u64| unsafe { checked(at, 1).read() };
    let mut end = at;
    while byte(end) != 0 {
        end += 1;
    }
    // SAFETY: all of these bytes were just read, and nobody ever writes them.
    let bytes = unsafe { core::slice::from_raw_parts(at as *const u8, (end - at) as usize) };
    core::str::from_utf8(bytes).expect("a command line of text")
}
