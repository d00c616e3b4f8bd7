//! What a target makes of a source that breaks the rules.

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::arbiter::Side;
use crate::wire::{
    Begin, Chunk, DiskDescription, DiskFormat, Here, Look, Probe, Record, Start, StreamDigest,
    check_of,
};

pub(super) const SIZE: u64 = 1 << 20;
pub(super) const CONTROL: ConnId = ConnId(1);
const BULK: ConnId = ConnId(2);
pub(super) const SESSION: Uuid = Uuid::from_u128(5);

/// From the source of these tests.
pub(super) fn hello() -> Hello {
    Hello {
        session: SESSION,
        disk: Uuid::from_u128(1),
        epoch: 1,
        incarnation: 1,
        description: DiskDescription {
            name: "disk".into(),
            size: SIZE,
            block_size: 1 << 20,
            logical_sector: 512,
            physical_sector: 4096,
            format: DiskFormat::Vhdx,
        },
    }
}

pub(super) fn tell(target: &mut Target, event: TargetEvent) -> Vec<TargetAction> {
    target.handle(Micros::from_secs(1), event);
    std::iter::from_fn(|| target.poll_action()).collect()
}

pub(super) fn say(target: &mut Target, conn: ConnId, message: Message) -> Vec<TargetAction> {
    tell(target, TargetEvent::Message(conn, message))
}

/// Empty, begun, with a bulk lane.
pub(super) fn streaming() -> Target {
    streaming_in(None)
}

/// The same, for a disk of a group.
pub(super) fn streaming_in(group: Option<Group>) -> Target {
    let mut target = Target::new(TargetConfig::default(), None, false);
    let welcome = say(&mut target, CONTROL, Message::Hello(hello()));
    assert!(matches!(
        welcome[..],
        [TargetAction::Send(_, Message::Welcome(Standing::Empty))]
    ));
    let begin = Begin {
        start: Start::Fresh,
        acked: 0,
        aborted: 0,
        follow: true,
        group,
    };
    let emptying = say(&mut target, CONTROL, Message::Begin(begin));
    assert!(
        matches!(&emptying[..], [TargetAction::Persist(r)] if matches!(r.state, State::Emptying { .. }))
    );
    let open = tell(&mut target, TargetEvent::Persisted(Ok(())));
    assert!(matches!(open[..], [TargetAction::Open { fresh: true, .. }]));
    let receiving = tell(&mut target, TargetEvent::Opened(Ok(())));
    assert!(
        matches!(&receiving[..], [TargetAction::Persist(r)] if matches!(r.state, State::Receiving { .. }))
    );
    let set = tell(&mut target, TargetEvent::Persisted(Ok(())));
    assert!(matches!(
        set[..],
        [TargetAction::Send(_, Message::Begun { .. })]
    ));
    let join = Join {
        session: SESSION,
        incarnation: 1,
        lane: 1,
    };
    assert!(say(&mut target, BULK, Message::Join(join)).is_empty());
    target
}

pub(super) fn record(seq: u64, offset: u64) -> Record {
    Record {
        seq,
        offset,
        content: Content::Data(Bytes::from(vec![seq as u8; 512])),
    }
}

/// A consistent marker after no record.
pub(super) fn empty_marker(id: u64) -> Marker {
    let (digest, count) = StreamDigest::default().finish();
    Marker {
        id,
        seq: 0,
        count,
        digest,
        floor: 0,
        consistent: true,
        disks: 0,
    }
}

/// A consistent marker after one record.
pub(super) fn marker_after(id: u64, record: &Record) -> Marker {
    let mut digest = StreamDigest::default();
    digest.add(record);
    let (digest, count) = digest.finish();
    Marker {
        seq: record.seq,
        count,
        digest,
        ..empty_marker(id)
    }
}

/// Whether a probe was answered, with these blocks being different.
fn answers(actions: &[TargetAction], probe: u64, different: u128) -> bool {
    match actions {
        [TargetAction::Send(_, Message::ChunksDone(ids))] => *ids == [probe] && different == 0,
        [TargetAction::Send(_, Message::Differs { id, blocks })] => {
            (*id, *blocks) == (probe, different)
        }
        _ => false,
    }
}

pub(super) fn fails(actions: &[TargetAction]) -> bool {
    actions
        .iter()
        .any(|a| matches!(a, TargetAction::Send(_, Message::Failed { .. })))
}

#[test]
fn damage_on_the_way_ends_the_session_loudly() {
    let mut target = streaming();
    let data = Bytes::from(vec![1; 4096]);
    let chunk = Chunk {
        id: 1,
        base: 0,
        offset: 0,
        content: Content::Data(data),
        check: [0; 16],
    };
    assert!(fails(&say(&mut target, BULK, Message::Chunk(chunk))));

    let mut target = streaming();
    say(&mut target, CONTROL, Message::Record(record(1, 0)));
    let marker = marker_after(1, &record(1, 512));
    assert!(fails(&say(&mut target, CONTROL, Message::Marker(marker))));
}

/// Two blocks of 4 KiB with these bytes, as they are on the source's disk.
fn probe(id: u64, offset: u64, blocks: [u8; 2]) -> Probe {
    let hash = |byte: u8| *blake3::hash(&[byte; 4096]).as_bytes();
    Probe {
        id,
        base: 1,
        offset,
        len: 8192,
        block: 4096,
        hashes: blocks.map(hash).into(),
    }
}

#[test]
fn a_probe_is_compared_block_by_block_once_what_came_before_it_is_in_the_disk() {
    let mut target = streaming();
    let write = say(&mut target, CONTROL, Message::Record(record(1, 4096)));
    let [TargetAction::Write(write, 4096, _)] = write[..] else {
        panic!("{write:?}")
    };
    let asked = Message::Probe(probe(7, 0, [1, 2]));
    assert!(say(&mut target, BULK, asked).is_empty());
    let read = tell(&mut target, TargetEvent::Disk(write, Ok(())));
    let [TargetAction::Read(read, 0, 8192)] = read[..] else {
        panic!("{read:?}")
    };
    let found = Bytes::from([[1; 4096], [3; 4096]].concat());
    let answer = tell(&mut target, TargetEvent::Read(read, Ok(found)));
    assert!(answers(&answer, 7, 0b10), "{answer:?}");

    let answer = compared(&mut target, probe(8, 0, [1, 3]), [1, 3]);
    assert!(answers(&answer, 8, 0), "{answer:?}");
}

#[test]
fn a_look_is_answered_by_itself_and_many_of_them_are_no_more_than_the_window_allows() {
    let mut target = streaming();
    let look = |id, here| {
        #[rustfmt::skip]
        let look = Look { id, offset: 0, len: 8192, here };
        Message::Look(look)
    };
    let hash = |byte: u8| *blake3::hash(&[byte; 4096]).as_bytes();
    let asked = look(9, Here::Blocks(4096, vec![hash(1), hash(3)]));
    let read = say(&mut target, BULK, asked);
    let [TargetAction::Read(op, 0, 8192)] = read[..] else {
        panic!("{read:?}");
    };
    let data = [[1; 4096], [2; 4096]].concat();
    let seen = tell(&mut target, TargetEvent::Read(op, Ok(data.into())));
    assert!(
        matches!(
            seen[..],
            [TargetAction::Send(
                _,
                Message::Seen {
                    id: 9,
                    unlike: 2,
                    unknown: 0
                }
            )]
        ),
        "{seen:?}"
    );
    for id in 10..5000 {
        let said = say(&mut target, BULK, look(id, Here::Zeroes));
        assert!(
            !said
                .iter()
                .any(|a| matches!(a, TargetAction::Send(_, Message::Failed { .. }))),
            "{id}"
        );
    }
}

#[test]
fn a_record_older_than_a_probe_does_not_overwrite_what_was_found_to_be_the_same() {
    let mut target = streaming();
    let asked = Probe {
        base: 5,
        ..probe(7, 0, [1, 2])
    };
    compared(&mut target, asked, [1, 2]);
    assert!(say(&mut target, CONTROL, Message::Record(record(5, 0))).is_empty());
    let write = say(&mut target, CONTROL, Message::Record(record(6, 0)));
    assert!(matches!(write[..], [TargetAction::Write(_, 0, _)]));
}

#[test]
fn what_cannot_be_read_is_not_taken_for_the_same() {
    let failed = || Err(std::io::Error::other("a bad sector"));
    for (read, differs) in [
        (Ok(Bytes::from(vec![1; 4096])), 0b10),
        (Ok(Bytes::from(vec![1; 6000])), 0b10),
        (failed(), 0b11),
    ] {
        let mut target = streaming();
        let asked = say(&mut target, BULK, Message::Probe(probe(7, 0, [1, 2])));
        let [TargetAction::Read(op, ..)] = asked[..] else {
            panic!("{asked:?}")
        };
        let answer = tell(&mut target, TargetEvent::Read(op, read));
        assert!(answers(&answer, 7, differs), "{answer:?}");
    }
}

#[test]
fn messages_out_of_place_end_the_session() {
    let zero = |len| Content::Zeroes(len);
    let chunk = Chunk {
        id: 1,
        base: 0,
        offset: SIZE - 512,
        content: zero(1024),
        check: [0; 16],
    };
    let begin = Begin {
        start: Start::GoOn,
        acked: 0,
        aborted: 0,
        follow: true,
        group: None,
    };
    for (conn, message) in [
        (BULK, Message::Chunk(chunk)),
        (BULK, Message::Record(record(1, 0))),
        (BULK, Message::Probe(probe(1, SIZE - 4096, [1, 2]))),
        (CONTROL, Message::Probe(probe(1, 0, [1, 2]))),
        (CONTROL, Message::Record(record(1, SIZE))),
        (CONTROL, Message::Begin(begin)),
        (
            CONTROL,
            Message::Durable {
                marker: 1,
                chunks: 0,
            },
        ),
        (
            CONTROL,
            Message::Begun {
                window: 1,
                address: String::new(),
                templates: false,
            },
        ),
    ] {
        let mut target = streaming();
        let actions = say(&mut target, conn, message.clone());
        assert!(fails(&actions), "{message:?} passed: {actions:?}");
    }
    let mut target = streaming();
    say(&mut target, CONTROL, Message::Record(record(5, 0)));
    assert!(fails(&say(
        &mut target,
        CONTROL,
        Message::Record(record(5, 0))
    )));
}

#[test]
fn a_source_that_ignores_the_window_is_cut_off_before_memory_is_gone() {
    let mut target = streaming();
    let data = Bytes::from(vec![1; 1 << 20]);
    let check = check_of(&data);
    let mut sent = 0_u64;
    for id in 0..100_000 {
        let content = Content::Data(data.clone());
        let chunk = Chunk {
            id,
            base: 0,
            offset: 0,
            content,
            check,
        };
        sent += 1 << 20;
        if fails(&say(&mut target, BULK, Message::Chunk(chunk))) {
            break;
        }
    }
    assert!(sent < 1 << 30, "took {sent} bytes");
}

#[test]
fn a_grant_for_an_attempt_it_is_not_prepared_for_is_not_taken() {
    let mut target = streaming();
    assert!(
        say(
            &mut target,
            CONTROL,
            Message::Grant {
                attempt: 1,
                epoch: 2
            }
        )
        .is_empty()
    );
    let marker = empty_marker(1);
    let last = Final {
        attempt: 3,
        chunks: 0,
        arbiter: None,
        marker,
    };
    let flush = say(&mut target, CONTROL, Message::Final(last));
    let [TargetAction::Flush(op)] = flush[..] else {
        panic!("must flush first: {flush:?}")
    };
    let persist = tell(&mut target, TargetEvent::Disk(op, Ok(())));
    assert!(matches!(&persist[..], [TargetAction::Persist(r)]
        if matches!(r.state, State::Prepared { attempt: 3, epoch: 2, .. })));
    // Not durable yet: nothing may be said, nothing may be granted.
    assert!(
        say(
            &mut target,
            CONTROL,
            Message::Grant {
                attempt: 3,
                epoch: 2
            }
        )
        .is_empty()
    );
    let request = tell(&mut target, TargetEvent::Persisted(Ok(())));
    assert!(matches!(
        request[..],
        [TargetAction::Send(_, Message::CommitRequest { attempt: 3 })]
    ));
    for (attempt, epoch) in [(2, 2), (4, 2), (3, 3), (3, 1)] {
        assert!(say(&mut target, CONTROL, Message::Grant { attempt, epoch }).is_empty());
    }
    let owner = say(
        &mut target,
        CONTROL,
        Message::Grant {
            attempt: 3,
            epoch: 2,
        },
    );
    assert!(matches!(&owner[..], [TargetAction::Persist(r)]
        if matches!(r.state, State::Owner { epoch: 2, .. })));
    let park = tell(&mut target, TargetEvent::Persisted(Ok(())));
    assert!(matches!(park[..], [TargetAction::Park(None)]));
    let serve = tell(&mut target, TargetEvent::Parked(Ok(())));
    assert!(matches!(serve[..], [TargetAction::Serve]));
    let running = tell(&mut target, TargetEvent::Serving(Ok("tcp:b:1".into())));
    assert!(matches!(
        &running[..],
        [TargetAction::Send(_, Message::Running { epoch: 2, .. })]
    ));
}

#[test]
fn a_failing_disk_ends_the_session_and_a_new_one_may_begin_from_what_is_there_or_from_nothing() {
    let mut target = streaming();
    let write = say(&mut target, CONTROL, Message::Record(record(1, 0)));
    let [TargetAction::Write(op, 0, _)] = write[..] else {
        panic!("{write:?}")
    };
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    assert!(fails(&tell(&mut target, TargetEvent::Disk(op, Err(full)))));
    let mut other = hello();
    other.session = Uuid::from_u128(6);
    let welcome = say(&mut target, ConnId(9), Message::Hello(other));
    assert!(matches!(
        welcome[..],
        [TargetAction::Send(_, Message::Welcome(Standing::Stale))]
    ));
}

/// That one read of one probe, answered with two blocks of these bytes.
fn compared(target: &mut Target, asked: Probe, found: [u8; 2]) -> Vec<TargetAction> {
    let read = say(target, BULK, Message::Probe(asked));
    let [TargetAction::Read(read, ..)] = read[..] else {
        panic!("{read:?}")
    };
    let found = Bytes::from(found.map(|byte| [byte; 4096]).concat());
    tell(target, TargetEvent::Read(read, Ok(found)))
}

#[test]
fn what_is_in_the_journal_is_not_compared_with_the_disk_until_it_is_carried_over() {
    let mut target = streaming();
    let first = say(&mut target, CONTROL, Message::Marker(empty_marker(1)));
    oblige(&mut target, first);
    let append = say(&mut target, CONTROL, Message::Record(record(1, 4096)));
    let [TargetAction::Journal(append, ..)] = append[..] else {
        panic!("{append:?}")
    };
    tell(&mut target, TargetEvent::Disk(append, Ok(())));
    // The disk still has what the source has again; the journal has something else.
    let answer = compared(&mut target, probe(7, 0, [1, 2]), [1, 2]);
    assert!(answers(&answer, 7, 0b10), "{answer:?}");
    let marker = marker_after(2, &record(1, 4096));
    let sealed = say(&mut target, CONTROL, Message::Marker(marker));
    assert!(matches!(
        sealed[..],
        [TargetAction::Mark { sealed: true, .. }]
    ));
    oblige(&mut target, sealed);
    let answer = compared(&mut target, probe(8, 0, [1, 2]), [1, 2]);
    assert!(answers(&answer, 8, 0), "{answer:?}");
}

#[test]
fn nothing_that_follows_a_consistent_marker_is_written_before_the_disk_is_called_consistent() {
    let mut target = streaming();
    let flush = say(&mut target, CONTROL, Message::Marker(empty_marker(1)));
    let [TargetAction::Flush(flush)] = flush[..] else {
        panic!("{flush:?}")
    };
    assert!(say(&mut target, CONTROL, Message::Record(record(1, 0))).is_empty());
    let durable = tell(&mut target, TargetEvent::Disk(flush, Ok(())));
    let [
        TargetAction::Send(_, Message::Durable { marker: 1, .. }),
        TargetAction::StartJournal {
            op,
            session: SESSION,
            seq: 0,
        },
    ] = durable[..]
    else {
        panic!("{durable:?}")
    };
    assert!(say(&mut target, CONTROL, Message::Record(record(2, 0))).is_empty());
    let recorded = tell(&mut target, TargetEvent::Disk(op, Ok(())));
    assert!(matches!(&recorded[..], [TargetAction::Persist(r)]
        if matches!(r.state, State::Following { .. })));
    let journal = tell(&mut target, TargetEvent::Persisted(Ok(())));
    // They overlap, so the second waits for the first.
    let [TargetAction::Journal(op, 0, _)] = journal[..] else {
        panic!("{journal:?}")
    };
    let next = tell(&mut target, TargetEvent::Disk(op, Ok(())));
    assert!(
        matches!(next[..], [TargetAction::Journal(_, 0, _)]),
        "{next:?}"
    );
}

/// Carry out what it asks for at once, and go on until it asks for nothing.
pub(super) fn oblige(target: &mut Target, first: Vec<TargetAction>) {
    let mut actions: VecDeque<TargetAction> = first.into();
    while let Some(action) = actions.pop_front() {
        let event = match action {
            TargetAction::Open { .. } => TargetEvent::Opened(Ok(())),
            TargetAction::Read(op, _, len) => {
                TargetEvent::Read(op, Ok(vec![0; len as usize].into()))
            }
            TargetAction::ReadTemplate { op, len, .. } => {
                TargetEvent::OfTemplate(op, Ok(vec![0; len as usize].into()))
            }
            TargetAction::Zeroes(op, ..) => TargetEvent::Zeroes(op, Ok(true)),
            TargetAction::Write(op, ..)
            | TargetAction::Zero(op, ..)
            | TargetAction::Flush(op)
            | TargetAction::StartJournal { op, .. }
            | TargetAction::Journal(op, ..)
            | TargetAction::Mark { op, .. }
            | TargetAction::Apply(op, _) => TargetEvent::Disk(op, Ok(())),
            TargetAction::Persist(_) => TargetEvent::Persisted(Ok(())),
            TargetAction::Park(_) => TargetEvent::Parked(Ok(())),
            TargetAction::Reach { attempt, .. } => TargetEvent::Reached(attempt, Ok(())),
            TargetAction::Claim { ballot, .. } => TargetEvent::Decided(ballot, Ok(Side::Target)),
            TargetAction::Serve => TargetEvent::Serving(Ok("a".into())),
            TargetAction::Send(..)
            | TargetAction::Close(_)
            | TargetAction::WayBack(_)
            | TargetAction::Reached { .. }
            | TargetAction::Leave(_) => continue,
        };
        actions.extend(tell(target, event));
    }
}

proptest! {
    #[test]
    fn no_sequence_of_messages_makes_it_panic_or_serve_without_a_grant_it_waited_for(
        messages in prop::collection::vec((1_u64..4, crate::wire::tests::message()), 1..60),
    ) {
        let mut target = streaming();
        for (conn, message) in messages {
            let actions = say(&mut target, ConnId(conn), message);
            oblige(&mut target, actions);
            let owns = matches!(target.record().map(|r| &r.state), Some(State::Owner { .. }));
            // The digest of a final marker cannot be guessed.
            prop_assert!(!owns);
        }
    }
}

#[test]
fn an_ordered_lane_that_brings_nothing_is_closed_whatever_the_others_bring() {
    let mut target = streaming();
    let mut closed = Vec::new();
    for second in 2..60 {
        let chunk = Message::Chunk(Chunk {
            id: second,
            base: 0,
            offset: second * 4096,
            content: Content::Zeroes(4096),
            check: [0; 16],
        });
        let event = TargetEvent::Message(BULK, chunk);
        target.handle(Micros::from_secs(second), event);
        for action in std::iter::from_fn(|| target.poll_action()) {
            if let TargetAction::Close(conn) = action {
                closed.push((second, conn));
            }
        }
    }
    assert_eq!(closed, [(32, CONTROL), (32, BULK)]);
}
