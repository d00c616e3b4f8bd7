//! Both drivers in one process, over real sockets and with records on real files.
//!
//! The machines' rules under every crash are proved in the crate's own simulation; what is held
//! here is that the drivers carry them out.

#[path = "driver/disk.rs"]
mod disk;
#[path = "driver/load.rs"]
mod load;
#[path = "driver/proxy.rs"]
mod proxy;
#[path = "driver/site.rs"]
mod site;
#[path = "driver/way.rs"]
mod way;
#[path = "driver/world.rs"]
mod world;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disk::{BLOCK, Front, MemoryDisk};
use mirror::files::RecordStore;
use mirror::net::{ServedDisk, SourceDriver, SourceHandle, TargetDriver, TargetHost};
use mirror::record::{Ownership, State};
use mirror::session::{SourceConfig, Stage};
use mirror::switchover::{Verdict, verdict};
use mirror::timetable::Timetable;
use mirror::wire::{VERSION, encode};
use mirror::{ErrorKind, Micros};
use site::Site;
use uuid::Uuid;
use world::{LONG, NAME, World, config, description, listen, moved, same, until};

/// Bytes of a block whose hash is compared on its own.
const COMPARED: usize = 32 << 10;

#[test]
fn a_busy_disk_moves_by_itself_with_every_acknowledged_write() {
    let mut world = World::new("moves", 32 << 20);
    let load = world.load(Duration::from_micros(500));
    let mut config = world.config();
    config.handover.max_pause = Micros::from_millis(20);
    let session = world.start(config);
    let status = moved(&session);
    let after = load.acknowledged.load(Ordering::Relaxed) + 100;
    until("clients go on at the target", || {
        load.acknowledged.load(Ordering::Relaxed) > after
    });
    world.check_moved(&load.finish());
    assert_eq!(
        (status.progress.stage, status.ended),
        (Stage::Forwarding, true)
    );
    assert!(status.progress.pause.is_some() && status.sent > 16 << 20);
    let text = serde_json::to_value(&status).unwrap();
    assert_eq!(
        (&text["stage"], &text["name"]),
        (&"forwarding".into(), &NAME.into())
    );
    println!(
        "pause {:?} us, {} bytes sent",
        status.progress.pause, status.sent
    );
}

#[test]
fn writes_that_the_queue_has_no_room_for_arrive_all_the_same() {
    let mut world = World::new("falls back", 16 << 20);
    let load = world.load(Duration::from_micros(50));
    let mut config = world.config();
    config.limits.queue = 256 << 10;
    config.handover.automatic = false;
    config.replica.follow = true;
    let session = world.start(config);
    until("the queue overflows", || {
        session.status().progress.fallen_back > 100
    });
    session.cutover(Some(LONG), None);
    let status = moved(&session);
    world.check_moved(&load.finish());
    println!("{} changes fell back", status.progress.fallen_back);
}

#[test]
fn cuts_and_silences_of_the_link_lose_no_acknowledged_write() {
    let mut world = World::new("cuts", 16 << 20);
    let load = world.load(Duration::from_millis(1));
    let mut config = world.config();
    config.handover.automatic = false;
    config.replica.follow = true;
    config.rates = Timetable::always(Some(8 << 20));
    let session = world.start(config);
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(50 + world.random.below(300)));
        if world.random.below(4) == 0 {
            world.proxy.fall_silent();
        } else {
            world.proxy.cut();
        }
        // Cuts may also fall into a switchover.
        if world.random.below(2) == 0 {
            session.cutover(Some(LONG), None);
        }
    }
    session.set_rates(Timetable::default());
    until("the session ends", || {
        session.cutover(Some(LONG), None);
        session.wait_for(Duration::from_millis(500)).is_some()
    });
    let status = moved(&session);
    world.check_moved(&load.finish());
    println!(
        "{} reconnects, {} given up",
        status.progress.reconnects, status.progress.given_up
    );
    assert!(status.progress.reconnects > 0);
}

#[test]
fn a_disk_that_nobody_writes_to_is_followed_as_well() {
    let world = World::new("idle", 4 << 20);
    let mut config = world.config();
    config.handover.automatic = false;
    config.replica.follow = true;
    let session = world.start(config);
    until("it is followed", || {
        let record = world.away.store(NAME).load().unwrap();
        record.is_some_and(|record| matches!(record.state, State::Following { .. }))
    });
    session.cutover(Some(LONG), None);
    moved(&session);
    world.check_moved(&world.disk().content());
}

#[test]
fn clients_are_held_only_once_there_is_a_way_for_them_to_the_target() {
    let mut world = World::new("way", 4 << 20);
    let load = world.load(Duration::from_micros(500));
    world.disk().way.take(Duration::from_millis(400));
    let session = world.start(world.config());
    let status = moved(&session);
    assert!(!world.disk().way.was_missed());
    println!("pause {:?} us", status.progress.pause);
    world.check_moved(&load.finish());
}

#[test]
fn a_disk_moves_though_there_is_no_way_for_its_clients_yet() {
    let world = World::new("no way", 4 << 20);
    world.disk().way.take(Duration::from_hours(1));
    let session = world.start(world.config());
    moved(&session);
    assert!(world.disk().way.was_missed());
    world.check_moved(&world.disk().content());
}

#[test]
fn a_cancelled_session_leaves_the_disk_here_and_the_next_one_goes_on_from_what_is_the_same() {
    let mut world = World::new("cancel", 16 << 20);
    cancelled(&mut world);
    // Nobody writes meanwhile, so what is the same is known to the byte.
    let here = world.disk().content();
    let there = world.away.disk(NAME).content();
    let blocks = here.chunks(COMPARED).zip(there.chunks(COMPARED));
    let alike = blocks.filter(|(a, b)| a == b && a.iter().any(|byte| *byte != 0));
    let alike = (alike.count() * COMPARED) as u64;
    let status = moved(&world.start(world.config()));
    world.check_moved(&here);
    assert_eq!(world.away.created.load(Ordering::Relaxed), 1);
    let same = status.progress.same;
    assert!(
        alike > 0 && same >= alike,
        "{same} of {alike} were not sent"
    );
}

#[test]
fn a_session_that_is_to_begin_anew_empties_what_an_earlier_one_left() {
    let mut world = World::new("begin anew", 16 << 20);
    cancelled(&mut world);
    let load = world.load(Duration::from_millis(1));
    let mut config = world.config();
    config.replica.compare = false;
    let status = moved(&world.start(config));
    world.check_moved(&load.finish());
    assert_eq!(world.away.created.load(Ordering::Relaxed), 2);
    assert_eq!(status.progress.same, 0);
}

/// Begin to move a disk that is written to, and cancel in step.
fn cancelled(world: &mut World) {
    let load = world.load(Duration::from_millis(1));
    let mut config = world.config();
    config.handover.automatic = false;
    config.replica.follow = true;
    let session = world.start(config);
    until("it follows", || {
        session.status().progress.stage == Stage::Synced
    });
    session.cancel();
    assert_eq!(session.wait().unwrap_err().kind(), ErrorKind::Cancelled);
    let status = session.status();
    assert!(status.ended && status.error.is_some());
    let expected = load.finish();
    world.check_home(&expected);
    let record = world.away.store(NAME).load().unwrap();
    assert!(matches!(verdict(record.as_ref(), None), Verdict::Refuse(_)));
}

#[test]
fn a_target_that_restarts_in_the_middle_goes_on_with_what_it_has() {
    let mut world = World::new("target restarts", 16 << 20);
    let load = world.load(Duration::from_millis(1));
    let mut config = world.config();
    config.rates = Timetable::always(Some(3 << 20));
    // What is left takes the line no time long before all is there: it would be over in the middle.
    config.handover.automatic = false;
    let session = world.start(config);
    for _ in 0..4 {
        let before = session.status().progress.copied;
        until("something is durable", || {
            session.status().progress.copied > before
        });
        let power = world.random.below(2) == 0;
        world.crash_target(power);
        std::thread::sleep(Duration::from_millis(world.random.below(100)));
        world.restart_target();
    }
    session.set_rates(Timetable::default());
    session.cutover(Some(LONG), None);
    moved(&session);
    world.check_moved(&load.finish());
    assert_eq!(
        world.away.created.load(Ordering::Relaxed),
        1,
        "it was begun anew"
    );
    assert!(world.away.disk(NAME).flushes() > 0);
}

#[test]
fn a_record_that_cannot_be_written_is_tried_again_until_it_can() {
    let mut world = World::new("record", 4 << 20);
    let load = world.load(Duration::from_millis(1));
    let mut config = world.config();
    config.handover.automatic = false;
    config.replica.follow = true;
    let session = world.start(config);
    until("it follows", || {
        session.status().progress.stage == Stage::Synced
    });
    let path = world.home.record_path(NAME);
    let directory = path.parent().unwrap();
    let aside = directory.with_extension("aside");
    std::fs::rename(directory, &aside).unwrap();
    session.cutover(Some(LONG), None);
    until("it says so", || {
        let trouble = session.status().progress.trouble;
        trouble.is_some_and(|text| text.contains("deciding record"))
    });
    // It may be durable: there is no way back, and none forward.
    session.cancel();
    assert_eq!(
        session.wait_for(Duration::from_millis(500)).map(|_| ()),
        None
    );
    assert_eq!(world.owners.now(), Vec::<&str>::new());
    std::fs::rename(&aside, directory).unwrap();
    moved(&session);
    world.check_moved(&load.finish());
}

/// A source that has handed over and ended before it heard that the target runs.
fn released(world: &World) -> Ownership {
    world.away.stuck.store(true, Ordering::Relaxed);
    let session = world.start(world.config());
    until("it is handed over", || {
        session.status().progress.stage == Stage::Released
    });
    session.cancel();
    session.stop();
    assert!(!session.status().ended);
    assert_eq!(world.owners.now(), Vec::<&str>::new());
    let record = world.home.store(NAME).load().unwrap().unwrap();
    assert!(matches!(
        verdict(Some(&record), None),
        Verdict::Forward { .. }
    ));
    record
}

fn resume(world: &World, record: &Ownership) -> SourceHandle {
    let disk = world.disk();
    let forward = move |address: &str| disk.forward(address);
    // The record says which session it was, and with whom.
    let config = SourceConfig::new(Uuid::new_v4(), String::new(), description(&world.disk()));
    SourceDriver::resume_released(record, config, forward).unwrap()
}

#[test]
fn a_source_found_released_repeats_the_grant_and_forwards() {
    let mut world = World::new("released", 8 << 20);
    let load = world.load(Duration::from_millis(1));
    let record = released(&world);
    let session = resume(&world, &record);
    until("it reaches the target", || {
        session.status().progress.connected || session.status().progress.stage == Stage::Released
    });
    world.proxy.cut();
    world.away.stuck.store(false, Ordering::Relaxed);
    assert_eq!(moved(&session).progress.stage, Stage::Forwarding);
    world.disk().detach_tap(Box::new(|| {}));
    world.check_moved(&load.finish());
}

#[test]
fn a_target_that_restarts_as_owner_serves_unasked_and_tells_whoever_asks_later() {
    let mut world = World::new("owner restarts", 8 << 20);
    let expected = world.disk().content();
    let record = released(&world);
    until("it owns", || {
        let record = world.away.store(NAME).load().unwrap();
        matches!(record.map(|r| r.state), Some(State::Owner { .. }))
    });
    world.crash_target(true);
    world.away.stuck.store(false, Ordering::Relaxed);
    world.restart_target();
    until("it serves", || world.away.served(NAME).is_some());
    // Once served and alone, only the record speaks for the disk.
    let opened = world.away.opened.load(Ordering::Relaxed);
    moved(&resume(&world, &record));
    world.disk().detach_tap(Box::new(|| {}));
    world.check_moved(&expected);
    assert_eq!(
        world.away.opened.load(Ordering::Relaxed),
        opened,
        "a served disk was opened"
    );
    let status = world.target.as_ref().unwrap().status();
    assert_eq!((status[0].state, &*status[0].name), ("owner", NAME));
}

#[test]
fn a_disk_that_moved_away_comes_back_under_a_later_epoch() {
    let mut world = World::new("comes back", 8 << 20);
    let load = world.load(Duration::from_millis(1));
    moved(&world.start(world.config()));
    let expected = load.finish();
    world.check_moved(&expected);
    let back = listen(&world.home);
    let disk = world.away.disk(NAME);
    let config = config(&disk, format!("tcp:{}", back.address()));
    let session = SourceDriver::start(disk, world.away.store(NAME), config).unwrap();
    moved(&session);
    assert_eq!(world.owners.now(), ["home"]);
    same(&world.disk().content(), &expected);
    let record = world.home.store(NAME).load().unwrap().unwrap();
    assert!(
        matches!(record.state, State::Owner { epoch: 3, .. }),
        "{record:?}"
    );
}

#[test]
fn a_target_that_refuses_ends_the_session_and_says_why() {
    let world = World::new("refuses", 1 << 20);
    let expected = world.disk().content();
    let stranger = MemoryDisk::new("away", 1 << 20, Front::Closed, &world.owners);
    world.away.put(NAME, stranger);
    let error = world.start(world.config()).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(
        error.to_string().contains("without an ownership record"),
        "{error}"
    );
    world.check_home(&expected);

    let path = world.away.record_path(NAME);
    std::fs::write(path, "{ damaged").unwrap();
    let error = world.start(world.config()).wait().unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    let mut config = world.config();
    config.description.name = "other.ownership".into();
    let error = world.start(config).wait().unwrap_err();
    assert!(error.to_string().contains("files of the mirror"), "{error}");
    world.check_home(&expected);
}

#[test]
fn a_target_that_is_not_there_can_be_waited_for_and_given_up_on() {
    let mut world = World::new("not there", 4 << 20);
    let expected = world.disk().content();
    world.crash_target(false);
    let session = world.start(world.config());
    until("it says so", || session.status().progress.trouble.is_some());
    assert_eq!(session.status().progress.stage, Stage::Connecting);
    session.cancel();
    assert_eq!(session.wait().unwrap_err().kind(), ErrorKind::Cancelled);
    world.check_home(&expected);
    let session = world.start(world.config());
    until("it tries", || session.status().progress.trouble.is_some());
    world.restart_target();
    moved(&session);
    world.check_moved(&expected);
}

#[test]
fn what_cannot_begin_is_refused_before_anything_happens() {
    let world = World::new("cannot begin", 1 << 20);
    let store = || world.home.store(NAME);
    let try_with = |config| {
        SourceDriver::start(world.disk(), store(), config)
            .unwrap_err()
            .kind()
    };
    let mut config = world.config();
    config.to = "tcp:nowhere".into();
    assert_eq!(try_with(config), ErrorKind::InvalidArgument);
    let mut config = world.config();
    config.description.size += 512;
    assert_eq!(try_with(config), ErrorKind::InvalidArgument);
    let state = State::Receiving {
        session: Uuid::new_v4(),
        epoch: 1,
    };
    store()
        .persist_and_wait(&Ownership {
            disk: Uuid::new_v4(),
            state,
        })
        .unwrap();
    assert_eq!(try_with(world.config()), ErrorKind::NotOwned);
    let used = world.target.as_ref().unwrap().address();
    let error = TargetDriver::start(&format!("tcp:{used}"), Arc::<Site>::clone(&world.away));
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains(&used.to_string()), "{error}");
}

#[test]
fn strangers_and_damaged_bytes_end_their_connection_and_nothing_else() {
    let mut world = World::new("strangers", 16 << 20);
    let load = world.load(Duration::from_millis(1));
    let mut config = world.config();
    config.rates = Timetable::always(Some(16 << 20));
    let session = world.start(config);
    until("it copies", || session.status().progress.copied > 0);
    let target = world.target.as_ref().unwrap().address();
    let mut answer = Vec::new();
    for count in [1, 11, 12, 13, 100, 5000] {
        let mut stranger = TcpStream::connect(target).unwrap();
        let garbage: Vec<u8> = (0..count).map(|_| world.random.below(256) as u8).collect();
        stranger.write_all(&garbage).unwrap();
        stranger.shutdown(std::net::Shutdown::Write).unwrap();
        // Closed, by an end or a reset, without a word.
        answer.clear();
        let _ = stranger.read_to_end(&mut answer);
        assert_eq!(answer, b"");
    }
    let hello = mirror::wire::Message::Hello(mirror::wire::Hello {
        session: Uuid::new_v4(),
        disk: Uuid::new_v4(),
        epoch: 1,
        incarnation: 1,
        description: description(&world.disk()),
    });
    let frame = encode(&hello);
    let mut decoder = mirror::wire::Decoder::default();
    let mut other = TcpStream::connect(target).unwrap();
    other.write_all(&frame.head).unwrap();
    answer.clear();
    other.read_to_end(&mut answer).unwrap();
    decoder.feed(&answer);
    // The name is taken by another disk.
    let refused = decoder.next().unwrap();
    assert!(
        matches!(refused, Some(mirror::wire::Message::Refused { .. })),
        "version {VERSION}: {refused:?}"
    );
    moved(&session);
    world.check_moved(&load.finish());
}

#[test]
fn the_rate_of_a_copy_over_loopback_is_told() {
    let world = World::new("rate", 256 << 20);
    let disk = world.disk();
    for at in (BLOCK..256 << 20).step_by(2 * BLOCK) {
        disk.fill(at, &vec![7; BLOCK]);
    }
    let mut config = world.config();
    config.to = format!("tcp:{}", world.target.as_ref().unwrap().address());
    let started = Instant::now();
    let status = moved(&world.start(config));
    let rate = 256.0 / started.elapsed().as_secs_f64();
    same(&world.away.disk(NAME).content(), &disk.content());
    println!(
        "{rate:.0} MiB/s, pause {:?} us (this build is not optimised)",
        status.progress.pause
    );
}

#[test]
fn records_are_written_by_many_threads_at_once_and_each_finds_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let done = Arc::new(AtomicU64::new(0));
    let order = Arc::new(Mutex::new(Vec::new()));
    for disk in 1..=8 {
        let store = RecordStore::open(directory.path().join(format!("{disk}.ownership")));
        for epoch in 1..=10 {
            let state = State::Owner {
                epoch,
                session: None,
            };
            let record = Ownership {
                disk: Uuid::from_u128(disk),
                state,
            };
            let (done, order) = (Arc::clone(&done), Arc::clone(&order));
            store.persist(&record, move |result| {
                result.unwrap();
                order.lock().unwrap().push((disk, epoch));
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
    }
    until("all are written", || done.load(Ordering::Relaxed) == 80);
    for disk in 1..=8 {
        let store = RecordStore::open(directory.path().join(format!("{disk}.ownership")));
        let record = store.load().unwrap().unwrap();
        assert_eq!((record.disk, record.epoch()), (Uuid::from_u128(disk), 10));
        let order = order.lock().unwrap();
        let mine = order
            .iter()
            .filter(|(d, _)| *d == disk)
            .map(|(_, epoch)| *epoch);
        assert!(mine.eq(1..=10));
    }
}
