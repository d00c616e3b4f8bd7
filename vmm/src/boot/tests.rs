//! What may be booted and what is refused, by files made here.

use std::io::Write;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;
use crate::ErrorKind;

const MIB: u64 = 1 << 20;

/// An ELF file with these segments (address, content, bytes in memory) and one note.
fn elf_file(entry: u64, loads: &[(u64, &[u8], u64)], note: &[u8]) -> Vec<u8> {
    let count = loads.len() + 1;
    let mut at = elf::HEADER + 56 * count;
    let mut file = b"\x7FELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(entry.to_le_bytes());
    file.extend((elf::HEADER as u64).to_le_bytes());
    file.resize(52, 0);
    for word in [64, 56, count as u16, 0, 0, 0] {
        file.extend(word.to_le_bytes());
    }
    let notes = (0, note, note.len() as u64);
    let all = loads.iter().map(|load| (1_u32, load)).chain([(4, &notes)]);
    let mut contents: Vec<u8> = Vec::new();
    for (kind, (address, content, memory)) in all {
        file.extend([kind.to_le_bytes(), 7_u32.to_le_bytes()].concat());
        for quad in [
            at as u64,
            *address,
            *address,
            content.len() as u64,
            *memory,
            4,
        ] {
            file.extend(quad.to_le_bytes());
        }
        at += content.len();
        contents.extend(*content);
    }
    file.extend(contents);
    file
}

fn note(owner: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [owner.len() as u32, description.len() as u32, kind] {
        bytes.extend(word.to_le_bytes());
    }
    for part in [owner, description] {
        bytes.extend(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn own_note() -> Vec<u8> {
    note(b"Diskferry\0", 1, &1_u32.to_le_bytes())
}

fn stored(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn boot(bytes: &[u8], memory: u64) -> (Result<Entry>, Memory) {
    let file = stored(bytes);
    let memory = Memory::new(memory, false).unwrap();
    let boot = Boot {
        kernel: file.path(),
        cmdline: "do=hello",
        initrd: None,
        processors: 1,
    };
    (load(&memory, &boot, true), memory)
}

fn read<const N: usize>(memory: &Memory, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory
        .guest()
        .read_slice(&mut bytes, GuestAddress(at))
        .unwrap();
    bytes
}

#[test]
fn a_program_with_our_note_is_entered_by_every_processor() {
    let file = elf_file(2 * MIB, &[(2 * MIB, b"code", 0x2000)], &own_note());
    let (entry, memory) = boot(&file, 64 * MIB);
    let entry = entry.unwrap();
    assert_eq!(entry, Entry::Direct(2 * MIB));
    assert_eq!(read(&memory, 2 * MIB), *b"code");
    assert_eq!(read(&memory, COMMAND_LINE), *b"do=hello\0");
    for index in [0, 254] {
        let start = entry.start(index, 255);
        assert!(start.runnable);
        assert_eq!(
            (start.regs.rdi, start.regs.rsi, start.regs.rdx),
            (layout::START_INFO, u64::from(index), 255)
        );
        assert_eq!(start.sregs.ss.dpl, 3);
    }
}

#[test]
fn a_kernel_with_a_pvh_note_is_entered_by_the_first_processor() {
    let pvh = note(b"Xen\0", 18, &(2 * MIB + 2).to_le_bytes());
    let file = elf_file(2 * MIB, &[(2 * MIB, b"code", 4)], &pvh);
    let (entry, memory) = boot(&file, 64 * MIB);
    let entry = entry.unwrap();
    assert_eq!(entry, Entry::Pvh(2 * MIB + 2));
    assert_eq!(entry.start(0, 2).regs.rbx, layout::START_INFO);
    assert!(!entry.start(1, 2).runnable);
    assert_eq!(
        read(&memory, layout::START_INFO),
        0x336E_C578_u32.to_le_bytes()
    );
    assert_eq!(
        read(&memory, layout::RESET_VECTOR),
        [0xB0, 0xFE, 0xE6, 0x64, 0xF4]
    );
    let root = read(&memory, layout::START_INFO + 0x20);
    assert_eq!(root, layout::ACPI.start.to_le_bytes());
    assert_eq!(read(&memory, layout::ACPI.start), *b"RSD PTR ");
    let both = [pvh, own_note()].concat();
    let file = elf_file(2 * MIB, &[(2 * MIB, b"code", 4)], &both);
    assert_eq!(boot(&file, 64 * MIB).0.unwrap(), Entry::Direct(2 * MIB));
}

#[test]
fn what_cannot_be_loaded_is_refused_with_its_reason() {
    let own = own_note();
    let newer = note(b"Diskferry\0", 1, &2_u32.to_le_bytes());
    let cases: [(Vec<u8>, &str); 8] = [
        (
            elf_file(2 * MIB, &[(0x1000, b"code", 4)], &own),
            "below 1 MiB",
        ),
        (
            elf_file(
                2 * MIB,
                &[(2 * MIB, b"code", 0x2000), (2 * MIB + 0x1000, b"more", 4)],
                &own,
            ),
            "over another",
        ),
        (
            elf_file(2 * MIB, &[(2 * MIB, b"code", 63 * MIB)], &own),
            "behind the memory",
        ),
        (elf_file(9 * MIB, &[(2 * MIB, b"code", 4)], &own), "entry"),
        (
            elf_file(2 * MIB, &[(2 * MIB, b"code", 2)], &own),
            "larger in the file",
        ),
        (
            elf_file(2 * MIB, &[(2 * MIB, b"code", 4)], &newer),
            "another version",
        ),
        (
            elf_file(2 * MIB, &[(2 * MIB, b"code", 4)], &[]),
            "neither a PVH note",
        ),
        (vec![0; 4096], "neither an ELF file nor"),
    ];
    for (file, because) in cases {
        let error = boot(&file, 64 * MIB).0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadKernel);
        assert!(
            error.to_string().contains(because),
            "`{error}` does not say `{because}`"
        );
    }
}

#[test]
fn an_initrd_never_lies_over_the_kernel() {
    let file = stored(&elf_file(2 * MIB, &[(2 * MIB, b"code", MIB)], &own_note()));
    for (bytes, fits) in [(1, true), (MIB, true), (MIB + 1, false), (0, false)] {
        let initrd = stored(&vec![0xA5; bytes as usize]);
        let memory = Memory::new(4 * MIB, false).unwrap();
        let boot = Boot {
            kernel: file.path(),
            cmdline: "",
            initrd: Some(initrd.path()),
            processors: 1,
        };
        assert_eq!(load(&memory, &boot, true).is_ok(), fits, "{bytes}");
        if fits {
            let module: [u8; 8] = read(&memory, layout::MODULES);
            assert_eq!(read(&memory, u64::from_le_bytes(module)), [0xA5]);
        }
    }
}

#[test]
fn command_lines_that_cannot_be_are_refused() {
    assert!(command_line(&"x".repeat(COMMAND_LINE_BYTES - 1)).is_ok());
    assert!(command_line(&"x".repeat(COMMAND_LINE_BYTES)).is_err());
    assert!(command_line("a\0b").is_err());
}

/// A bzImage of four setup sectors with a payload, as a kernel's build makes one.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 5 * 512];
    let mut set = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    set(0x1F1, &[4]);
    set(0x200, &[0xEB, 0x66]);
    set(0x202, b"HdrS");
    set(0x206, &0x020F_u16.to_le_bytes());
    set(0x211, &[1]);
    set(0x214, &0x10_0000_u32.to_le_bytes());
    set(0x22C, &0x7FFF_FFFF_u32.to_le_bytes());
    set(0x236, &1_u16.to_le_bytes());
    set(0x238, &2047_u32.to_le_bytes());
    set(0x258, &(16 * MIB).to_le_bytes());
    set(0x260, &0x10_0000_u32.to_le_bytes());
    file.extend(payload);
    file
}

#[test]
fn a_bzimage_is_placed_where_it_wants_to_be() {
    let (entry, memory) = boot(&bzimage(b"payload"), 64 * MIB);
    let entry = entry.unwrap();
    assert_eq!(entry, Entry::Linux(16 * MIB + 0x200));
    assert_eq!(read(&memory, 16 * MIB), *b"payload");
    let start = entry.start(0, 1);
    assert_eq!(
        (
            start.regs.rsi,
            start.sregs.cs.selector,
            start.sregs.ds.selector
        ),
        (layout::ZERO_PAGE, 0x10, 0x18)
    );
    assert_eq!(read(&memory, layout::ZERO_PAGE + 0x202), *b"HdrS");
    assert_eq!(
        read(&memory, layout::ZERO_PAGE + 0x228),
        (COMMAND_LINE as u32).to_le_bytes()
    );
    assert_eq!(
        read(&memory, layout::ZERO_PAGE + 0x70),
        layout::ACPI.start.to_le_bytes()
    );
    assert!(
        read::<1>(&memory, layout::ZERO_PAGE + 0x1E8)[0] >= 5,
        "ranges of memory"
    );
    let refused = boot(&bzimage(b"payload"), 16 * MIB).0.unwrap_err();
    assert!(refused.to_string().contains("needs"), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_file_that_was_changed_anywhere_is_loaded_or_refused(at in 0_usize..700, byte: u8, elf: bool) {
        let mut file = if elf {
            elf_file(2 * MIB, &[(2 * MIB, b"code", 4), (3 * MIB, b"data", 0x1000)], &own_note())
        } else {
            bzimage(&[0x90; 100])
        };
        let length = file.len();
        file[at % length] = byte;
        let (entry, memory) = boot(&file, 32 * MIB);
        // Whatever came of it, what the machine itself put below 1 MiB is whole.
        prop_assert_eq!(read(&memory, COMMAND_LINE), *b"do=hello\0");
        let _ = entry;
    }
}
