//! The tap, one call at a time and by chance.

use proptest::prelude::*;

use super::*;

fn write(tracker: &Tracker, offset: u64, len: usize) {
    tracker.changed(GuestOffset(offset), Change::Data(Bytes::from(vec![1; len])));
}

#[test]
fn a_full_queue_leaves_the_change_in_the_bitmap() {
    let tracker = Tracker::new(1 << 20, 10_000);
    tracker.advance_cursor(1 << 20);
    write(&tracker, 0, 4096);
    write(&tracker, 4096, 4096);
    write(&tracker, 512 * 33, 512);
    write(&tracker, 65536, 4096);
    let figures = tracker.figures();
    assert_eq!(
        (figures.seq, figures.fallen_back, figures.dirty),
        (4, 1, 4096)
    );
    let kept: Vec<u64> = std::iter::from_fn(|| tracker.take())
        .map(|r| r.seq)
        .collect();
    assert_eq!(kept, [1, 2, 3]);
    assert_eq!(
        tracker.claim(0, 1 << 20, true),
        Some(Claim {
            offset: 65536,
            len: 4096,
            base: 4,
            unsure: false
        })
    );
}

#[test]
fn of_a_change_that_failed_what_is_there_now_is_read() {
    let tracker = Tracker::new(1 << 20, 1 << 20);
    let fails = |at, len| tracker.changed(GuestOffset(at), Change::Unknown(len));
    tracker.advance_cursor(1 << 19);
    write(&tracker, 4096, 512);
    fails(4608, 8192);
    fails(1 << 19, 4096);
    fails(0, 0);
    let figures = tracker.figures();
    assert_eq!((figures.seq, figures.dirty), (3, 3 * 4096));
    assert_eq!(tracker.take().map(|record| record.seq), Some(1));
    let claim = tracker.claim(0, 1 << 20, true).expect("it is dirty");
    assert_eq!((claim.offset, claim.len, claim.base), (4096, 3 * 4096, 3));
    assert!(tracker.take().is_none() && tracker.claim(0, 1 << 20, true).is_none());
}

#[test]
fn a_change_beyond_the_cursor_or_of_dirty_granules_takes_a_number_and_no_memory() {
    let tracker = Tracker::new(1 << 20, 1 << 20);
    write(&tracker, 0, 4096);
    tracker.advance_cursor(8192);
    tracker.mark(0, 4096);
    write(&tracker, 512, 512);
    write(&tracker, 8192, 4096);
    assert_eq!(tracker.figures().held, 0);
    // Across the cursor: the part below it counts, so the whole change is kept.
    write(&tracker, 4096, 8192);
    assert_eq!(tracker.take().map(|r| (r.seq, r.offset)), Some((4, 4096)));
}

#[test]
fn what_is_written_often_is_copied_last_and_not_before_all_is_known() {
    let tracker = Tracker::with_regions(1 << 20, 0, 65536);
    tracker.mark(0, 1 << 20);
    for _ in 0..100 {
        write(&tracker, 65536, 512);
    }
    for _ in 0..50 {
        write(&tracker, 3 * 65536, 512);
    }
    let mut order = Vec::new();
    let mut from = 0;
    while let Some(claim) = tracker.claim(from, 65536, false) {
        from = claim.offset + claim.len;
        order.push(claim.offset / 65536);
    }
    assert_eq!(order, [0, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    let last = [0, 0].map(|_| {
        tracker
            .claim(from, 65536, true)
            .map(|claim| claim.offset / 65536)
    });
    assert_eq!(last, [Some(3), Some(1)]);
    assert_eq!(
        (tracker.claim(0, 65536, true), tracker.figures().dirty),
        (None, 0)
    );
}

proptest! {
    #[test]
    fn every_dirty_granule_is_claimed_once_however_hot_it_is(
        writes in prop::collection::vec((0_u64..64, 1_u64..8), 0..200),
        unsure in prop::collection::vec((0_u64..64, 1_u64..20), 0..5),
        max in 1_u64..8,
    ) {
        let tracker = Tracker::with_regions(64 * 4096, 0, 8192);
        tracker.advance_cursor(64 * 4096);
        let mut dirty = [false; 64];
        let mut maybe = [false; 64];
        for (granule, len) in unsure {
            let len = len.min(64 - granule);
            tracker.mark_unsure(granule * 4096, len * 4096);
            dirty[granule as usize..(granule + len) as usize].fill(true);
            maybe[granule as usize..(granule + len) as usize].fill(true);
        }
        for (granule, len) in writes {
            let len = len.min(64 - granule);
            write(&tracker, granule * 4096, (len * 4096) as usize);
            (granule..granule + len).for_each(|granule| dirty[granule as usize] = true);
        }
        let mut from = 0;
        while let Some(claim) = tracker.claim(from, max * 4096, true) {
            from = claim.offset + claim.len;
            prop_assert!(claim.len > 0 && claim.len <= max * 4096);
            for granule in claim.offset / 4096..from / 4096 {
                prop_assert!(std::mem::take(&mut dirty[granule as usize]));
                prop_assert_eq!(maybe[granule as usize], claim.unsure);
            }
        }
        prop_assert_eq!(dirty, [false; 64]);
    }
}

#[test]
fn the_last_granule_of_a_disk_ends_with_the_disk() {
    let tracker = Tracker::new(4096 + 512, 0);
    tracker.advance_cursor(4096 + 512);
    write(&tracker, 4096, 512);
    assert_eq!(
        tracker.claim(0, 1 << 20, true),
        Some(Claim {
            offset: 4096,
            len: 512,
            base: 1,
            unsure: false
        })
    );
}

#[test]
fn a_large_change_is_cut_into_messages_and_each_has_its_number() {
    let tracker = Tracker::new(1 << 30, 1 << 30);
    tracker.advance_cursor(1 << 30);
    write(&tracker, 512, LONGEST + 512);
    let first = tracker.take().unwrap();
    let second = tracker.take().unwrap();
    assert_eq!(
        (first.seq, first.offset, first.content.covers()),
        (1, 512, LONGEST as u64)
    );
    assert_eq!(
        (second.seq, second.offset, second.content.covers()),
        (2, 512 + LONGEST as u64, 512)
    );
}
