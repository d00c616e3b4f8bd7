//! With which disks a session may begin.

use uuid::Uuid;

use super::super::tests::{CONTROL, SESSION, SIZE, hello, say};
use super::super::{Admission, TargetConfig};
use super::*;

#[test]
fn a_disk_that_the_site_does_not_take_is_refused_before_anything_is_written_down() {
    let refused = |admission: Admission, why: &str| {
        let config = TargetConfig {
            admission,
            ..TargetConfig::default()
        };
        let mut target = Target::new(config, None, false);
        let said = say(&mut target, CONTROL, Message::Hello(hello()));
        let [
            TargetAction::Send(_, Message::Refused { text, .. }),
            TargetAction::Close(_),
        ] = &said[..]
        else {
            panic!("{said:?}");
        };
        assert!(text.contains(why), "{text}");
    };
    let unexpected = Admission {
        unexpected: true,
        ..Admission::default()
    };
    refused(unexpected, "--expect");
    let small = Admission {
        largest: Some(SIZE - 1),
        ..Admission::default()
    };
    refused(small, "--max-disk");
}

#[test]
fn a_session_that_has_begun_goes_on_whatever_the_site_takes_now() {
    let record = Ownership {
        disk: hello().disk,
        state: State::Receiving {
            session: SESSION,
            epoch: 1,
        },
    };
    let config = TargetConfig {
        admission: Admission {
            unexpected: true,
            largest: Some(0),
        },
        ..TargetConfig::default()
    };
    let mut target = Target::new(config, Some(record), true);
    let said = say(&mut target, CONTROL, Message::Hello(hello()));
    assert!(
        matches!(
            said[..],
            [TargetAction::Send(_, Message::Welcome(Standing::Receiving))]
        ),
        "{said:?}"
    );
}

#[test]
fn a_disk_that_was_here_before_is_asked_about_as_any_other_when_it_comes_again() {
    let record = Ownership {
        disk: hello().disk,
        state: State::Released {
            epoch: 2,
            session: Uuid::from_u128(4),
            attempt: 1,
            to: "elsewhere".into(),
        },
    };
    let mut again = hello();
    again.epoch = 2;
    let target = |admission| {
        let config = TargetConfig {
            admission,
            ..TargetConfig::default()
        };
        Target::new(config, Some(record.clone()), true)
    };
    let welcome = say(
        &mut target(Admission::default()),
        CONTROL,
        Message::Hello(again.clone()),
    );
    assert!(
        matches!(
            welcome[..],
            [TargetAction::Send(
                _,
                Message::Welcome(Standing::Left { .. })
            )]
        ),
        "{welcome:?}"
    );
    let small = Admission {
        largest: Some(SIZE - 1),
        ..Admission::default()
    };
    let refused = say(&mut target(small), CONTROL, Message::Hello(again));
    assert!(
        matches!(
            refused[..],
            [
                TargetAction::Send(_, Message::Refused { .. }),
                TargetAction::Close(_)
            ]
        ),
        "{refused:?}"
    );
}
