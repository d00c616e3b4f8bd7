//! What a source makes of a target that breaks the rules, and of a user who changes their mind.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;
use vdisk::engine::{Extent, Mark};
use vdisk::tap::{Change, WriteTap};
use vdisk::units::GuestOffset;

use super::*;
use crate::contract::Seen;
use crate::saved::Kin;
use crate::sequence::Place;
use crate::session::Stage;
use crate::wire::{Begin, DiskDescription, DiskFormat, Standing, Start};

const SIZE: u64 = 1 << 20;

/// The disk of these tests.
pub(super) fn description() -> DiskDescription {
    DiskDescription {
        name: "disk".into(),
        size: SIZE,
        block_size: 1 << 20,
        logical_sector: 512,
        physical_sector: 4096,
        format: DiskFormat::Vhdx,
    }
}

fn source() -> (Source, Arc<Tracker>) {
    let config = SourceConfig::new(Uuid::from_u128(5), "b".into(), description());
    let tracker = Arc::new(Tracker::new(SIZE, 1 << 20));
    let record = Ownership::first(Uuid::from_u128(1));
    (
        Source::new(config, &record, Arc::clone(&tracker)).unwrap(),
        tracker,
    )
}

fn actions(source: &mut Source) -> Vec<SourceAction> {
    std::iter::from_fn(|| source.poll_action()).collect()
}

fn tell(source: &mut Source, event: SourceEvent) -> Vec<SourceAction> {
    source.handle(Micros::from_secs(1), event);
    actions(source)
}

fn say(source: &mut Source, message: Message) -> Vec<SourceAction> {
    tell(source, SourceEvent::Message(ConnId(1), message))
}

/// Connected, begun, the tap on, nothing allocated.
fn synced() -> (Source, Arc<Tracker>) {
    let (mut source, tracker) = source();
    let first = tell(&mut source, SourceEvent::Tick);
    assert!(matches!(first[..], [SourceAction::Connect(ConnId(1), 0)]));
    tell(&mut source, SourceEvent::Connected(ConnId(1)));
    let begin = say(&mut source, Message::Welcome(Standing::Empty));
    assert!(matches!(
        begin[..],
        [SourceAction::Send(
            _,
            Message::Begin(Begin {
                start: Start::Fresh,
                acked: 0,
                aborted: 0,
                follow: false,
                group: None,
            })
        )]
    ));
    let set = say(
        &mut source,
        Message::Begun {
            window: 1 << 20,
            address: String::new(),
            templates: false,
        },
    );
    assert!(set.iter().any(|a| matches!(a, SourceAction::AttachTap)));
    let asked = tell(&mut source, SourceEvent::Attached(Ok(())));
    let Some(op) = asked.iter().find_map(|a| match a {
        SourceAction::Status(op, 0, SIZE) => Some(*op),
        _ => None,
    }) else {
        panic!("must ask what is allocated: {asked:?}")
    };
    let nothing = vec![Extent {
        len: SIZE,
        allocated: false,
        zero: true,
    }];
    tell(&mut source, SourceEvent::Status(op, Ok(nothing)));
    assert_eq!(source.progress().stage, Stage::Synced);
    (source, tracker)
}

/// In the middle of a switchover: the target has asked for the commit.
fn marking() -> Source {
    let (mut source, _) = synced();
    let prepare = tell(
        &mut source,
        SourceEvent::Command(Command::Cutover {
            max_pause: None,
            how: None,
        }),
    );
    assert!(
        prepare
            .iter()
            .any(|a| matches!(a, SourceAction::Send(_, Message::Prepare { .. })))
    );
    let hold = say(&mut source, Message::Ready { attempt: 1 });
    assert!(matches!(hold[..], [SourceAction::Hold(1)]));
    let last = tell(&mut source, SourceEvent::Held(1));
    assert!(
        last.iter()
            .any(|a| matches!(a, SourceAction::Send(_, Message::Final(_))))
    );
    let park = say(&mut source, Message::CommitRequest { attempt: 1 });
    assert!(matches!(
        park[..],
        [SourceAction::Park(Some(Mark::HandedOver))]
    ));
    source
}

#[test]
fn no_switchover_begins_while_the_target_looks_at_something() {
    let (mut source, _) = synced();
    tell(&mut source, SourceEvent::Connected(ConnId(2)));
    let asked = tell(&mut source, SourceEvent::Command(Command::Verify));
    let [SourceAction::Status(op, 0, SIZE)] = asked[..] else {
        panic!("must ask what is allocated: {asked:?}")
    };
    let nothing = vec![Extent {
        len: SIZE,
        allocated: false,
        zero: true,
    }];
    let looks = tell(&mut source, SourceEvent::Status(op, Ok(nothing)));
    let [SourceAction::Send(ConnId(2), Message::Look(look))] = &looks[..] else {
        panic!("{looks:?}");
    };
    let prepares = |actions: &[SourceAction]| {
        let prepare =
            |a: &SourceAction| matches!(a, SourceAction::Send(_, Message::Prepare { .. }));
        actions.iter().any(prepare)
    };
    let cutover = Command::Cutover {
        max_pause: None,
        how: None,
    };
    let waits = tell(&mut source, SourceEvent::Command(cutover));
    assert!(!prepares(&waits), "{waits:?}");
    let seen = Message::Seen {
        id: look.id,
        unlike: 0,
        unknown: 0,
    };
    let goes_on = say(&mut source, seen);
    assert!(prepares(&goes_on), "{goes_on:?}");
}

#[test]
fn clients_that_are_slowed_down_for_a_switchover_are_let_go_when_the_link_is_lost() {
    let (mut source, tracker) = synced();
    let at = |millis: u64| Micros::from_millis(1000 + millis);
    // A line that carries 1 MB a second, and clients that write twice as much.
    for tick in 0..20 {
        let seen = Seen {
            left: 10 << 20,
            done: tick * 250_000,
            written: tick * 500_000,
            added: tick * 500_000,
            connected: true,
        };
        source.pace.contract.look(at(tick * 250), seen);
    }
    let mut tell = |millis, event| {
        source.handle(at(millis), event);
        actions(&mut source)
    };
    let brakes = |actions: &[SourceAction]| {
        let mut brakes = actions.iter().filter_map(|action| match action {
            SourceAction::Brake(brake) => Some(brake.is_some()),
            _ => None,
        });
        brakes.next_back()
    };
    tell(4760, SourceEvent::Message(ConnId(1), Message::Beat));
    tracker.changed(GuestOffset(0), Change::Data(Bytes::from(vec![1; 200_000])));
    let cutover = Command::Cutover {
        max_pause: Some(Micros::from_secs(1)),
        how: None,
    };
    let slowed = tell(4770, SourceEvent::Command(cutover));
    assert_eq!(brakes(&slowed), Some(true), "{slowed:?}");
    tell(4780, SourceEvent::Closed(ConnId(1), "lost".into()));
    let later = tell(5100, SourceEvent::Tick);
    assert_eq!(brakes(&later), Some(false), "{later:?}");
}

#[test]
fn the_rate_that_was_asked_for_does_not_lengthen_the_pause() {
    let (mut source, tracker) = synced();
    tell(&mut source, SourceEvent::Connected(ConnId(2)));
    source.pace.bucket.set_rate(Some(1));
    source.pace.bucket.spend(1 << 20);
    tracker.mark(0, 4096);
    let reads = |actions: &[SourceAction]| {
        let read = |action: &SourceAction| matches!(action, SourceAction::Read(_, 0, 4096));
        actions.iter().any(read)
    };
    let waits = tell(&mut source, SourceEvent::Tick);
    assert!(!reads(&waits), "{waits:?}");
    let whatever = Command::Cutover {
        max_pause: Some(Micros(u64::MAX)),
        how: None,
    };
    tell(&mut source, SourceEvent::Command(whatever));
    let held = say(&mut source, Message::Ready { attempt: 1 });
    let holds = held.iter().any(|a| matches!(a, SourceAction::Hold(1)));
    assert!(holds, "{held:?}");
    assert!(reads(&held), "{held:?}");
}

#[test]
fn a_target_that_acknowledges_what_was_never_sent_ends_the_session_and_nothing_else() {
    for lie in [
        Message::ChunksDone(vec![7]),
        Message::Durable {
            marker: 99,
            chunks: 0,
        },
        Message::Begun {
            window: 1,
            address: String::new(),
            templates: false,
        },
        Message::Welcome(Standing::Empty),
        Message::Prepare {
            attempt: 1,
            arbiter: None,
        },
    ] {
        let (mut source, _) = synced();
        let actions = say(&mut source, lie.clone());
        assert!(
            actions.iter().any(|a| matches!(a, SourceAction::DetachTap)),
            "{lie:?}"
        );
        assert!(source.is_over() && source.phase() == Phase::Owner);
        let error = source
            .outcome()
            .and_then(|o| o.as_ref().err())
            .map(Error::kind);
        assert_eq!(error, Some(ErrorKind::PeerMisbehaved));
    }
}

#[test]
fn early_words_of_the_switchover_change_nothing() {
    let (mut source, _) = synced();
    for early in [
        Message::Ready { attempt: 1 },
        Message::CommitRequest { attempt: 1 },
        Message::Running {
            epoch: 2,
            address: "b".into(),
        },
    ] {
        assert!(say(&mut source, early).is_empty());
    }
    assert_eq!(source.phase(), Phase::Owner);
}

#[test]
fn a_write_that_was_acknowledged_travels_and_is_kept_until_it_is_durable_there() {
    let (mut source, tracker) = synced();
    let data = Bytes::from(vec![7; 4096]);
    tracker.changed(GuestOffset(8192), Change::Data(data.clone()));
    let sent = tell(&mut source, SourceEvent::Tick);
    let expected = crate::wire::Record {
        seq: 1,
        offset: 8192,
        content: crate::wire::Content::Data(data),
    };
    assert!(sent.iter().any(|a| {
        matches!(a, SourceAction::Send(_, Message::Record(record)) if *record == expected)
    }));
    assert!(tracker.figures().held > 4096);
    let marker = sent.iter().find_map(|a| match a {
        SourceAction::Send(_, Message::Marker(marker)) => Some(marker.clone()),
        _ => None,
    });
    let marker = marker.unwrap();
    assert_eq!((marker.seq, marker.count), (1, 1));
    say(
        &mut source,
        Message::Durable {
            marker: marker.id,
            chunks: 0,
        },
    );
    assert_eq!(tracker.figures().held, 0);
}

#[test]
fn cancelling_before_the_deciding_record_takes_the_mark_out_and_lets_the_guest_go_on() {
    let mut source = marking();
    tell(&mut source, SourceEvent::Command(Command::Cancel));
    let unmark = tell(&mut source, SourceEvent::Parked(Ok(())));
    assert!(matches!(unmark[..], [SourceAction::Park(None)]));
    let resumed = tell(&mut source, SourceEvent::Parked(Ok(())));
    assert!(matches!(resumed[..], [SourceAction::Release, ..]));
    assert!(source.is_over());
}

#[test]
fn cancelling_after_the_deciding_record_was_submitted_is_too_late() {
    let mut source = marking();
    let decide = tell(&mut source, SourceEvent::Parked(Ok(())));
    assert!(matches!(decide[..], [SourceAction::Persist(_)]));
    assert!(tell(&mut source, SourceEvent::Command(Command::Cancel)).is_empty());
    // A failed write may have happened: it is written again, and nothing is granted or released.
    let failed = Err(std::io::Error::other("no space"));
    let again = tell(&mut source, SourceEvent::Persisted(failed));
    assert!(matches!(again[..], [SourceAction::Persist(_)]));
    let grant = tell(&mut source, SourceEvent::Persisted(Ok(())));
    let granted = Message::Grant {
        attempt: 1,
        epoch: 2,
    };
    assert!(matches!(&grant[..], [SourceAction::Send(_, message)] if *message == granted));
    let done = say(
        &mut source,
        Message::Running {
            epoch: 2,
            address: "tcp:b:1".into(),
        },
    );
    assert!(matches!(&done[0], SourceAction::Forward(to) if to == "tcp:b:1"));
    assert!(source.is_over() && matches!(source.outcome(), Some(Ok(()))));
}

#[test]
fn a_target_that_lost_what_it_acknowledged_is_found_out() {
    let (mut source, _) = synced();
    tell(&mut source, SourceEvent::Closed(ConnId(1), "cut".into()));
    source.handle(Micros::from_secs(2), SourceEvent::Tick);
    let conn = actions(&mut source).into_iter().find_map(|a| match a {
        SourceAction::Connect(conn, 0) => Some(conn),
        _ => None,
    });
    let conn = conn.unwrap();
    let now = Micros::from_secs(2);
    source.handle(now, SourceEvent::Connected(conn));
    source.handle(
        now,
        SourceEvent::Message(conn, Message::Welcome(Standing::Empty)),
    );
    let error = source
        .outcome()
        .and_then(|o| o.as_ref().err())
        .map(Error::kind);
    assert_eq!(error, Some(ErrorKind::PeerLostState));
}

#[test]
fn a_host_that_does_not_own_the_disk_starts_no_session() {
    let (source, tracker) = source();
    let state = State::Receiving {
        session: Uuid::nil(),
        epoch: 1,
    };
    let record = Ownership {
        disk: Uuid::from_u128(1),
        state,
    };
    let refused = Source::new(source.config.clone(), &record, tracker);
    assert_eq!(refused.map(|_| ()).unwrap_err().kind(), ErrorKind::NotOwned);
}

/// The disk of that place in its group, which is kept.
fn of_group(place: &Place) -> Source {
    let mut config = SourceConfig::new(Uuid::new_v4(), "b".into(), description());
    let spare = Uuid::new_v4();
    config.keep = Keep::Session { spare };
    config.replica.follow = true;
    config.replica.group = Some(place.clone());
    let sequence = Arc::clone(&place.sequence);
    let tracker = Arc::new(Tracker::in_sequence(SIZE, 1 << 20, sequence));
    let record = Ownership::first(Uuid::from_u128(1));
    Source::new(config, &record, tracker).unwrap()
}

fn kin(disk: u128) -> Kin {
    Kin {
        disk: Uuid::from_u128(disk),
        name: "disk".into(),
        path: "/disk".into(),
    }
}

/// The same, after a crash, of which that life was kept.
fn back_in_group(place: &Place, life: u64) -> Source {
    let alone = Place::all(vec![kin(1)], Uuid::from_u128(8));
    let mut before = of_group(&alone[0]);
    let kept = tell(&mut before, SourceEvent::Tick);
    let [SourceAction::Save(Some(kept))] = &kept[..] else {
        panic!("it keeps nothing: {kept:?}");
    };
    let mut saved = kept.as_ref().clone();
    saved.life = life;
    saved.group = Some(place.together.as_ref().clone());
    let mut config = before.config.clone();
    config.replica.group = Some(place.clone());
    let sequence = Arc::clone(&place.sequence);
    let tracker = Arc::new(Tracker::in_sequence(SIZE, 1 << 20, sequence));
    let record = Ownership::first(Uuid::from_u128(1));
    Source::resumed(config, &record, tracker, (&saved, &[])).unwrap()
}

/// The life that these write down, and nothing else.
fn written_life(actions: &[SourceAction]) -> Option<u64> {
    match actions {
        [SourceAction::Save(Some(saved))] => Some(saved.life),
        _ => None,
    }
}

fn connects(actions: &[SourceAction]) -> bool {
    matches!(actions, [SourceAction::Connect(_, 0)])
}

#[test]
fn a_disk_of_a_group_says_nothing_before_all_are_there_and_have_their_life_written_down() {
    let places = Place::all(vec![kin(1), kin(2)], Uuid::from_u128(9));
    let mut first = of_group(&places[0]);
    assert!(tell(&mut first, SourceEvent::Tick).is_empty());
    assert_eq!(first.awaits(), ["/disk"], "the other one is not there yet");
    let mut second = of_group(&places[1]);
    assert_eq!(written_life(&tell(&mut second, SourceEvent::Tick)), Some(0));
    assert_eq!(written_life(&tell(&mut first, SourceEvent::Tick)), Some(0));
    assert!(tell(&mut first, SourceEvent::Saved(Ok(()))).is_empty());
    // One that cannot be kept is just not kept: it never comes back.
    let failed = std::io::Error::other("injected");
    assert!(connects(&tell(
        &mut second,
        SourceEvent::Saved(Err(failed))
    )));
    assert!(connects(&tell(&mut first, SourceEvent::Tick)));
}

#[test]
fn disks_that_come_back_say_nothing_before_each_has_written_down_the_life_after_all_that_were() {
    let places = Place::all(vec![kin(1), kin(2)], Uuid::from_u128(9));
    let mut first = back_in_group(&places[0], 3);
    let attaches = |actions: &[SourceAction]| matches!(actions, [SourceAction::AttachTap]);
    assert!(attaches(&tell(&mut first, SourceEvent::Tick)));
    assert!(tell(&mut first, SourceEvent::Attached(Ok(()))).is_empty());
    assert_eq!(first.awaits(), ["/disk"]);
    let mut second = back_in_group(&places[1], 4);
    assert_eq!(written_life(&tell(&mut first, SourceEvent::Tick)), Some(5));
    assert!(first.awaits().is_empty());
    let begun = tell(&mut second, SourceEvent::Tick);
    assert!(
        begun
            .iter()
            .any(|a| matches!(a, SourceAction::Save(Some(saved)) if saved.life == 5))
    );
    tell(&mut second, SourceEvent::Attached(Ok(())));
    let failed = std::io::Error::other("injected");
    assert!(tell(&mut second, SourceEvent::Saved(Err(failed))).is_empty());
    assert!(tell(&mut first, SourceEvent::Saved(Ok(()))).is_empty());
    second.handle(Micros::from_secs(60), SourceEvent::Tick);
    assert_eq!(written_life(&actions(&mut second)), Some(5));
    assert!(!connects(&tell(&mut first, SourceEvent::Tick)));
    assert!(connects(&tell(&mut second, SourceEvent::Saved(Ok(())))));
    assert!(connects(&tell(&mut first, SourceEvent::Tick)));
}

#[test]
fn who_is_cancelled_while_it_waits_keeps_nothing_and_nobody_goes_on_without_it() {
    let places = Place::all(vec![kin(1), kin(2)], Uuid::from_u128(9));
    let mut first = of_group(&places[0]);
    let removed = tell(&mut first, SourceEvent::Command(Command::Cancel));
    let forgets = |a: &SourceAction| matches!(a, SourceAction::Save(None));
    assert!(removed.iter().any(forgets), "{removed:?}");
    tell(&mut first, SourceEvent::Saved(Ok(())));
    assert!(first.is_over());
    let mut second = of_group(&places[1]);
    tell(&mut second, SourceEvent::Tick);
    tell(&mut second, SourceEvent::Saved(Ok(())));
    assert!(matches!(second.outcome(), Some(Err(_))));
}

proptest! {
    #[test]
    fn no_sequence_of_messages_makes_it_panic_or_grant_by_itself(
        messages in prop::collection::vec(crate::wire::tests::message(), 1..40),
    ) {
        let (mut source, _) = synced();
        for message in messages {
            let actions = say(&mut source, message);
            // Nobody asked for a switchover: nothing the target says may begin one.
            let moved = actions.iter().any(|a| {
                matches!(a, SourceAction::Hold(_) | SourceAction::Park(_) | SourceAction::Persist(_))
            });
            prop_assert!(!moved && source.phase() == Phase::Owner);
        }
    }
}
