//! The same promises for both kinds of ring.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::buffer::{IoBuffer, Pool};
use super::super::op::{Descriptor, NO_POSITION};
use super::super::outgoing::Outgoing;
use super::*;

fn both(test: impl Fn(Ring<u32>)) {
    test(Ring::new(Backend::Threads).expect("threads are always there"));
    match Ring::new(Backend::Uring) {
        Ok(ring) => test(ring),
        Err(error) => eprintln!("io_uring is refused here ({error}): only threads are tested"),
    }
}

fn wait_for(ring: &mut Ring<u32>, count: usize) -> Vec<Finished<u32>> {
    let mut finished = Vec::new();
    while finished.len() < count {
        ring.enter().expect("the ring works");
        ring.reap(&mut finished);
    }
    finished.sort_by_key(|f| f.context);
    finished
}

#[test]
fn what_was_written_is_read_back_and_contexts_come_home() {
    both(|mut ring| {
        let file: File = tempfile::tempfile().expect("a temporary file");
        let file_in_ring = Descriptor::of(&file);
        for block in 0..3u32 {
            let buffer = IoBuffer::zeroed(4096);
            buffer.copy_in(0, &[block as u8 + 1; 4096]);
            let at = u64::from(block) * 4096;
            ring.submit(
                Op::Write {
                    file: file_in_ring,
                    buffer,
                    range: 0..4096,
                    at,
                },
                block,
            );
        }
        for (index, mut finished) in wait_for(&mut ring, 3).into_iter().enumerate() {
            assert_eq!(
                (finished.context, finished.result().ok()),
                (index as u32, Some(4096))
            );
            assert!(
                finished
                    .buffer()
                    .expect("the buffer comes back")
                    .unique()
                    .is_some()
            );
        }
        ring.submit(Op::Sync { file: file_in_ring }, 7);
        let buffer = IoBuffer::zeroed(8192);
        ring.submit(
            Op::Read {
                file: file_in_ring,
                buffer,
                range: 10..4106,
                at: 4096 + 10,
            },
            8,
        );
        let mut finished = wait_for(&mut ring, 2);
        assert_eq!(finished[0].result().ok(), Some(0));
        let mut buffer = finished[1].buffer().expect("the buffer comes back");
        let bytes = buffer.unique().expect("nobody else holds it");
        assert_eq!(
            (bytes[9], bytes[10], bytes[4095], bytes[4096], bytes[4106]),
            (0, 2, 2, 3, 0)
        );
        assert_eq!(ring.in_flight(), 0);
    });
}

#[test]
fn a_batch_is_sent_whole_and_received_whole() {
    both(|mut ring| {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        let socket = Descriptor::of(&ours);
        let mut outgoing = Box::new(Outgoing::default());
        let payload = IoBuffer::zeroed(1 << 20);
        payload.zero(0..1 << 20);
        outgoing.head(|out| out.extend_from_slice(b"head"));
        outgoing.payload(payload, 0..1 << 20);
        ring.submit(Op::Send { socket, outgoing }, 1);
        let buffer = IoBuffer::zeroed(300_000);
        let receive = Op::Receive {
            socket,
            buffer,
            range: 0..300_000,
            how: Reception {
                whole: true,
                idle: true,
            },
        };
        ring.submit(receive, 2);
        let peer = std::thread::spawn(move || {
            let mut got = vec![0; (1 << 20) + 4];
            theirs.read_exact(&mut got).expect("all that was sent");
            theirs.write_all(&vec![9; 300_000]).expect("all of it");
            (got, theirs)
        });
        let (mut sent, mut received) = (0, None);
        while sent < (1 << 20) + 4 || received.is_none() {
            for mut finished in wait_for(&mut ring, 1) {
                let bytes = finished.result().expect("both directions work");
                if let Some(mut outgoing) = finished.outgoing() {
                    outgoing.advance(bytes);
                    sent += bytes;
                    if outgoing.is_empty() {
                        assert_eq!(outgoing.clear(&mut Pool::new(0)), 1 << 20);
                    } else {
                        ring.submit(Op::Send { socket, outgoing }, 1);
                    }
                } else {
                    received = finished.buffer().map(|buffer| (bytes, buffer));
                }
            }
        }
        let (bytes, mut buffer) = received.expect("the loop ended with it");
        assert_eq!(bytes, 300_000);
        assert!(
            buffer.unique().expect("ours")[..bytes]
                .iter()
                .all(|byte| *byte == 9)
        );
        let (got, _theirs) = peer.join().expect("the peer is well");
        assert_eq!((&got[..4], got.len()), (&b"head"[..], (1 << 20) + 4));
    });
}

#[test]
fn a_ring_that_is_dropped_ends_what_waits_in_it() {
    both(|mut ring| {
        let (ours, _theirs) = UnixStream::pair().expect("a socket pair");
        let socket = Descriptor::of(&ours);
        let buffer = IoBuffer::zeroed(4096);
        let held = buffer.clone();
        ring.submit(
            Op::Receive {
                socket,
                buffer,
                range: 0..4096,
                how: Reception {
                    whole: false,
                    idle: true,
                },
            },
            1,
        );
        ring.submit(
            Op::Timer {
                after: Duration::from_secs(3600),
            },
            2,
        );
        let soon = Duration::from_millis(1);
        ring.submit(Op::Timer { after: soon }, 3);
        assert_eq!(wait_for(&mut ring, 1)[0].context, 3);
        let mut held = held;
        assert!(
            held.unique().is_none(),
            "the operation in flight holds the buffer"
        );
        drop(ring);
        assert!(
            held.unique().is_some(),
            "the dropped ring gave the buffer up"
        );
    });
}

#[test]
fn an_event_wakes_the_ring() {
    both(|mut ring| {
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("one");
        let known = Descriptor::of(&event);
        let buffer = IoBuffer::zeroed(8);
        ring.submit(
            Op::Read {
                file: known,
                buffer,
                range: 0..8,
                at: NO_POSITION,
            },
            5,
        );
        rustix::io::write(&event, &1u64.to_ne_bytes()).expect("room in the counter");
        assert_eq!(wait_for(&mut ring, 1)[0].result().ok(), Some(8));
    });
}

#[test]
fn more_operations_than_entries_all_complete() {
    both(|mut ring| {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(4096).expect("room for a block");
        let known = Descriptor::of(&file);
        for number in 0..1500 {
            let buffer = IoBuffer::zeroed(512);
            ring.submit(
                Op::Read {
                    file: known,
                    buffer,
                    range: 0..512,
                    at: 0,
                },
                number,
            );
        }
        let finished = wait_for(&mut ring, 1500);
        assert!(finished.iter().all(|f| f.result().ok() == Some(512)));
    });
}
