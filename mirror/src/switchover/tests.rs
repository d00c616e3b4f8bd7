//! The rules of ownership one by one; the simulation tries them together.

use vdisk::engine::Mark;

use super::*;
use crate::arbiter::{ArbiterName, Side};
use crate::wire::{DiskDescription, DiskFormat, Hello, Refusal, Standing};

const DISK: Uuid = Uuid::from_u128(1);
const SESSION: Uuid = Uuid::from_u128(2);

fn hello(session: Uuid, epoch: u64) -> Hello {
    Hello {
        session,
        disk: DISK,
        epoch,
        incarnation: 1,
        description: DiskDescription {
            name: "d".into(),
            size: 4096,
            block_size: 0,
            logical_sector: 512,
            physical_sector: 4096,
            format: DiskFormat::Raw,
        },
    }
}

fn target(state: State) -> TargetSwitch {
    TargetSwitch::new(Some(Ownership { disk: DISK, state }), true)
}

fn arbiter() -> ArbiterName {
    ArbiterName {
        id: Uuid::from_u128(5),
        at: "file:/third".into(),
    }
}

/// In the middle of a fast switchover: the offer is being written.
fn offering() -> SourceSwitch {
    let mut switch = SourceSwitch::new(DISK, 1, SESSION, "b".into());
    assert_eq!(switch.prepare(Some(&arbiter())), Some(1));
    assert!(switch.ready(1) && switch.held(1));
    assert!(
        !switch.commit_requested(1),
        "it is not the target that asks"
    );
    assert!(switch.drained());
    let Some(Parked::Offer(record)) = switch.parked(true) else {
        panic!("must offer")
    };
    assert!(matches!(record.state, State::Offered { epoch: 2, .. }));
    switch
}

#[test]
fn what_was_offered_is_taken_back_only_by_the_arbiter_s_word() {
    let mut switch = offering();
    assert!(!switch.running(2), "runs before it was offered");
    assert!(switch.recorded(true) == Recorded::Offer);
    assert!(
        switch.told(switch.ballot(), Side::Source).is_none(),
        "was not asked for"
    );
    assert!(switch.give_up() == GivenUp::Reclaim && switch.give_up() == GivenUp::Nothing);
    let mut earlier = switch.ballot();
    earlier.attempt = 0;
    assert!(
        switch.told(earlier, Side::Source).is_none(),
        "about another attempt"
    );
    let back = switch.told(switch.ballot(), Side::Source).unwrap();
    assert!(matches!(back.state, State::Owner { epoch: 1, .. }));
    assert!(!switch.running(2), "it is not the target's");
    assert!(switch.recorded(true) == Recorded::Unmark);
    assert!(switch.parked(true) == Some(Parked::Resume) && switch.aborted() == 1);
}

#[test]
fn what_the_arbiter_gave_the_target_is_handed_over() {
    let mut switch = offering();
    assert!(switch.recorded(true) == Recorded::Offer);
    assert!(switch.give_up() == GivenUp::Reclaim);
    let gone = switch.told(switch.ballot(), Side::Target).unwrap();
    assert_eq!(gone, switch.deciding_record());
    assert!(switch.recorded(true) == Recorded::Grant && switch.running(2));
    // And when the target is heard of before the arbiter is asked.
    let mut switch = offering();
    assert!(switch.recorded(true) == Recorded::Offer && switch.running(2));
    assert!(switch.phase() == Phase::Settling && switch.decided());
    assert!(switch.recorded(true) == Recorded::Nothing && switch.phase() == Phase::Forwarding);
}

#[test]
fn an_offer_that_nobody_heard_of_is_taken_back_without_asking() {
    let mut switch = offering();
    assert!(switch.link_lost() && switch.give_up() == GivenUp::Later);
    assert!(switch.recorded(true) == Recorded::Unbind);
    assert!(switch.recorded(true) == Recorded::Unmark);
    assert!(switch.parked(true) == Some(Parked::Resume));
    // What moves with others is decided by their lead.
    let mut member = SourceSwitch::new(DISK, 1, SESSION, "b".into()).with_part(Part::Lead, None);
    assert!(member.prepare(Some(&arbiter())).is_some() && member.arbiter().is_none());
}

fn draining() -> SourceSwitch {
    let mut switch = SourceSwitch::new(DISK, 1, SESSION, "b".into());
    assert_eq!(switch.prepare(None), Some(1));
    assert!(switch.ready(1) && switch.held(1));
    switch
}

#[test]
fn the_deciding_record_is_written_after_the_mark_and_granted_after_the_record() {
    let mut switch = draining();
    assert!(
        switch.recorded(true) != Recorded::Grant,
        "nothing was written yet"
    );
    assert!(switch.commit_requested(1));
    let Some(Parked::Decide(record)) = switch.parked(true) else {
        panic!("must decide")
    };
    assert!(matches!(
        record.state,
        State::Released {
            epoch: 2,
            attempt: 1,
            ..
        }
    ));
    assert!(!switch.running(2), "runs before it was granted");
    assert!(switch.recorded(true) == Recorded::Grant);
    assert!(!switch.running(1), "an older epoch");
    assert!(switch.running(2));
}

#[test]
fn an_attempt_can_be_given_up_until_the_deciding_record_is_on_its_way() {
    let mut switch = draining();
    assert_eq!(switch.give_up(), GivenUp::Resume);
    assert_eq!(switch.aborted(), 1);
    assert!(
        !switch.commit_requested(1),
        "a late commit request for an attempt given up"
    );

    let mut switch = draining();
    assert!(switch.commit_requested(1));
    assert_eq!(switch.give_up(), GivenUp::Later);
    assert_eq!(switch.parked(true), Some(Parked::Unmark));
    assert_eq!(switch.parked(true), Some(Parked::Resume));
    assert_eq!((switch.phase(), switch.aborted()), (Phase::Owner, 1));
    assert_eq!(switch.prepare(None), Some(2));
    assert_eq!(switch.aborted(), 1);

    let mut switch = draining();
    assert!(switch.commit_requested(1));
    assert!(matches!(switch.parked(true), Some(Parked::Decide(_))));
    assert_eq!(switch.give_up(), GivenUp::TooLate);
}

#[test]
fn a_target_that_owns_or_may_own_a_disk_is_never_emptied_by_a_stranger() {
    let other = Uuid::from_u128(3);
    let prepared = State::Prepared {
        session: SESSION,
        attempt: 1,
        epoch: 2,
        claim: None,
    };
    let owner = State::Owner {
        epoch: 2,
        session: Some(SESSION),
    };
    let mut stranger = hello(other, 9);
    stranger.disk = Uuid::from_u128(99);
    for state in [prepared.clone(), owner.clone()] {
        let answer = target(state).standing(&stranger);
        assert!(matches!(answer, Err((Refusal::Occupied, _))));
    }
    let own = target(owner.clone()).standing(&hello(other, 2));
    assert!(matches!(own, Err((Refusal::Newer, _))));
    let late = target(owner).standing(&hello(SESSION, 1));
    assert_eq!(late, Ok(Standing::Owner { epoch: 2 }));
    assert_eq!(
        target(prepared).standing(&hello(SESSION, 1)),
        Ok(Standing::Prepared { attempt: 1 })
    );
    let image = TargetSwitch::new(None, true).standing(&hello(SESSION, 1));
    assert!(matches!(image, Err((Refusal::Occupied, _))));
}

#[test]
fn a_disk_may_come_back_to_the_host_that_handed_it_over() {
    let released = State::Released {
        epoch: 2,
        session: SESSION,
        attempt: 1,
        to: "b".into(),
    };
    let (session, epoch) = (SESSION, 2);
    let back = hello(Uuid::from_u128(3), epoch);
    assert_eq!(
        target(released.clone()).standing(&back),
        Ok(Standing::Left { session, epoch })
    );
    // A later owner cannot know what was changed before it had the disk.
    let later = hello(Uuid::from_u128(3), 3);
    assert_eq!(target(released).standing(&later), Ok(Standing::Stale));
}

#[test]
fn what_a_start_finds_says_who_serves() {
    let record = |state| Ownership { disk: DISK, state };
    let owner = record(State::Owner {
        epoch: 2,
        session: None,
    });
    assert_eq!(verdict(None, None), Verdict::Serve { remove_mark: false });
    assert!(matches!(
        verdict(None, Some(Mark::HandedOver)),
        Verdict::Refuse(_)
    ));
    assert_eq!(
        verdict(Some(&owner), Some(Mark::HandedOver)),
        Verdict::Serve { remove_mark: true }
    );
    for state in [
        State::Emptying {
            session: SESSION,
            epoch: 1,
        },
        State::Receiving {
            session: SESSION,
            epoch: 1,
        },
        State::Prepared {
            session: SESSION,
            attempt: 1,
            epoch: 2,
            claim: None,
        },
        State::Prepared {
            session: SESSION,
            attempt: 1,
            epoch: 2,
            claim: Some(arbiter()),
        },
        State::Offered {
            epoch: 2,
            session: SESSION,
            attempt: 1,
            to: "b".into(),
            came: None,
            arbiter: arbiter(),
        },
    ] {
        assert!(matches!(
            verdict(Some(&record(state)), None),
            Verdict::Refuse(_)
        ));
    }
    let to = "b".to_owned();
    let released = record(State::Released {
        epoch: 2,
        session: SESSION,
        attempt: 1,
        to,
    });
    assert!(matches!(
        verdict(Some(&released), None),
        Verdict::Forward { epoch: 2, .. }
    ));
}
