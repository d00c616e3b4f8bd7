//! A target that was offered a disk, and what may come in between.

use super::*;
use crate::record::Ownership;
use crate::session::ConnId;
use crate::session::TargetConfig;
use crate::session::target::TargetEvent;
use crate::wire::{Begin, Hello, Standing, Start};

fn hello(session: u128, epoch: u64) -> Hello {
    Hello {
        session: Uuid::from_u128(session),
        epoch,
        ..super::super::tests::hello()
    }
}

fn tell(target: &mut Target, event: TargetEvent) -> Vec<TargetAction> {
    target.handle(Micros::from_secs(1), event);
    std::iter::from_fn(|| target.poll_action()).collect()
}

/// It has everything of an attempt, and asks; the question.
fn asking() -> (Target, Ballot) {
    let record = Ownership {
        disk: Uuid::from_u128(1),
        state: State::Prepared {
            session: Uuid::from_u128(5),
            attempt: 1,
            epoch: 2,
            claim: Some(ArbiterName {
                id: Uuid::from_u128(6),
                at: "third".into(),
            }),
        },
    };
    let mut target = Target::new(TargetConfig::default(), Some(record), true);
    let asked = tell(&mut target, TargetEvent::Tick);
    let [TargetAction::Claim { ballot, .. }] = asked[..] else {
        panic!("must ask: {asked:?}")
    };
    (target, ballot)
}

#[test]
fn a_disk_is_claimed_as_often_as_it_takes_and_owned_by_the_arbiter_s_word_only() {
    let (mut target, ballot) = asking();
    let away = Err(std::io::Error::other("away"));
    assert!(tell(&mut target, TargetEvent::Decided(ballot, away)).is_empty());
    target.handle(Micros::from_secs(3), TargetEvent::Tick);
    assert!(matches!(
        target.poll_action(),
        Some(TargetAction::Claim { .. })
    ));
    let other = Ballot {
        attempt: 2,
        ..ballot
    };
    let stale = tell(&mut target, TargetEvent::Decided(other, Ok(Side::Target)));
    assert!(
        !stale.iter().any(|a| matches!(a, TargetAction::Persist(_))),
        "{stale:?}"
    );
    let taken = tell(&mut target, TargetEvent::Decided(ballot, Ok(Side::Target)));
    assert!(taken.iter().any(|a| matches!(a, TargetAction::Persist(r)
        if matches!(r.state, State::Owner { epoch: 2, .. }))));
}

#[test]
fn what_another_session_begins_with_is_claimed_for_none_before() {
    let (mut target, ballot) = asking();
    let conn = ConnId(9);
    let welcome = tell(
        &mut target,
        TargetEvent::Message(conn, Message::Hello(hello(7, 4))),
    );
    assert!(matches!(
        welcome[..],
        [TargetAction::Send(_, Message::Welcome(Standing::Stale))]
    ));
    let begin = Message::Begin(Begin {
        start: Start::Compare,
        acked: 0,
        aborted: 0,
        follow: false,
        group: None,
    });
    let open = tell(&mut target, TargetEvent::Message(conn, begin));
    assert!(
        matches!(open[..], [TargetAction::Open { fresh: false, .. }]),
        "{open:?}"
    );
    // The source of that session was forced, and this answer is late.
    let late = tell(&mut target, TargetEvent::Decided(ballot, Ok(Side::Target)));
    assert!(
        !late.iter().any(|a| matches!(a, TargetAction::Persist(_))),
        "{late:?}"
    );
    let opened = tell(&mut target, TargetEvent::Opened(Ok(())));
    assert!(
        opened.iter().any(|a| matches!(a, TargetAction::Persist(r)
        if matches!(r.state, State::Receiving { .. }))),
        "{opened:?}"
    );
}

#[test]
fn only_the_question_that_is_asked_last_makes_it_ready() {
    let mut target = Target::new(
        TargetConfig {
            arbiter: Some("third".into()),
            ..TargetConfig::default()
        },
        None,
        false,
    );
    let conn = ConnId(1);
    tell(
        &mut target,
        TargetEvent::Message(conn, Message::Hello(hello(5, 1))),
    );
    let begin = Message::Begin(Begin {
        start: Start::Fresh,
        acked: 0,
        aborted: 0,
        follow: false,
        group: None,
    });
    tell(&mut target, TargetEvent::Message(conn, begin));
    tell(&mut target, TargetEvent::Persisted(Ok(())));
    tell(&mut target, TargetEvent::Opened(Ok(())));
    tell(&mut target, TargetEvent::Persisted(Ok(())));
    for attempt in [1, 2] {
        let arbiter = Some(Uuid::from_u128(6));
        let asked = tell(
            &mut target,
            TargetEvent::Message(conn, Message::Prepare { attempt, arbiter }),
        );
        assert!(
            matches!(asked[..], [TargetAction::Reach { .. }]),
            "{asked:?}"
        );
    }
    let ready = |actions: &[TargetAction]| {
        actions
            .iter()
            .any(|a| matches!(a, TargetAction::Send(_, Message::Ready { .. })))
    };
    assert!(
        !ready(&tell(&mut target, TargetEvent::Reached(1, Ok(())))),
        "a late answer"
    );
    assert!(ready(&tell(&mut target, TargetEvent::Reached(2, Ok(())))));
    assert!(
        !ready(&tell(&mut target, TargetEvent::Reached(2, Ok(())))),
        "twice"
    );
}
