//! What is in memory and registers when a machine starts (`docs/vmm.md`).
//!
//! Three kinds of files, told apart by their content: an ELF program with Diskferry's own note, which every
//! processor enters at privilege level 3; an ELF kernel with a PVH note; a Linux bzImage. The file, the
//! initrd and the command line are another's: sizes and places are checked before anything is written, and
//! nothing is loaded over something else. Reading is done here; [`elf`], [`segments`], [`paging`] and
//! [`start_info`] only translate.

mod elf;
mod linux;
mod paging;
mod segments;
mod start_info;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use kvm_bindings::kvm_regs;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::acpi;
use crate::devices::PULSE_RESET;
use crate::kvm::Start;
use crate::layout::{self, COMMAND_LINE, COMMAND_LINE_BYTES, LOAD, PAGE};
use crate::{Error, Memory, Result};
use elf::{Header, Kind, Note, Segment};
use paging::Reach;
use segments::Width;

/// Owner of the note that says a program is to be entered directly, its type, and the version known here.
const OWN_NOTE: (&[u8], u32) = (b"Diskferry", 1);
const OWN_VERSION: [u8; 4] = 1_u32.to_le_bytes();
/// Xen's note with the 32-bit entry of PVH (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_NOTE: (&[u8], u32) = (b"Xen", 18);
/// Longer notes than a kernel has.
const MOST_NOTES: u64 = 1 << 20;

/// What stands where a PC's firmware begins: `mov al, 0xFE; out 0x64, al; hlt`, round and round. Linux jumps
/// there to restart a hardware-reduced machine that has no EFI, without a try at ACPI's reset register.
const RESET_CODE: [u8; 7] = [
    0xB0,
    PULSE_RESET,
    0xE6,
    layout::RESET.start as u8,
    0xF4,
    0xEB,
    0xF9,
];

/// What is to be booted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Boot<'a> {
    /// The program or kernel.
    pub(crate) kernel: &'a Path,
    /// Its command line.
    pub(crate) cmdline: &'a str,
    /// Its initial RAM disk.
    pub(crate) initrd: Option<&'a Path>,
    /// How many processors the machine has.
    pub(crate) processors: u8,
}

/// How and where what was loaded begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Every processor, in 64 bits at level 3.
    Direct(u64),
    /// The first processor, in 32 bits; the others wait.
    Pvh(u64),
    /// The first processor, in 64 bits by the Linux boot protocol; the others wait.
    Linux(u64),
}

impl Entry {
    /// The registers of processor `index` of `count`.
    pub(crate) fn start(self, index: u8, count: u8) -> Start {
        let (regs, sregs) = match self {
            Self::Direct(rip) => segments::long(
                3,
                kvm_regs {
                    rip,
                    rdi: layout::START_INFO,
                    rsi: u64::from(index),
                    rdx: u64::from(count),
                    ..kvm_regs::default()
                },
            ),
            Self::Pvh(rip) => segments::protected(kvm_regs {
                rip,
                rbx: layout::START_INFO,
                ..kvm_regs::default()
            }),
            Self::Linux(rip) => segments::long(
                0,
                kvm_regs {
                    rip,
                    rsi: layout::ZERO_PAGE,
                    ..kvm_regs::default()
                },
            ),
        };
        let runnable = index == 0 || matches!(self, Self::Direct(_));
        Start {
            regs,
            sregs,
            runnable,
        }
    }
}

/// Load it, and write what a processor finds when it starts.
pub(crate) fn load(memory: &Memory, boot: &Boot<'_>, gigabyte_pages: bool) -> Result<Entry> {
    let mut kernel = Image::open(boot.kernel)?;
    let cmdline = command_line(boot.cmdline)?;
    put(memory.guest(), COMMAND_LINE, &cmdline)?;
    put(memory.guest(), layout::RESET_VECTOR, &RESET_CODE)?;
    for (at, table) in acpi::tables(boot.processors) {
        put(memory.guest(), at, &table)?;
    }
    let mut magic = [0; 4];
    kernel.read(0, &mut magic)?;
    let mut reach = Reach {
        end: memory.end(),
        gigabyte_pages,
        user: true,
    };
    let low_end = memory.bytes().min(reach.spilled().start);
    let (entry, end) = if magic == elf::MAGIC {
        load_elf(memory, &kernel, low_end)?
    } else {
        linux::load(memory, &mut kernel, cmdline.len(), low_end)?
    };
    let mut room = end..low_end;
    if let Entry::Linux(_) = entry {
        room.end = low_end.min(linux::initrd_end(memory)?);
    }
    let initrd = boot.initrd.map(|path| load_initrd(memory, path, &room));
    let initrd = initrd.transpose()?;
    let direct = matches!(entry, Entry::Direct(_));
    let map = start_info::memory_map(memory.bytes(), direct.then(|| reach.spilled()).as_ref());
    if let Entry::Linux(_) = entry {
        linux::finish(memory, &map, initrd.as_ref())?;
    } else {
        for (at, bytes) in start_info::encode(&map, initrd.as_ref()) {
            put(memory.guest(), at, &bytes)?;
        }
    }
    let width = if let Entry::Pvh(_) = entry {
        Width::Protected
    } else {
        Width::Long
    };
    put(memory.guest(), layout::GDT, &segments::table(width))?;
    // Level 3 may use every port by IOPL, and by the map too, whose bits are zero: a KVM that runs level 3
    // on the processor itself does not keep IOPL.
    let last = u64::from(segments::TASK_BYTES) - 1;
    put(
        memory.guest(),
        layout::TSS + segments::PORT_MAP_AT,
        &segments::PORT_MAP.to_le_bytes(),
    )?;
    put(memory.guest(), layout::TSS + last, &[0xFF])?;
    if width == Width::Long {
        if !direct {
            (reach.end, reach.user) = (0, false);
        }
        paging::identity(memory.guest(), reach)?;
    }
    Ok(entry)
}

/// A file that is loaded, with its name for errors.
struct Image<'a> {
    file: File,
    path: &'a Path,
    bytes: u64,
}

impl<'a> Image<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let failed =
            |error| Error::kernel(format!("{} cannot be read", path.display())).because(error);
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        Ok(Self { file, path, bytes })
    }

    /// It cannot be booted because of what is in it.
    fn bad(&self, why: impl std::fmt::Display) -> Error {
        Error::kernel(format!("{} cannot be booted: {why}", self.path.display()))
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        let read = self.file.read_exact_at(into, at);
        read.map_err(|error| self.bad("it is shorter than it says").because(error))
    }

    /// Copy `bytes` of it from `offset` to `address`.
    fn copy(
        &mut self,
        offset: u64,
        memory: &GuestMemoryMmap<()>,
        address: u64,
        bytes: u64,
    ) -> Result<()> {
        use std::io::Seek;
        self.file
            .seek(io::SeekFrom::Start(offset))
            .map_err(|error| self.bad("it cannot be read").because(error))?;
        let copied =
            memory.read_exact_volatile_from(GuestAddress(address), &mut self.file, bytes as usize);
        copied
            .map_err(|error| self.bad(format!("{bytes} bytes do not fit at {address:#x}: {error}")))
    }
}

fn put(memory: &GuestMemoryMmap<()>, at: u64, bytes: &[u8]) -> Result<()> {
    let written = memory.write_slice(bytes, GuestAddress(at));
    written
        .map_err(|error| Error::host(format!("{at:#x} is not in memory"), io::Error::other(error)))
}

/// The command line with its NUL.
fn command_line(text: &str) -> Result<Vec<u8>> {
    let mut bytes = text.as_bytes().to_vec();
    if bytes.contains(&0) || bytes.len() >= COMMAND_LINE_BYTES {
        return Err(Error::kernel(format!(
            "a command line has no NUL and at most {} bytes",
            COMMAND_LINE_BYTES - 1
        )));
    }
    bytes.push(0);
    Ok(bytes)
}

/// Load an ELF file; says how it begins, and where what was loaded ends.
fn load_elf(memory: &Memory, image: &Image<'_>, low_end: u64) -> Result<(Entry, u64)> {
    let mut head = [0; elf::HEADER];
    image.read(0, &mut head)?;
    let header = elf::header(&head).map_err(|why| image.bad(why))?;
    let mut table = vec![0; header.table_bytes];
    image.read(header.table, &mut table)?;
    let all = elf::segments(&table).map_err(|why| image.bad(why))?;
    let mut loaded: Vec<Segment> = all
        .iter()
        .copied()
        .filter(|segment| segment.kind == Kind::Load)
        .collect();
    loaded.retain(|segment| segment.memory_bytes > 0);
    loaded.sort_by_key(|segment| segment.address);
    let end = check_places(&loaded, low_end).map_err(|why| image.bad(why))?;
    let entry = find_entry(image, &header, &all)?;
    let (Entry::Direct(at) | Entry::Pvh(at) | Entry::Linux(at)) = entry;
    let inside =
        |segment: &Segment| at >= segment.address && at - segment.address < segment.memory_bytes;
    if !loaded.iter().any(inside) {
        return Err(image.bad(format!("its entry {at:#x} is not in what is loaded")));
    }
    let mut image = Image {
        file: image
            .file
            .try_clone()
            .map_err(|error| image.bad("it cannot be read").because(error))?,
        ..*image
    };
    for segment in &loaded {
        if segment.offset + segment.file_bytes > image.bytes {
            return Err(image.bad("it is shorter than it says"));
        }
        image.copy(
            segment.offset,
            memory.guest(),
            segment.address,
            segment.file_bytes,
        )?;
    }
    Ok((entry, end))
}

/// Segments, lowest first, that may be where they want to be; says where the last ends.
fn check_places(segments: &[Segment], memory_end: u64) -> Result<u64, String> {
    let mut free = LOAD;
    for segment in segments {
        let end = segment.address + segment.memory_bytes;
        if segment.address < free {
            return Err(format!(
                "a segment at {:#x} lies over another, or below 1 MiB",
                segment.address
            ));
        }
        if end > memory_end {
            return Err(format!(
                "a segment ends at {end:#x}, behind the memory below 4 GiB, which ends at {memory_end:#x}"
            ));
        }
        free = end;
    }
    if segments.is_empty() {
        return Err("nothing of it is to be loaded".to_owned());
    }
    Ok(free)
}

/// How the program begins, by its notes; Diskferry's own counts before Xen's.
fn find_entry(image: &Image<'_>, header: &Header, segments: &[Segment]) -> Result<Entry> {
    let mut pvh = None;
    for segment in segments.iter().filter(|segment| segment.kind == Kind::Note) {
        if segment.file_bytes > MOST_NOTES {
            return Err(image.bad("its notes are longer than 1 MiB"));
        }
        let mut bytes = vec![0; segment.file_bytes as usize];
        image.read(segment.offset, &mut bytes)?;
        for Note {
            owner,
            kind,
            description,
        } in elf::notes(&bytes, segment.align)
        {
            if (owner, kind) == OWN_NOTE {
                if description != OWN_VERSION {
                    return Err(image.bad("it wants another version of the direct entry than 1"));
                }
                return Ok(Entry::Direct(header.entry));
            }
            if (owner, kind) == PVH_NOTE && matches!(description.len(), 4 | 8) {
                let mut at = [0; 8];
                for (to, from) in at.iter_mut().zip(description) {
                    *to = *from;
                }
                pvh = Some(u64::from_le_bytes(at));
            }
        }
    }
    let none =
        || image.bad("it has neither a PVH note nor one of Diskferry; a kernel needs CONFIG_PVH=y");
    pvh.map(Entry::Pvh).ok_or_else(none)
}

/// Put the initrd at the end of a stretch of memory that is free.
fn load_initrd(memory: &Memory, path: &Path, room: &Range<u64>) -> Result<Range<u64>> {
    let mut image = Image::open(path)?;
    let bytes = image.bytes;
    let start = room.end.checked_sub(bytes).map(|start| start / PAGE * PAGE);
    let start = start.filter(|start| *start >= room.start && bytes > 0);
    let start = start.ok_or_else(|| {
        image.bad(format!(
            "an initrd of {bytes} bytes does not fit into {room:#x?}"
        ))
    })?;
    image.copy(0, memory.guest(), start, bytes)?;
    Ok(start..start + bytes)
}

#[cfg(test)]
mod tests;
