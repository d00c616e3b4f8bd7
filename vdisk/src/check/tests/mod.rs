//! Promises of an examination: it goes on after errors, keeps a bounded number of findings, counts
//! what leaks, and never changes the file.

use super::*;
use crate::create::tests::{counter, made};
use crate::format::BatEntry;
use crate::open::{Admit, LoadOptions, load};
use crate::storage::MemoryStorage;
use crate::units::{BlockIndex, FileOffset};

pub(crate) mod codes;
pub(crate) mod sample;

const GIB: u64 = 1 << 30;

fn sample(blocks: u64, entry: impl Fn(u64, u64) -> u64) -> (MemoryStorage, u64) {
    let mut storage = made(|options| options.block_size = Some(1 << 20), 20 * GIB).unwrap();
    let options = LoadOptions {
        writable: false,
        scan_bat: false,
        admit: Admit {
            marked: false,
            parent: false,
        },
        random: &mut counter(),
    };
    let image = load(&mut storage, options).unwrap();
    storage.resize(image.file_len + 100 * MIB);
    for block in 0..blocks {
        let index = image.geometry.bat_index(BlockIndex(block));
        let entry = entry(block, image.file_len);
        storage.put(image.bat().at.0 + index.0 * 8, &entry.to_le_bytes());
    }
    (storage, image.file_len)
}

#[test]
fn many_errors_are_reported_in_one_go_and_bounded() {
    let (mut storage, first) = sample(5000, |block, first| {
        BatEntry::fully_present(FileOffset(first + block / 2 * MIB)).encode()
    });
    let report = check(&mut storage).unwrap();
    assert!(report.complete && !report.is_sound());
    assert_eq!(report.findings.len(), MAX_FINDINGS);
    // 100 pairs inside the file: one of each is an error; every later block is beyond the end.
    assert_eq!(report.blocks.faulty, 100 + 4800);
    assert_eq!(report.omitted, 4900 - MAX_FINDINGS as u64);
    assert_eq!(report.allocated, first + 100 * MIB);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["findings"][0]["severity"], "error");
    assert_eq!(json["blocks"]["faulty"], 4900);
}

#[test]
fn leaks_are_counted_by_runs() {
    let (mut storage, first) = sample(2, |block, first| {
        BatEntry::fully_present(FileOffset(first + (10 + block * 20) * MIB)).encode()
    });
    let report = check(&mut storage).unwrap();
    assert!(report.is_sound());
    assert_eq!(report.leaked_mib, 98);
    let runs: Vec<u64> = report.findings.iter().filter_map(|f| f.offset).collect();
    assert_eq!(runs, [first, first + 11 * MIB, first + 31 * MIB]);
}

#[test]
fn an_error_is_not_crowded_out_by_warnings() {
    let mut report = CheckReport::default();
    for _ in 0..2 * MAX_FINDINGS {
        report
            .found(Finding::warning(Code::LastBlockCut, "BAT", "odd", "none"))
            .unwrap();
    }
    let bad = Finding::new(Code::EntryState, Severity::Error, "BAT", "bad", "lost");
    report.found(bad).unwrap();
    assert_eq!((report.errors(), report.findings.len()), (1, MAX_FINDINGS));
    assert_eq!(report.omitted, MAX_FINDINGS as u64 + 1);
    assert_eq!(report.codes[&Code::LastBlockCut], 2 * MAX_FINDINGS as u64);
}

#[test]
fn what_is_no_image_is_a_finding_and_not_a_failure() {
    let report = check(&mut MemoryStorage::from_bytes(&[7; 5000])).unwrap();
    assert!(!report.is_sound() && !report.complete);
    assert_eq!(report.errors(), 1);
}
