//! The tables as a kernel follows them, and as ACPI's own compiler reads them.

use std::process::Command;

use super::*;
use crate::layout;

/// How many processors machines have here.
const COUNTS: [u8; 4] = [1, 2, 32, 255];

/// A number of so many bytes in a table.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let mut whole = [0; 8];
    whole[..length].copy_from_slice(&bytes[at..at + length]);
    u64::from_le_bytes(whole)
}

/// Signature and bytes of the tables that the root pointer leads to.
fn followed(processors: u8) -> Vec<(String, Vec<u8>)> {
    let placed = tables(processors);
    let at = |address: u64| {
        let mut all = placed.iter();
        let (_, bytes) = all.find(|(place, _)| *place == address).unwrap();
        let signature = String::from_utf8(bytes[..4].to_vec()).unwrap();
        (signature, bytes.clone())
    };
    let (_, root) = at(ROOT);
    assert_eq!(root[..8], *b"RSD PTR ");
    let (signature, list) = at(number(&root, 24, 8));
    assert_eq!(signature, "XSDT");
    let mut found: Vec<_> = (36..list.len())
        .step_by(8)
        .map(|entry| at(number(&list, entry, 8)))
        .collect();
    let namespace = number(&found[0].1, 140, 8);
    found.push(at(namespace));
    found
}

fn table(signature: &str, processors: u8) -> Vec<u8> {
    let mut all = followed(processors).into_iter();
    all.find(|(found, _)| found == signature).unwrap().1
}

#[test]
fn tables_are_below_one_mib_and_lie_over_nothing() {
    for processors in COUNTS {
        let mut placed = tables(processors);
        placed.sort();
        let mut free = ACPI.start;
        for (at, bytes) in placed {
            assert!(at >= free && at % ALIGN == 0, "{at:#x}");
            free = at + bytes.len() as u64;
            assert!(free <= ACPI.end);
        }
    }
}

#[test]
fn every_table_says_its_length_and_sums_to_zero() {
    for processors in COUNTS {
        for (at, bytes) in tables(processors) {
            let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum, 0, "{at:#x}");
            let length_at = if at == ROOT { 20 } else { 4 };
            assert_eq!(number(&bytes, length_at, 4), bytes.len() as u64);
        }
        let (_, root) = tables(processors).pop().unwrap();
        let sum = root[..20]
            .iter()
            .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(
            sum, 0,
            "the first 20 bytes have a sum of their own (5.2.5.3)"
        );
    }
}

#[test]
fn the_root_leads_to_every_table() {
    let signatures: Vec<_> = followed(2).into_iter().map(|(name, _)| name).collect();
    assert_eq!(signatures, ["FACP", "APIC", "MCFG", "DSDT"]);
}

#[test]
fn every_processor_is_listed_once_and_the_io_apic_has_a_number_of_its_own() {
    for processors in COUNTS {
        let table = table("APIC", processors);
        assert_eq!(number(&table, 36, 4), layout::LOCAL_APIC);
        let (mut at, mut seen, mut controllers) = (44, Vec::new(), Vec::new());
        while at < table.len() {
            match table[at] {
                0 => {
                    assert_eq!(table[at + 2], table[at + 3], "ids are numbers");
                    assert_eq!(number(&table, at + 4, 4), 1);
                    seen.push(table[at + 3]);
                }
                1 => {
                    assert_eq!(number(&table, at + 4, 4), layout::IO_APIC);
                    controllers.push(table[at + 2]);
                }
                kind => assert_eq!(kind, 4),
            }
            at += usize::from(table[at + 1]);
        }
        assert_eq!(at, table.len());
        assert_eq!(seen, (0..processors).collect::<Vec<_>>());
        assert_eq!(controllers, [processors]);
    }
}

#[test]
fn the_machine_says_how_it_is_reset_and_switched_off() {
    let table = table("FACP", 1);
    let port = |at: usize| (table[at], number(&table, at + 4, 8));
    // System I/O (5.2.3.2); offsets of 5.2.9.
    assert_eq!(port(116), (1, layout::RESET.start));
    assert_eq!(table[128], crate::devices::PULSE_RESET);
    assert_eq!(port(244), (1, layout::SLEEP.start));
    assert_eq!(port(256), (1, layout::SLEEP.start + 1));
    let flags = number(&table, 112, 4);
    assert_eq!(flags >> 20 & 1, 1, "hardware-reduced");
    assert_eq!(flags >> 10 & 1, 1, "the reset register is there");
    let legacy = number(&table, 109, 2);
    assert_eq!(legacy & 1 << 1, 0, "no keyboard controller");
    assert_eq!(legacy >> 2 & 1, 1, "no VGA");
    assert_eq!(legacy >> 5 & 1, 1, "no real-time clock");
}

#[test]
fn configuration_space_is_where_the_machine_has_it() {
    let table = table("MCFG", 1);
    assert_eq!(table.len(), 60);
    assert_eq!(number(&table, 44, 8), layout::ECAM.start);
    assert_eq!(table[52..56], [0; 4], "segment 0, buses 0 to 0");
}

/// ACPI's own compiler, on a file in a folder of its own.
fn iasl(arguments: &[&str], folder: &std::path::Path) -> String {
    let run = Command::new("iasl")
        .args(arguments)
        .current_dir(folder)
        .output();
    let run =
        run.expect("this test needs iasl (Debian's acpica-tools; scripts/setup.sh installs it)");
    let said = [run.stdout, run.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(run.status.success(), "{said}");
    said
}

#[test]
fn the_compiler_of_acpi_understands_the_namespace_and_finds_nothing_wrong() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("dsdt.aml"), table("DSDT", 2)).unwrap();
    iasl(&["-d", "dsdt.aml"], folder.path());
    let source = std::fs::read_to_string(folder.path().join("dsdt.dsl")).unwrap();
    for promised in [
        "Device (PCI0)",
        "DWordMemory (ResourceProducer",
        "Device (S001)",
        "Device (S031)",
        "Notify (S031, 0x03)",
        "Notify (\\_SB.PCI0, Zero)",
        "Notify (\\_SB.PWRB, 0x80)",
        "\\_SB.PCI0.LOOK ()",
        "OperationRegion (EVTS, SystemIO, 0xAE00, 0x10)",
        "EisaId (\"PNP0501\")",
        "\"ACPI0013\"",
        "\"QEMU0001\"",
        "Name (_S5",
    ] {
        assert!(source.contains(promised), "{promised}:\n{source}");
    }
    let said = iasl(&["-p", "again", "dsdt.dsl"], folder.path());
    assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
    for fixed in ["FACP", "APIC", "MCFG"] {
        std::fs::write(folder.path().join("fixed.aml"), table(fixed, 2)).unwrap();
        let said = iasl(&["-d", "fixed.aml"], folder.path());
        assert!(!said.contains("rror"), "{said}");
    }
}
