//! Who goes home together, and who by itself.

use mirror::files::write_record;
use mirror::record::{Ownership, State};

use super::*;
use crate::site::together::tests::saved;

const TO: &str = "tls:home:9001";

fn lineage(disk: u128) -> Uuid {
    Uuid::from_u128(disk)
}

/// A folder in which disks 1 to `disks` have come, or are coming.
fn folder(disks: u128) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for disk in 1..=disks {
        let state = State::Owner {
            epoch: 2,
            session: None,
        };
        write(folder.path(), disk, state);
    }
    folder
}

fn write(folder: &Path, disk: u128, state: State) {
    let record = Ownership {
        disk: lineage(disk),
        state,
    };
    let path = sidecar_path(&folder.join(format!("{disk}.vhdx")));
    write_record(&path, &record).expect("a record");
}

fn place(groups: &Groups, folder: &Path, disk: u128, together: &[Uuid]) -> Option<Place> {
    groups.place_home(&Home {
        disk: lineage(disk),
        path: &folder.join(format!("{disk}.vhdx")),
        together,
        to: TO,
    })
}

#[test]
fn disks_that_came_together_go_home_together_once_all_have_come() {
    let (groups, folder) = (Groups::default(), folder(2));
    let both = [lineage(1), lineage(2)];
    let second = place(&groups, folder.path(), 2, &both).expect("a place");
    let kin = &second.together.disks[0];
    assert_eq!(kin.name, "1.vhdx");
    assert!(kin.path.ends_with("/1.vhdx"), "{kin:?}");
    let first = place(&groups, folder.path(), 1, &both).expect("a place");
    assert_eq!((first.place, second.place), (0, 1));
    assert!(std::sync::Arc::ptr_eq(&first.sequence, &second.sequence));
    assert!(!first.has_ended());
}

#[test]
fn a_disk_that_came_by_itself_or_with_nonsense_goes_home_by_itself() {
    let (groups, folder) = (Groups::default(), folder(2));
    let alone: [&[Uuid]; 4] = [
        &[],
        &[lineage(1)],
        &[lineage(2), lineage(3)],
        &[lineage(1), lineage(2), lineage(2)],
    ];
    for together in alone {
        assert!(
            place(&groups, folder.path(), 1, together).is_none(),
            "{together:?}"
        );
    }
}

#[test]
fn who_comes_when_nobody_waits_any_more_goes_home_by_itself_until_all_begin_anew() {
    let (groups, folder) = (Groups::default(), folder(3));
    let all = [lineage(1), lineage(2), lineage(3)];
    let first = place(&groups, folder.path(), 1, &all).expect("a place");
    place(&groups, folder.path(), 2, &all).expect("a place");
    groups.waits_no_more(lineage(3));
    assert_eq!(first.awaited().len(), 3, "that one waits for nobody");
    groups.waits_no_more(lineage(1));
    assert_eq!(first.awaited().len(), 2);
    assert!(place(&groups, folder.path(), 3, &all).is_none());
    assert!(!first.has_ended());
    first.end();
    let anew = place(&groups, folder.path(), 1, &all).expect("a place");
    assert!(!std::sync::Arc::ptr_eq(&first.sequence, &anew.sequence));
    assert!(place(&groups, folder.path(), 3, &all).is_some());
}

#[test]
fn one_whose_session_ended_begins_anew_with_all_others() {
    let (groups, folder) = (Groups::default(), folder(2));
    let both = [lineage(1), lineage(2)];
    let first = place(&groups, folder.path(), 1, &both).expect("a place");
    let second = place(&groups, folder.path(), 2, &both).expect("a place");
    let anew = place(&groups, folder.path(), 1, &both).expect("a place");
    assert!(first.has_ended() && second.has_ended() && !anew.has_ended());
    let other = place(&groups, folder.path(), 2, &both).expect("a place");
    assert!(std::sync::Arc::ptr_eq(&anew.sequence, &other.sequence));
    assert!(!anew.has_ended());
}

#[test]
fn who_goes_on_after_a_restart_is_found_by_those_that_come_later_so_that_no_two_groups_go_on() {
    let (groups, folder) = (Groups::default(), folder(2));
    let both = [lineage(1), lineage(2)];
    let first = place(&groups, folder.path(), 1, &both).expect("a place");
    groups.waits_no_more(lineage(1));
    let mut kept = first.together.as_ref().clone();
    kept.disks.truncate(1);
    // Another process; only one of them was kept.
    for later_first in [false, true] {
        let groups = Groups::default();
        let before = later_first.then(|| place(&groups, folder.path(), 2, &both));
        let came_back = groups.place_of(&saved(1, &kept), true).expect("a place");
        let later = place(&groups, folder.path(), 2, &both).expect("a place");
        assert!(before.flatten().is_none_or(|before| before.has_ended()));
        assert!(came_back.has_ended() && !later.has_ended());
        let anew = place(&groups, folder.path(), 1, &both).expect("a place");
        assert!(std::sync::Arc::ptr_eq(&anew.sequence, &later.sequence));
        assert!(!anew.has_ended());
    }
}

#[test]
fn who_goes_on_after_a_restart_ends_a_group_from_which_it_was_left_out() {
    let (groups, folder) = (Groups::default(), folder(3));
    let all = [lineage(1), lineage(2), lineage(3)];
    let first = place(&groups, folder.path(), 1, &all).expect("a place");
    let mut kept = first.together.as_ref().clone();
    kept.disks.truncate(1);
    let groups = Groups::default();
    let second = place(&groups, folder.path(), 2, &all).expect("a place");
    groups.waits_no_more(lineage(2));
    let came_back = groups.place_of(&saved(1, &kept), true).expect("a place");
    assert!(second.has_ended() && !came_back.has_ended());
}

#[test]
fn who_came_back_waits_for_the_others_no_longer_than_any() {
    let (groups, folder) = (Groups::default(), folder(2));
    let both = [lineage(1), lineage(2)];
    let first = place(&groups, folder.path(), 1, &both).expect("a place");
    let kept = first.together.as_ref().clone();
    let groups = Groups::default();
    let first = groups.place_of(&saved(1, &kept), true).expect("a place");
    groups.waits_no_more(lineage(1));
    assert_eq!(first.awaited().len(), 1, "its own session is not there yet");
}

#[test]
fn a_place_of_which_nothing_came_is_given_again_and_who_goes_alone_is_not_waited_for() {
    let (groups, folder) = (Groups::default(), folder(2));
    let both = [lineage(1), lineage(2)];
    let first = place(&groups, folder.path(), 1, &both).expect("a place");
    groups.gives_back(lineage(1));
    let again = place(&groups, folder.path(), 1, &both).expect("a place");
    assert!(std::sync::Arc::ptr_eq(&first.sequence, &again.sequence));
    groups.goes_alone(lineage(2));
    assert_eq!(again.awaited().len(), 1, "its own session is not there yet");
    assert!(place(&groups, folder.path(), 2, &both).is_none());
    assert!(!again.has_ended());
}

#[test]
fn groups_that_are_made_up_do_not_pile_up() {
    let (groups, folder) = (Groups::default(), folder(1));
    for other in 2..200 {
        let both = [lineage(1), lineage(other)];
        place(&groups, folder.path(), 1, &both).expect("a place");
    }
    let known = groups.lock();
    assert!(known.groups.len() <= 2 && known.home.len() <= 2);
}

#[test]
fn who_is_at_home_already_is_not_waited_for() {
    let (groups, folder) = (Groups::default(), folder(2));
    let released = |to: &str| State::Released {
        epoch: 3,
        session: lineage(9),
        attempt: 1,
        to: to.into(),
    };
    let both = [lineage(1), lineage(2)];
    write(folder.path(), 2, released(TO));
    let first = place(&groups, folder.path(), 1, &both).expect("a place");
    assert_eq!(first.awaited().len(), 1, "its own session is not there yet");
    // Where it went is not where these go.
    write(folder.path(), 2, released("tls:elsewhere:9001"));
    let first = place(&groups, folder.path(), 1, &both).expect("a place");
    assert_eq!(first.awaited().len(), 2);
}
