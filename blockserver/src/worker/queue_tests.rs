//! A queue and its worker, one round at a time.

use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vdisk::disk::OpenOptions;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::export::{Disk, ExportOptions, Policy};
use crate::uring::Backend;
use crate::virtio::QueueState;
use crate::worker::{Crew, Limits};

const SIZE: u16 = 32768;
const AVAILABLE: u64 = 0x10_0000;
const USED: u64 = 0x20_0000;

fn worker(backend: Backend) -> Worker {
    let limits = Limits {
        handshake: Duration::from_secs(10),
        drain: Duration::from_secs(5),
        connections: 1,
        requests: 256,
        bytes: 1 << 20,
        worker_bytes: 1 << 20,
    };
    let crew = Crew::new(1, limits).expect("an inbox");
    Worker::new(0, Arc::new(crew), backend).expect("a ring")
}

fn export() -> Arc<Export> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(1 << 20).expect("room");
    let disk = Disk::open(file.path(), &OpenOptions::default()).expect("a raw disk");
    let policy = Policy {
        mode: Mode::Serve,
        tap: None,
        disk,
        limited: false,
    };
    Arc::new(Export::new(
        1,
        "disk".into(),
        ExportOptions::default(),
        policy,
        1,
    ))
}

/// A queue whose every entry is the same chain: a header of zeros, and a status. Of a request that
/// there is not, so that it ends at once.
fn attachment(memory: &GuestMemory) -> Attachment {
    let put = |at, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).expect("inside");
    put(0, &0x30_0000u64.to_le_bytes());
    put(8, &[16, 0, 0, 0, 1, 0, 1, 0]);
    put(16, &0x30_0010u64.to_le_bytes());
    put(24, &[1, 0, 0, 0, 2, 0, 0, 0]);
    put(0x30_0000, &77u32.to_le_bytes());
    put(AVAILABLE + 2, &SIZE.to_le_bytes());
    let bell = || eventfd(0, EventfdFlags::CLOEXEC).expect("one");
    Attachment {
        export: export(),
        memory: Arc::clone(memory),
        setup: QueueSetup {
            state: QueueState {
                size: SIZE,
                descriptors: 0,
                available: AVAILABLE,
                used: USED,
                next_available: 0,
                next_used: 0,
            },
            kick: bell(),
            call: bell(),
        },
        options: QueueOptions {
            features: !feature::EVENT_IDX,
            serial: [0; 20],
            number: 0,
            broken: None,
        },
        shared: Arc::default(),
    }
}

#[test]
fn a_queue_takes_its_turn_and_no_more_before_others_have_had_theirs() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("4 MiB");
    let memory = Arc::new(memory);
    let mut worker = worker(Backend::Threads);
    worker.attach_queue(attachment(&memory));
    let used = || {
        memory
            .read_obj::<u16>(GuestAddress(USED + 2))
            .expect("inside")
    };
    worker.settle_agenda();
    assert_eq!(u32::from(used()), TURN);
    let mut finished = Vec::new();
    let mut rounds = 1;
    while used() < SIZE {
        worker.ring.enter(true).expect("the ring works");
        worker.begin_round();
        worker.ring.reap(&mut finished);
        for one in finished.drain(..) {
            worker.finished(one);
        }
        let before = u32::from(used());
        worker.settle_agenda();
        assert!(u32::from(used()) - before <= TURN);
        rounds += 1;
    }
    assert!(rounds >= u32::from(SIZE) / TURN, "{rounds} rounds");
}

#[test]
fn before_a_worker_sleeps_it_takes_what_came_untold_and_then_asks_to_be_told() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("4 MiB");
    let memory = Arc::new(memory);
    let refused = crate::uring::Ring::<()>::new(Backend::Uring).is_err();
    for backend in [Backend::Threads, Backend::Uring] {
        if refused && backend == Backend::Uring {
            eprintln!("io_uring is refused here: only threads are tested");
            break;
        }
        let set = |at, value: u16| {
            let set = memory.write_obj(value, GuestAddress(at));
            set.expect("inside");
        };
        let get = |at| {
            let got = memory.read_obj::<u16>(GuestAddress(at));
            got.expect("inside")
        };
        set(USED + 2, 0);
        let attachment = attachment(&memory);
        set(AVAILABLE + 2, 1);
        let mut worker = worker(backend);
        worker.attach_queue(attachment);
        worker.settle_agenda();
        assert_eq!(get(USED + 2), 1, "{backend:?}");
        // A second chain, and no kick.
        set(AVAILABLE + 2, 2);
        assert!(!worker.may_sleep(), "{backend:?}");
        worker.settle_agenda();
        assert_eq!(get(USED + 2), 2, "{backend:?}");
        // VIRTQ_USED_F_NO_NOTIFY (2.7.10).
        set(USED, 1);
        while !worker.may_sleep() {
            worker.ring.enter(false).expect("the ring works");
        }
        assert_eq!(get(USED), 0, "{backend:?}: the driver is asked for kicks");
    }
}
