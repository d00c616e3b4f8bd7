//! What a target takes of its templates, and what not.

use bytes::Bytes;

use super::super::tests::{CONTROL, marker_after, record, say, streaming, tell};
use super::super::*;
use crate::wire::Probe;

const BULK: ConnId = ConnId(2);
const BLOCK: usize = 4096;

fn block(of: u8) -> Vec<u8> {
    vec![of; BLOCK]
}

/// A target with so many templates that has been asked for two blocks, of 0xaa and of 0xbb, and does not have them: the
/// operation.
fn asked(templates: usize) -> (Target, OpId) {
    let mut target = streaming();
    target.config.templates = templates;
    let hash = |of| *blake3::hash(&block(of)).as_bytes();
    let probe = Probe {
        id: 7,
        base: 0,
        offset: 0,
        len: 2 * BLOCK as u64,
        block: BLOCK as u32,
        hashes: vec![hash(0xaa), hash(0xbb)],
    };
    let read = say(&mut target, BULK, Message::Probe(probe));
    let [TargetAction::Read(op, 0, len)] = read[..] else {
        panic!("{read:?}")
    };
    let empty = Bytes::from(vec![0; len as usize]);
    let looks = tell(&mut target, TargetEvent::Read(op, Ok(empty)));
    assert_eq!(template_of(&looks), Some(0), "{looks:?}");
    (target, op)
}

/// Which template is read next.
fn template_of(actions: &[TargetAction]) -> Option<usize> {
    match actions {
        [TargetAction::ReadTemplate { number, .. }] => Some(*number),
        _ => None,
    }
}

fn writes(actions: &[TargetAction]) -> Vec<(OpId, u64, u8)> {
    let written = actions.iter().filter_map(|action| match action {
        TargetAction::Write(op, offset, data) => Some((*op, *offset, data[0])),
        _ => None,
    });
    written.collect()
}

#[test]
fn what_a_template_has_is_written_and_only_the_rest_is_asked_for() {
    let (mut target, op) = asked(1);
    let there = [block(0xaa), block(0xcc)].concat().into();
    let found = tell(&mut target, TargetEvent::OfTemplate(op, Ok(there)));
    let [(write, 0, 0xaa)] = writes(&found)[..] else {
        panic!("{found:?}")
    };
    assert_eq!(found.len(), 1, "not answered before it is in the disk");
    let done = tell(&mut target, TargetEvent::Disk(write, Ok(())));
    let missing = Message::Differs { id: 7, blocks: 2 };
    assert!(matches!(&done[..], [TargetAction::Send(_, said)] if *said == missing));
}

#[test]
fn a_template_that_ends_early_or_cannot_be_read_leaves_it_to_the_next() {
    let (mut target, op) = asked(3);
    let gone = tell(
        &mut target,
        TargetEvent::OfTemplate(op, Err(std::io::ErrorKind::Other.into())),
    );
    assert_eq!(template_of(&gone), Some(1));
    // Half a block more is none.
    let short = [block(0xaa), vec![0xbb; BLOCK / 2]].concat().into();
    let next = tell(&mut target, TargetEvent::OfTemplate(op, Ok(short)));
    assert_eq!(template_of(&next), Some(2), "{next:?}");
    let there = [block(0), block(0xbb)].concat().into();
    let found = tell(&mut target, TargetEvent::OfTemplate(op, Ok(there)));
    let [(first, 0, 0xaa), (second, 4096, 0xbb)] = writes(&found)[..] else {
        panic!("{found:?}")
    };
    assert!(tell(&mut target, TargetEvent::Disk(first, Ok(()))).is_empty());
    let done = tell(&mut target, TargetEvent::Disk(second, Ok(())));
    let all = Message::ChunksDone(vec![7]);
    assert!(matches!(&done[..], [TargetAction::Send(_, said)] if *said == all));
}

#[test]
fn what_no_template_has_is_asked_for() {
    let (mut target, op) = asked(1);
    let none = tell(&mut target, TargetEvent::OfTemplate(op, Ok(Bytes::new())));
    let missing = Message::Differs { id: 7, blocks: 3 };
    assert!(matches!(&none[..], [TargetAction::Send(_, said)] if *said == missing));
}

#[test]
fn a_probe_of_a_connection_that_is_lost_asks_no_other_template_and_holds_up_nobody() {
    let (mut target, op) = asked(2);
    tell(&mut target, TargetEvent::Closed(CONTROL));
    let there = [block(0xaa), block(0xcc)].concat().into();
    let rest = tell(&mut target, TargetEvent::OfTemplate(op, Ok(there)));
    assert!(rest.is_empty(), "{rest:?}");
    assert!(target.apply.is_still());
}

#[test]
fn what_was_found_for_a_source_that_has_gone_on_is_not_written_over_what_came_since() {
    let (mut target, op) = asked(1);
    let later = record(1, 0);
    assert!(say(&mut target, CONTROL, Message::Record(later.clone())).is_empty());
    // The lane had broken: nothing older than that record is on the way any more.
    let marker = Marker {
        floor: 1,
        consistent: false,
        ..marker_after(1, &later)
    };
    assert!(say(&mut target, CONTROL, Message::Marker(marker)).is_empty());
    let there = [block(0xaa), block(0xbb)].concat().into();
    let found = tell(&mut target, TargetEvent::OfTemplate(op, Ok(there)));
    let [(write, 0, 1)] = writes(&found)[..] else {
        panic!("{found:?}")
    };
    let rest = tell(&mut target, TargetEvent::Disk(write, Ok(())));
    assert_eq!(writes(&rest), []);
}
