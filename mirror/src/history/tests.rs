//! What a history says of sessions that nobody had.

use proptest::prelude::*;

use super::*;

fn figures() -> Progress {
    Progress {
        stage: Stage::Connecting,
        connected: true,
        size: 1 << 30,
        scanned: 0,
        found: 0,
        holes: 0,
        copied: 0,
        same: 0,
        streamed: 0,
        read: 0,
        zero: 0,
        written: 0,
        remaining: 0,
        unacknowledged: 0,
        fallen_back: 0,
        left_out: 0,
        rate: 0,
        limit: None,
        seconds_remaining: None,
        estimate: None,
        brake: None,
        unmet: None,
        reconnects: 0,
        given_up: 0,
        pause: None,
        verify: None,
        trouble: None,
        numbers: (0, 0),
    }
}

fn stage() -> impl Strategy<Value = Stage> {
    prop::sample::select(vec![
        Stage::Connecting,
        Stage::Copying,
        Stage::Synced,
        Stage::Switching,
        Stage::Forwarding,
    ])
}

proptest! {
    #[test]
    fn phases_add_up_peaks_are_no_lower_than_averages_and_sums_never_fall(
        looks in prop::collection::vec((0_u64..2_000_000, stage(), 0_u64..1 << 30, 0_u64..1 << 30), 1..60),
    ) {
        let (mut history, mut at) = (History::default(), 0);
        let mut before = Report::default();
        let mut progress = figures();
        for (span, stage, copied, written) in looks {
            at += span;
            progress.stage = stage;
            // Bytes that were lost on the way may be taken back; a sum that people watch may not.
            progress.copied = copied;
            progress.written += written;
            history.see(Micros(at), &progress, Wire { sent: copied / 2, spared: copied / 3 });
            let report = history.report().clone();
            prop_assert_eq!(report.took, at);
            prop_assert_eq!(report.phases.iter().map(|phase| phase.took).sum::<u64>(), at);
            prop_assert!(report.rate.peak >= report.rate.average);
            prop_assert!(report.dirty_rate.peak >= report.dirty_rate.average);
            prop_assert!(report.transferred >= before.transferred && report.wire >= before.wire);
            prop_assert!(report.saved.packing >= before.saved.packing);
            prop_assert!(report.phases.len() >= before.phases.len());
            before = report;
        }
    }

    #[test]
    fn the_target_is_never_said_to_be_nearer_than_it_is(
        looks in prop::collection::vec((1_u64..200_000, 0_u64..50, 0.0_f64..1.0), 1..3000),
    ) {
        let (mut history, mut at, mut last, mut durable) = (History::default(), 0, 0, 0);
        // When each number was given out, as exactly as it was looked.
        let mut given = vec![0];
        let mut progress = figures();
        progress.stage = Stage::Synced;
        progress.scanned = progress.size;
        for (span, fresh, share) in looks {
            at += span;
            last += fresh;
            given.extend((0..fresh).map(|_| at));
            #[expect(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "any number will do")]
            let more = ((last - durable) as f64 * share) as u64;
            durable += more;
            progress.numbers = (last, durable);
            progress.unacknowledged = last - durable;
            history.see(Micros(at), &progress, Wire::default());
            let oldest_missing = given.get(durable as usize + 1).map_or(0, |since| at - since);
            if let Some(behind) = history.behind() {
                prop_assert!(behind >= oldest_missing, "{behind} {oldest_missing}");
            } else {
                prop_assert!(durable < last);
            }
        }
    }
}

#[test]
fn the_first_estimate_is_kept_and_what_came_of_it_is_said() {
    let mut history = History::default();
    let mut progress = figures();
    progress.stage = Stage::Copying;
    let estimate = |seconds| Estimate {
        seconds,
        least: seconds / 2,
        most: None,
    };
    let mut look = |at: u64, progress: &Progress| {
        history.see(Micros::from_secs(at), progress, Wire::default());
        history.report().forecast
    };
    assert_eq!(look(1, &progress), None);
    progress.estimate = Some(estimate(40));
    look(2, &progress);
    progress.estimate = Some(estimate(10));
    let forecast = look(3, &progress).expect("one");
    assert_eq!((forecast.estimate.seconds, forecast.took), (40, None));
    progress.stage = Stage::Synced;
    progress.estimate = None;
    assert_eq!(
        look(32, &progress).and_then(|forecast| forecast.took),
        Some(30)
    );
    progress.stage = Stage::Forwarding;
    assert_eq!(
        look(99, &progress).and_then(|forecast| forecast.took),
        Some(30)
    );
}
