//! A source whose offer meets what it hoped would not happen.

use std::sync::Arc;

use uuid::Uuid;
use vdisk::engine::Extent;

use super::*;
use crate::clock::Micros;
use crate::record::{Ownership, State};
use crate::saved::Kin;
use crate::sequence::Place;
use crate::session::source::tests::description;
use crate::session::{Command, ConnId, SourceEvent, Stage};
use crate::tracker::Tracker;
use crate::wire::Message;

const SIZE: u64 = 1 << 20;

/// A source, the time, and the connection that it opened last.
struct Lone {
    source: Source,
    now: Micros,
    conn: ConnId,
}

impl Lone {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut SourceConfig)) -> Self {
        let mut config = SourceConfig::new(Uuid::from_u128(5), "b".into(), description());
        config.handover.how = Switchover::Fast;
        config.handover.arbiter = Some(ArbiterName {
            id: Uuid::from_u128(6),
            at: "third".into(),
        });
        change(&mut config);
        let record = Ownership::first(Uuid::from_u128(1));
        let tracker = Arc::new(Tracker::new(SIZE, 1 << 20));
        Self {
            source: Source::new(config, &record, tracker).unwrap(),
            now: Micros::from_secs(1),
            conn: ConnId(0),
        }
    }

    fn tell(&mut self, event: SourceEvent) -> Vec<SourceAction> {
        self.source.handle(self.now, event);
        let actions: Vec<_> = std::iter::from_fn(|| self.source.poll_action()).collect();
        for action in &actions {
            if let SourceAction::Connect(conn, 0) = action {
                self.conn = *conn;
            }
        }
        actions
    }

    fn say(&mut self, message: Message) -> Vec<SourceAction> {
        self.tell(SourceEvent::Message(self.conn, message))
    }

    fn pass(&mut self, seconds: u64) -> Vec<SourceAction> {
        self.now += Micros::from_secs(seconds);
        self.tell(SourceEvent::Tick)
    }

    fn greet(&mut self, standing: Standing) -> Vec<SourceAction> {
        self.tell(SourceEvent::Connected(self.conn));
        self.say(Message::Welcome(standing))
    }

    /// Begun and in step.
    fn synced() -> Self {
        Self::new().in_step()
    }

    fn in_step(self) -> Self {
        let mut lone = self;
        lone.tell(SourceEvent::Tick);
        // By then all of a group are there.
        lone.pass(1);
        lone.greet(Standing::Empty);
        lone.say(Message::Begun {
            window: 1 << 20,
            address: String::new(),
            templates: false,
        });
        let asked = lone.tell(SourceEvent::Attached(Ok(())));
        let op = asked.iter().find_map(|action| match action {
            SourceAction::Status(op, ..) => Some(*op),
            _ => None,
        });
        let nothing = vec![Extent {
            len: SIZE,
            allocated: false,
            zero: true,
        }];
        lone.tell(SourceEvent::Status(op.expect("it asks"), Ok(nothing)));
        assert_eq!(lone.source.progress().stage, Stage::Synced);
        lone
    }

    fn cut_over(&mut self) {
        let cutover = Command::Cutover {
            max_pause: None,
            how: None,
        };
        self.tell(SourceEvent::Command(cutover));
    }

    /// The offer is durable, and said.
    fn offered() -> Self {
        let mut lone = Self::synced();
        lone.cut_over();
        lone.tell(SourceEvent::Reached(1, Ok(())));
        lone.say(Message::Ready { attempt: 1 });
        lone.tell(SourceEvent::Held(1));
        lone.tell(SourceEvent::Parked(Ok(())));
        let last = lone.tell(SourceEvent::Persisted(Ok(())));
        assert!(has(&last, |a| matches!(
            a,
            SourceAction::Send(_, Message::Final(_))
        )));
        assert_eq!(lone.source.phase(), Phase::Offered);
        lone
    }

    /// The link is lost, and there again.
    fn reconnect(&mut self, standing: Standing) -> Vec<SourceAction> {
        self.tell(SourceEvent::Closed(self.conn, "lost".into()));
        self.pass(3);
        self.greet(standing)
    }
}

fn has(actions: &[SourceAction], wanted: impl Fn(&SourceAction) -> bool) -> bool {
    actions.iter().any(wanted)
}

fn forwards(actions: &[SourceAction]) -> bool {
    has(actions, |a| matches!(a, SourceAction::Forward(_)))
}

#[test]
fn a_target_that_has_taken_the_disk_is_enough_when_the_arbiter_is_away() {
    let mut lone = Lone::offered();
    let asked = lone.reconnect(Standing::Owner { epoch: 2 });
    let grant = |a: &SourceAction| {
        matches!(
            a,
            SourceAction::Send(
                _,
                Message::Grant {
                    attempt: 1,
                    epoch: 2
                }
            )
        )
    };
    assert!(has(&asked, grant), "{asked:?}");
    let running = Message::Running {
        epoch: 2,
        address: "there".into(),
    };
    let last = lone.say(running);
    assert!(forwards(&last), "{last:?}");
    assert!(has(
        &last,
        |a| matches!(a, SourceAction::Persist(r) if matches!(r.state, State::Released { .. }))
    ));
}

#[test]
fn a_disk_of_a_group_is_granted_again_as_it_was_when_the_link_is_lost_after_its_record() {
    let kin = Kin {
        disk: Uuid::from_u128(1),
        name: "disk".into(),
        path: "/disks/disk".into(),
    };
    let place = Place::all(vec![kin], Uuid::from_u128(2)).pop();
    let lone = Lone::with(|config| {
        config.handover.how = Switchover::Safe;
        config.handover.arbiter = None;
        config.replica.group = place;
    });
    let mut lone = lone.in_step();
    lone.cut_over();
    lone.say(Message::Ready { attempt: 1 });
    lone.tell(SourceEvent::Held(1));
    lone.say(Message::CommitRequest { attempt: 1 });
    lone.tell(SourceEvent::Parked(Ok(())));
    let granted = |actions: &[SourceAction]| {
        let granted = Message::Grant {
            attempt: 1,
            epoch: 2,
        };
        has(
            actions,
            |a| matches!(a, SourceAction::Send(_, said) if *said == granted),
        )
    };
    let first = lone.tell(SourceEvent::Persisted(Ok(())));
    assert!(granted(&first), "{first:?}");
    let again = lone.reconnect(Standing::Prepared { attempt: 1 });
    assert!(granted(&again), "{again:?}");
    let hello = has(
        &again,
        |a| matches!(a, SourceAction::Send(_, Message::Grant { attempt, .. }) if *attempt != 1),
    );
    assert!(!hello, "{again:?}");
}

#[test]
fn a_session_that_is_cancelled_after_its_offer_still_hears_its_target() {
    let mut lone = Lone::offered();
    let asked = lone.tell(SourceEvent::Command(Command::Cancel));
    assert!(has(&asked, |a| matches!(a, SourceAction::Reclaim { .. })));
    lone.tell(SourceEvent::Decided(
        lone.source.switch.ballot(),
        Err(std::io::Error::other("away")),
    ));
    let again = lone.pass(3);
    assert!(
        has(&again, |a| matches!(a, SourceAction::Connect(_, 0))),
        "{again:?}"
    );
    let asked = lone.greet(Standing::Owner { epoch: 2 });
    assert!(has(&asked, |a| matches!(
        a,
        SourceAction::Send(_, Message::Grant { .. })
    )));
    let running = Message::Running {
        epoch: 2,
        address: "there".into(),
    };
    assert!(forwards(&lone.say(running)));
    lone.tell(SourceEvent::Persisted(Ok(())));
    assert!(matches!(lone.source.outcome(), Some(Ok(()))));
}

#[test]
fn a_target_that_was_forced_does_not_get_what_was_offered() {
    let mut lone = Lone::offered();
    let running = Message::Running {
        epoch: 3,
        address: "there".into(),
    };
    assert!(!forwards(&lone.say(running)), "nobody gave it that epoch");
    let asked = lone.reconnect(Standing::Owner { epoch: 3 });
    assert!(
        has(&asked, |a| matches!(a, SourceAction::Reclaim { .. })),
        "{asked:?}"
    );
    assert!(!has(&asked, |a| matches!(
        a,
        SourceAction::Send(_, Message::Grant { .. })
    )));
}

#[test]
fn what_was_answered_to_an_earlier_attempt_changes_nothing() {
    let mut lone = Lone::synced();
    lone.cut_over();
    lone.tell(SourceEvent::Reached(1, Err(std::io::Error::other("away"))));
    assert_eq!(lone.source.phase(), Phase::Owner);
    lone.cut_over();
    assert_eq!(lone.source.phase(), Phase::Preparing);
    lone.say(Message::Ready { attempt: 2 });
    lone.say(Message::Ready { attempt: 1 });
    lone.tell(SourceEvent::Reached(1, Ok(())));
    assert_eq!(lone.source.phase(), Phase::Preparing);
    let hold = lone.tell(SourceEvent::Reached(2, Ok(())));
    assert!(
        has(&hold, |a| matches!(a, SourceAction::Hold(2))),
        "{hold:?}"
    );
}

#[test]
fn an_arbiter_that_is_away_costs_the_mirror_nothing() {
    let mut lone = Lone::synced();
    lone.cut_over();
    let given_up = lone.tell(SourceEvent::Reached(1, Err(std::io::Error::other("away"))));
    assert!(
        !has(&given_up, |a| matches!(a, SourceAction::Close(_))),
        "{given_up:?}"
    );
    assert_eq!(lone.source.progress().given_up, 1);
    // What was said before a link was lost says nothing of the next one.
    let mut lone = Lone::synced();
    lone.cut_over();
    lone.say(Message::Ready { attempt: 1 });
    lone.tell(SourceEvent::Closed(lone.conn, "lost".into()));
    let reached = lone.tell(SourceEvent::Reached(1, Ok(())));
    assert!(
        !has(&reached, |a| matches!(a, SourceAction::Hold(_))),
        "{reached:?}"
    );
}
