//! A Linux bzImage by the 64-bit boot protocol (the kernel's `arch/x86/boot.rst`).
//!
//! The payload is placed by `linux-loader`. The setup header is copied into the zero page as it is, and what
//! a loader has to say is set there. Offsets below are those of the document.

use std::ops::Range;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{Bytes, GuestAddress};

use super::{Entry, Image, put};
use crate::acpi;
use crate::layout::{COMMAND_LINE, LOAD, ZERO_PAGE};
use crate::{Error, Memory, Result};

/// In the zero page: where the root pointer of ACPI is (protocol 2.14; older kernels look for it).
const ACPI_ROOT: u64 = 0x70;
/// Where the setup header begins, and the greatest end of what is read of it.
const SETUP: usize = 0x1F1;
const SETUP_END: usize = 0x290;
const E820_COUNT: u64 = 0x1E8;
const SETUP_SECTORS: usize = 0x1F1;
const HEADER_LENGTH: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADER: u64 = 0x210;
const RAMDISK: u64 = 0x218;
const COMMAND_LINE_AT: u64 = 0x228;
const INITRD_MAX: u64 = 0x22C;
const XLOADFLAGS: usize = 0x236;
const COMMAND_LINE_MAX: usize = 0x238;
const PREFERRED: usize = 0x258;
const INIT_BYTES: usize = 0x260;
const E820_TABLE: u64 = 0x2D0;
/// The protocol's first version with 64-bit flags.
const LEAST_VERSION: u16 = 0x020C;
/// `xloadflags`: there is a 64-bit entry, this far behind the beginning.
const HAS_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
/// A loader without a number of its own.
const UNKNOWN_LOADER: u8 = 0xFF;

/// The setup header of a file, from the file's beginning.
struct Setup([u8; SETUP_END]);

impl Setup {
    fn number<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        for (to, from) in bytes.iter_mut().zip(self.0.iter().skip(at)) {
            *to = *from;
        }
        bytes
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.number(at))
    }

    fn double(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.number(at))
    }

    fn quad(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.number(at))
    }

    /// The header's own bytes: it says how long it is.
    fn header(&self) -> &[u8] {
        let [length] = self.number(HEADER_LENGTH);
        let end = (MAGIC + usize::from(length)).min(SETUP_END);
        self.0.get(SETUP..end).unwrap_or_default()
    }
}

/// Load a bzImage; says where it begins, and the first address that it does not need.
pub(super) fn load(
    memory: &Memory,
    image: &mut Image<'_>,
    cmdline_bytes: usize,
    low_end: u64,
) -> Result<(Entry, u64)> {
    let mut setup = Setup([0; SETUP_END]);
    if image.bytes < SETUP_END as u64 {
        return Err(image.bad("it is neither an ELF file nor a Linux bzImage"));
    }
    image.read(0, &mut setup.0)?;
    if setup.number(MAGIC) != *b"HdrS" {
        return Err(image.bad("it is neither an ELF file nor a Linux bzImage"));
    }
    if setup.word(VERSION) < LEAST_VERSION || setup.word(XLOADFLAGS) & HAS_64 == 0 {
        return Err(image.bad("it has no 64-bit entry (boot protocol 2.12)"));
    }
    if cmdline_bytes > setup.double(COMMAND_LINE_MAX) as usize + 1 {
        return Err(image.bad(format!(
            "it takes command lines of {} bytes",
            setup.double(COMMAND_LINE_MAX)
        )));
    }
    let [sectors] = setup.number(SETUP_SECTORS);
    let real_mode = 512 * (u64::from(if sectors == 0 { 4 } else { sectors }) + 1);
    let Some(payload) = image.bytes.checked_sub(real_mode) else {
        return Err(image.bad("it is shorter than it says"));
    };
    let start = setup.quad(PREFERRED);
    let needed = payload.max(u64::from(setup.double(INIT_BYTES)));
    let end = start.checked_add(needed);
    let Some(end) = end.filter(|end| start >= LOAD && *end <= low_end) else {
        return Err(image.bad(format!(
            "it needs {needed} bytes at {start:#x}, and memory below 4 GiB ends at {low_end:#x}"
        )));
    };
    let placed = BzImage::load(
        memory.guest().as_ref(),
        Some(GuestAddress(start)),
        &mut image.file,
        None,
    );
    let placed = placed.map_err(|error| image.bad(error))?;
    if placed.kernel_end > end {
        return Err(image.bad("it grew while it was read"));
    }
    put(memory.guest(), ZERO_PAGE + SETUP as u64, setup.header())?;
    Ok((Entry::Linux(start + ENTRY_64), end))
}

/// Where an initrd must end, by the header in the zero page.
pub(super) fn initrd_end(memory: &Memory) -> Result<u64> {
    let last: u32 = memory
        .guest()
        .read_obj(GuestAddress(ZERO_PAGE + INITRD_MAX))
        .map_err(|error| Error::host("the zero page", std::io::Error::other(error)))?;
    Ok(u64::from(last) + 1)
}

/// Say in the zero page what a loader has to say.
pub(super) fn finish(
    memory: &Memory,
    map: &[(Range<u64>, u32)],
    initrd: Option<&Range<u64>>,
) -> Result<()> {
    let put = |at: u64, bytes: &[u8]| put(memory.guest(), ZERO_PAGE + at, bytes);
    put(ACPI_ROOT, &acpi::ROOT.to_le_bytes())?;
    put(LOADER, &[UNKNOWN_LOADER])?;
    put(COMMAND_LINE_AT, &(COMMAND_LINE as u32).to_le_bytes())?;
    if let Some(initrd) = initrd {
        let words = [initrd.start as u32, (initrd.end - initrd.start) as u32];
        put(RAMDISK, &words.map(u32::to_le_bytes).concat())?;
    }
    put(E820_COUNT, &[map.len() as u8])?;
    for (entry, (range, kind)) in (0..).zip(map) {
        let at = E820_TABLE + 20 * entry;
        put(at, &range.start.to_le_bytes())?;
        put(at + 8, &(range.end - range.start).to_le_bytes())?;
        put(at + 16, &kind.to_le_bytes())?;
    }
    Ok(())
}
