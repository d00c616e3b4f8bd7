//! How long the codec takes: what a flush pays for each page it logs, and a request for each lookup.
//!
//! Run with `make bench`. Nothing here touches a file.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vdisk::format::log::{EntryPlan, LogPlace, decode_entry, encode_entry};
use vdisk::format::{BatEntry, Geometry, Guid, PAGE, checksum};
use vdisk::units::{BlockIndex, FileOffset, MIB};

/// Pages in the log entry of one flush after writes to many blocks.
const PAGES: u64 = 64;

fn plan(pages: &[(FileOffset, Bytes)]) -> EntryPlan<'_> {
    EntryPlan {
        log_guid: Guid([7; 16]),
        sequence: 1,
        tail: 0,
        flushed_file_offset: 16 * MIB,
        last_file_offset: 16 * MIB,
        pages,
    }
}

fn log_entries(c: &mut Criterion) {
    let pages: Vec<(FileOffset, Bytes)> = (0..PAGES)
        .map(|i| {
            (
                FileOffset(4 * MIB + i * PAGE as u64),
                Bytes::from(vec![i as u8 + 1; PAGE]),
            )
        })
        .collect();
    let place = LogPlace {
        guid: Guid([7; 16]),
        at: FileOffset(MIB),
    };
    // A log of 1 MiB with the entry at its beginning.
    let mut encoded = encode_entry(&plan(&pages));
    encoded.resize(MIB as usize, 0);
    assert!(
        decode_entry(&encoded, 0, &place).is_ok(),
        "the bench measures a valid entry"
    );

    let mut group = c.benchmark_group("log_entry");
    group.throughput(Throughput::Bytes(PAGES * PAGE as u64));
    group.bench_function("encode_64_pages", |b| {
        b.iter(|| encode_entry(&plan(black_box(&pages))));
    });
    group.bench_function("decode_64_pages", |b| {
        b.iter(|| decode_entry(black_box(&encoded), 0, &place));
    });
    group.finish();
}

fn bat(c: &mut Criterion) {
    let geometry = Geometry::new(1 << 20, 512, 16 << 40, false).expect("a legal geometry");
    let entry = BatEntry::fully_present(FileOffset(5 * MIB)).encode();
    let mut group = c.benchmark_group("bat");
    group.bench_function("index_of_a_block", |b| {
        b.iter(|| geometry.bat_index(black_box(BlockIndex(1_234_567))));
    });
    group.bench_function("decode_an_entry", |b| {
        b.iter(|| BatEntry::decode(black_box(entry)));
    });
    group.finish();
}

fn crc(c: &mut Criterion) {
    let page = vec![0xA5; PAGE];
    let mut group = c.benchmark_group("crc32c");
    group.throughput(Throughput::Bytes(PAGE as u64));
    group.bench_function("one_page", |b| b.iter(|| checksum(black_box(&page), 4)));
    group.finish();
}

criterion_group!(benches, log_entries, bat, crc);
criterion_main!(benches);
