//! The same promises for both kinds of ring.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

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
        ring.enter(true).expect("the ring works");
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
                after: Duration::from_hours(1),
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

#[test]
fn pieces_of_a_guest_s_memory_are_written_and_read_in_one_go() {
    let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(4 << 20), 1 << 20)];
    let memory = GuestMemoryMmap::from_ranges(&ranges).expect("two megabytes");
    let memory = Rc::new(Arc::new(memory));
    let pattern: Vec<u8> = (0..1u32 << 16).map(|n| ((n * 31) >> 3) as u8).collect();
    memory
        .write_slice(&pattern, GuestAddress(4 << 20))
        .expect("inside");
    both(|mut ring| {
        let file: File = tempfile::tempfile().expect("a temporary file");
        let known = Descriptor::of(&file);
        let scattered = (0..64u64).map(|n| ((4 << 20) + (63 - n) * 1024, 100 + n as usize));
        let from = IoBuffer::of_guest(&memory, scattered).expect("there");
        let len = from.capacity();
        let (range, at) = (7..len - 9, 1 << 20);
        let write = Op::Write {
            file: known,
            buffer: from.clone(),
            range: range.clone(),
            at,
        };
        ring.submit(write, 1);
        let mut finished = wait_for(&mut ring, 1);
        assert_eq!(finished[0].result().ok(), Some(range.len()));
        assert!(
            finished[0]
                .buffer()
                .is_some_and(|buffer| buffer.is_foreign())
        );
        let target = (0..32u64).map(|n| (n * 777, 400));
        let to = IoBuffer::of_guest(&memory, target).expect("there");
        to.zero(0..to.capacity());
        let read = Op::Read {
            file: known,
            buffer: to.clone(),
            range: 5..to.capacity(),
            at,
        };
        ring.submit(read, 2);
        assert_eq!(wait_for(&mut ring, 1)[0].result().ok(), Some(range.len()));
        let (mut written, mut found) = (Vec::new(), Vec::new());
        from.copy_out(range.clone(), &mut written);
        to.copy_out(5..5 + range.len(), &mut found);
        assert!(written == found, "every piece is where it belongs");
        let mut rest = Vec::new();
        to.copy_out(5 + range.len()..to.capacity(), &mut rest);
        assert!(
            rest.iter().all(|byte| *byte == 0),
            "and nothing behind them"
        );
    });
}

#[test]
fn a_timer_is_not_forgotten_by_a_ring_that_is_always_busy() {
    both(|mut ring| {
        let file: File = tempfile::tempfile().expect("a temporary file");
        let after = Duration::from_millis(1);
        ring.submit(Op::Timer { after }, 1);
        let mut finished = Vec::new();
        for _ in 0..200 {
            let read = Op::Read {
                file: Descriptor::of(&file),
                buffer: IoBuffer::zeroed(512),
                range: 0..512,
                at: 0,
            };
            ring.submit(read, 2);
            // Something has always completed when the ring is entered.
            std::thread::sleep(Duration::from_millis(2));
            ring.enter(true).expect("the ring works");
            ring.reap(&mut finished);
            if finished.iter().any(|one| one.context == 1) {
                return;
            }
        }
        panic!("the timer never went off");
    });
}

#[test]
fn a_ring_does_nothing_but_the_operations_of_this_module() {
    let mut ring = match set_up() {
        Ok(ring) => ring,
        Err(error) => {
            eprintln!("io_uring is refused here ({error}): not tested");
            return;
        }
    };
    let open = opcode::OpenAt::new(Fd(libc::AT_FDCWD), c"/etc/passwd".as_ptr()).build();
    let connect = opcode::Connect::new(Fd(0), std::ptr::null(), 0).build();
    let linked = opcode::Timeout::new(&raw const TICK).build();
    let linked = linked.flags(squeue::Flags::IO_LINK);
    for entry in [open, connect, linked] {
        // SAFETY: what the entries point to is not freed before the program ends.
        unsafe { ring.submission().push(&entry) }.expect("there is room");
        ring.submit_and_wait(1).expect("a completion comes");
        let done = ring.completion().next().expect("it has come");
        assert_eq!(done.result(), -libc::EACCES, "{entry:?}");
    }
    let ring = ring.submitter();
    assert!(ring.register_files(&[0]).is_err());
    let cancelled = ring.register_sync_cancel(None, CancelBuilder::any());
    let refused = |error: &io::Error| error.raw_os_error() == Some(libc::EACCES);
    assert!(!cancelled.is_err_and(|error| refused(&error)));
}

static TICK: Timespec = Timespec::new();

#[test]
fn what_ended_is_seen_without_sleeping() {
    let Ok(mut ring) = Ring::new(Backend::Uring) else {
        return eprintln!("io_uring is refused here: not tested");
    };
    assert!(ring.hand_over() && !ring.has_news());
    let after = Duration::from_millis(20);
    let begun = std::time::Instant::now();
    ring.submit(Op::Timer { after }, 7);
    assert!(ring.hand_over());
    while !ring.has_news() && begun.elapsed() < Duration::from_secs(20) {
        std::hint::spin_loop();
    }
    assert!(begun.elapsed() >= after);
    let mut finished = Vec::new();
    ring.enter(false).expect("the ring works");
    ring.reap(&mut finished);
    assert_eq!(finished.first().map(|one| one.context), Some(7));
    // Nothing is in flight any more: whoever enters now must not sleep for ever.
    ring.enter(false).expect("the ring works");
    assert!(!ring.has_news());
}

#[test]
fn what_is_done_at_once_completes_with_the_others_and_wakes_whoever_sleeps() {
    both(|mut ring| {
        let file: File = tempfile::tempfile().expect("a temporary file");
        let (file, buffer) = (Descriptor::of(&file), IoBuffer::zeroed(4096));
        buffer.copy_in(0, &[9; 4096]);
        assert!(!ring.has_news());
        #[rustfmt::skip]
        ring.do_at_once(Op::Write { file, buffer, range: 0..4096, at: 8192 }, 0);
        assert!(ring.has_news() && ring.in_flight() == 1);
        let buffer = IoBuffer::zeroed(4096);
        #[rustfmt::skip]
        ring.submit(Op::Read { file, buffer, range: 0..4096, at: 8192 }, 1);
        let mut finished = wait_for(&mut ring, 2);
        assert_eq!(finished[0].result().ok(), Some(4096));
        assert_eq!(finished[1].result().ok(), Some(4096));
        let read = finished[1]
            .buffer()
            .expect("the read had one")
            .unique()
            .is_some_and(|read| *read == [9; 4096]);
        assert!(read && ring.in_flight() == 0);
        let buffer = IoBuffer::zeroed(4096);
        let nowhere = Descriptor(-1);
        #[rustfmt::skip]
        ring.do_at_once(Op::Read { file: nowhere, buffer, range: 0..4096, at: 0 }, 2);
        // Without another in flight this sleeps for ever, or not at all.
        let failed = wait_for(&mut ring, 1).remove(0).result();
        assert_eq!(
            failed.expect_err("no such file").raw_os_error(),
            Some(libc::EBADF)
        );
        #[rustfmt::skip]
        ring.do_at_once(Op::Sync { file }, 3);
    });
}
