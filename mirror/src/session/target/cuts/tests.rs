//! What a target makes of cuts, and of a source that does not keep to them.

use super::super::tests::{
    CONTROL, SESSION, empty_marker, fails, marker_after, oblige, record, say, streaming,
    streaming_in, tell,
};
use super::*;
use crate::session::TargetEvent;
use crate::wire::{Final, Marker, Record};

const GROUP: Group = Group {
    id: Uuid::from_u128(8),
    sequence: Uuid::from_u128(9),
};

/// A cut through two disks after one record.
fn cut_after(id: u64, record: &Record) -> Message {
    Message::Marker(Marker {
        disks: 2,
        ..marker_after(id, record)
    })
}

/// Carry out everything but what is carried over, and what was asked of that and of the group.
fn oblige_but_carrying(target: &mut Target, mut actions: Vec<TargetAction>) -> Vec<TargetAction> {
    let mut kept = Vec::new();
    while !actions.is_empty() {
        let (of_group, rest): (Vec<_>, Vec<_>) = actions.into_iter().partition(|action| {
            matches!(
                action,
                TargetAction::Apply(..) | TargetAction::Reached { .. }
            )
        });
        kept.extend(of_group);
        actions = Vec::new();
        for action in rest {
            let event = match action {
                TargetAction::Flush(op)
                | TargetAction::StartJournal { op, .. }
                | TargetAction::Write(op, ..)
                | TargetAction::Journal(op, ..)
                | TargetAction::Mark { op, .. } => TargetEvent::Disk(op, Ok(())),
                TargetAction::Persist(_) => TargetEvent::Persisted(Ok(())),
                _ => continue,
            };
            actions.extend(tell(target, event));
        }
    }
    kept
}

/// Of a group, and at the cut with the number 3.
fn joined() -> Target {
    let mut target = streaming_in(Some(GROUP));
    let first = record(2, 0);
    let mut actions = say(&mut target, CONTROL, Message::Record(first.clone()));
    actions.extend(say(&mut target, CONTROL, cut_after(1, &first)));
    let asked = oblige_but_carrying(&mut target, actions);
    assert!(
        matches!(
            asked[..],
            [TargetAction::Reached {
                group: GROUP,
                session: SESSION,
                cut: 2,
                disks: 2
            }]
        ),
        "{asked:?}"
    );
    assert!(!target.is_joined());
    let told = tell(&mut target, TargetEvent::Cut(SESSION, 2));
    let asked = oblige_but_carrying(&mut target, told);
    assert!(target.is_joined());
    assert!(
        matches!(asked[..], [TargetAction::Apply(_, Upto::Cut(2))]),
        "{asked:?}"
    );
    oblige(&mut target, asked);
    target
}

#[test]
fn a_disk_of_a_group_is_carried_over_when_it_is_told_and_only_as_far() {
    let mut target = joined();
    for (id, seq) in [(2, 5), (3, 8)] {
        let next = record(seq, 4096);
        let mut actions = say(&mut target, CONTROL, Message::Record(next.clone()));
        actions.extend(say(&mut target, CONTROL, cut_after(id, &next)));
        let asked = oblige_but_carrying(&mut target, actions);
        assert!(
            matches!(asked[..], [TargetAction::Reached { cut, .. }] if cut == seq),
            "{asked:?}"
        );
    }
    // Of another session, of a cut that it does not have.
    for (session, cut) in [(Uuid::from_u128(6), 5), (SESSION, 7)] {
        let told = tell(&mut target, TargetEvent::Cut(session, cut));
        assert!(told.is_empty(), "{told:?}");
    }
    // One was let go by; the next one is it.
    let told = tell(&mut target, TargetEvent::Cut(SESSION, 8));
    assert!(
        matches!(told[..], [TargetAction::Apply(_, Upto::Cut(8))]),
        "{told:?}"
    );
}

#[test]
fn a_disk_that_is_to_be_handed_over_leaves_its_group_before_it_says_that_it_is_ready() {
    let mut target = joined();
    let attempt = 1;
    let arbiter = None;
    let prepare = Message::Prepare { attempt, arbiter };
    let left = say(&mut target, CONTROL, prepare);
    let records = |action: &TargetAction| matches!(action, TargetAction::Persist(_));
    let says =
        |action: &TargetAction| matches!(action, TargetAction::Send(_, Message::Ready { .. }));
    assert!(
        left.iter().any(records) && !left.iter().any(says),
        "{left:?}"
    );
    let ready = tell(&mut target, TargetEvent::Persisted(Ok(())));
    assert!(!target.is_joined() && ready.iter().any(says), "{ready:?}");
    // What the group says of the time before does not count any more.
    assert!(tell(&mut target, TargetEvent::Cut(SESSION, 2)).is_empty());
}

#[test]
fn a_source_that_does_not_keep_to_the_cuts_of_a_group_is_cut_off() {
    let cut = || Marker {
        disks: 2,
        ..empty_marker(1)
    };
    let mut alone = streaming();
    assert!(fails(&say(&mut alone, CONTROL, Message::Marker(cut()))));
    let mut of_group = streaming_in(Some(GROUP));
    let marker = empty_marker(1);
    assert!(fails(&say(&mut of_group, CONTROL, Message::Marker(marker))));
    // The final marker of a disk that has not left, and a record beyond a cut that comes before it.
    let mut target = joined();
    let last = Final {
        attempt: 1,
        chunks: 0,
        arbiter: None,
        marker: Marker {
            seq: 2,
            ..empty_marker(2)
        },
    };
    assert!(fails(&say(&mut target, CONTROL, Message::Final(last))));
    let mut target = joined();
    let beyond = record(9, 0);
    say(&mut target, CONTROL, Message::Record(beyond.clone()));
    let late = Message::Marker(Marker {
        seq: 8,
        disks: 2,
        ..marker_after(2, &beyond)
    });
    assert!(fails(&say(&mut target, CONTROL, late)));
}
