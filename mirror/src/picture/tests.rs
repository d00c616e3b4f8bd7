//! The picture agrees with what it is drawn from, whatever that is.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn drawn(size: u64, scanned: u64, sending: &[(u64, u64)], sight: &Sight, cells: usize) -> Picture {
    let mut found = Slots::new(size);
    found.add(0, scanned);
    Seen {
        size,
        scanned,
        found: &found,
        sight,
        sending,
    }
    .picture(cells)
}

fn sight(size: u64) -> Sight {
    Sight {
        dirty: Slots::new(size),
        changed: Slots::new(size),
        waiting: Slots::new(size),
        written: Slots::new(size),
        hot: Vec::new(),
    }
}

proptest! {
    #[test]
    fn bytes_by_slot_add_up_and_lie_where_they_were_put(
        size in 1_u64..64 << 40,
        places in prop::collection::vec((0.0_f64..1.0, 0_u64..1 << 34), 0..20),
    ) {
        let mut slots = Slots::new(size);
        prop_assert!(!slots.bytes.is_empty() && slots.bytes.len() <= MOST_CELLS);
        let mut all = 0;
        for (at, len) in &places {
            #[expect(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "any place will do")]
            let offset = ((size as f64 * at) as u64).min(size - 1);
            let len = (*len).min(size - offset);
            slots.add(offset, len);
            all += len;
            prop_assert!(len == 0 || slots.get((offset / slots.slot) as usize) > 0);
        }
        prop_assert_eq!(slots.bytes.iter().sum::<u64>(), all);
        // More than once there may be as much as a slot of it.
        for _ in 0..=places.len() {
            slots.take(0, u64::MAX);
        }
        prop_assert!(slots.bytes.iter().all(|bytes| *bytes == 0));
    }

    #[test]
    fn a_picture_has_no_more_cells_than_asked_for_and_hides_nothing_urgent(
        size in 1_u64..64 << 40,
        cells in 0_usize..10_000,
        spot in 0.0_f64..1.0,
    ) {
        let mut sight = sight(size);
        #[expect(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "any place will do")]
        let spot = ((size as f64 * spot) as u64).min(size - 1);
        sight.dirty.add_at(spot, 4096);
        sight.changed.add_at(spot, 4096);
        let picture = drawn(size, size, &[], &sight, cells);
        prop_assert!(picture.cells >= 1 && picture.cells as usize <= cells.clamp(1, MOST_CELLS));
        prop_assert_eq!(picture.runs.iter().map(|run| run.cells).sum::<u32>(), picture.cells);
        prop_assert_eq!(picture.counts.values().sum::<u32>(), picture.cells);
        // However coarse it is, the one dirty granule of 64 TB is seen.
        prop_assert_eq!(picture.counts.get(&CellState::Dirty), Some(&1));
        prop_assert!(picture.runs.windows(2).all(|two| two[0].state != two[1].state));
    }
}

#[test]
fn each_state_is_told_apart_and_the_most_urgent_one_is_shown() {
    use CellState::{Copied, Dirty, Hot, Sending, ToCopy, Unallocated, Unknown};

    let size = 16 * MIB;
    let mut sight = sight(size);
    let cell = |number: u64| number * 2 * MIB;
    sight.written.add_at(cell(0), 1);
    sight.dirty.add(cell(1), 4096);
    sight.dirty.add(cell(2), 8192);
    sight.changed.add(cell(2), 4096);
    sight.waiting.add(cell(3), 512);
    sight.dirty.add(cell(4), 4096);
    sight.hot.push(cell(4));
    let sending = [(cell(5), 2 * MIB)];
    let mut found = Slots::new(size);
    found.add(cell(1), 4096);
    let seen = Seen {
        size,
        scanned: cell(7),
        found: &found,
        sight: &sight,
        sending: &sending,
    };
    let picture = seen.picture(MOST_CELLS);
    let states: Vec<CellState> = picture.runs.iter().map(|run| run.state).collect();
    assert_eq!(
        picture.runs.iter().map(|run| run.cells).collect::<Vec<_>>(),
        [1, 1, 2, 1, 1, 1, 1]
    );
    assert_eq!(
        states,
        [Copied, ToCopy, Dirty, Hot, Sending, Unallocated, Unknown]
    );
    let coarse = seen.picture(1);
    assert_eq!(
        coarse.runs,
        [Run {
            state: Sending,
            cells: 1
        }]
    );
}

/// `cargo test -p mirror --lib -- --nocapture a_look_at_64_tib` says how long the tap is locked for it.
#[test]
fn a_look_at_64_tib_copies_the_same_however_much_of_it_is_dirty_or_hot() {
    use crate::tracker::Tracker;
    use vdisk::tap::{Change, WriteTap as _};
    use vdisk::units::GuestOffset;

    let size = 64_u64 << 40;
    let tracker = Tracker::new(size, 1 << 20);
    tracker.advance_cursor(size);
    let look = |what: &str| {
        let since = std::time::Instant::now();
        let sight = tracker.sight();
        println!("{what}: {:?}", since.elapsed());
        for slots in [&sight.dirty, &sight.changed, &sight.waiting, &sight.written] {
            assert_eq!(slots.bytes.len(), MOST_CELLS);
        }
        sight
    };
    look("idle");
    // Every other leaf has a dirty granule, so that none of them can be a run.
    for leaf in 0..200_000_u64 {
        tracker.mark(leaf * 4 * MIB, 4096);
    }
    for region in 0..40_000_u64 {
        for _ in 0..4 {
            let write = Change::Data(bytes::Bytes::from_static(&[7; 512]));
            tracker.changed(GuestOffset(region * 1024 * MIB), write);
        }
    }
    let sight = look("200,000 leaves dirty, 40,000 regions written again and again");
    assert!(sight.hot.len() <= 16 << 10);
    tracker.mark(0, size);
    look("wholly dirty");
}
