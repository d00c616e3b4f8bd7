//! The thread at work, with a pair of sockets in the place of a tap.

use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vm_memory::{Bytes, GuestAddress};

use super::super::header::{OFFERED, feature};
use super::super::ring_tests::{DATA, MEMORY, Ring, SINS, SIZE, WRITE, memory};
use super::*;

/// A device that is served, and both of its neighbours: the driver and the host.
struct Served {
    receive: Ring,
    transmit: Ring,
    kicks: [OwnedFd; 2],
    calls: [OwnedFd; 2],
    stop: OwnedFd,
    host: UnixDatagram,
    tap: Arc<Tap>,
    traffic: Arc<Traffic>,
    alarms: Arc<AtomicU32>,
    changes: Arc<AtomicU32>,
    thread: JoinHandle<Ended>,
}

fn bell() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK).unwrap()
}

fn counting(count: &Arc<AtomicU32>) -> Alarm {
    let count = Arc::clone(count);
    Alarm::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    })
}

impl Served {
    fn new(features: u64) -> Self {
        let memory = memory();
        Self::with(features, Ring::new(&memory, 0), Ring::new(&memory, 1))
    }

    fn with(features: u64, receive: Ring, transmit: Ring) -> Self {
        // Of this kind one end notices that the other is gone.
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, host) = socketpair(family, kind, SocketFlags::empty(), None).unwrap();
        let host = UnixDatagram::from(host);
        rustix::io::ioctl_fionbio(&ours, true).unwrap();
        let (kicks, calls, stop) = ([bell(), bell()], [bell(), bell()], bell());
        let (alarms, changes) = (Arc::default(), Arc::default());
        let tap = Arc::new(Tap::of_socket(ours));
        let traffic = Arc::default();
        let setup = |ring: &Ring, number: usize| QueueSetup {
            state: ring.state,
            kick: kicks[number].try_clone().unwrap(),
            call: calls[number].try_clone().unwrap(),
        };
        let work = Work {
            features,
            memory: receive.memory.clone(),
            setups: [setup(&receive, 0), setup(&transmit, 1)],
            alarm: counting(&alarms),
            changed: counting(&changes),
            stop: stop.try_clone().unwrap(),
            tap: Arc::clone(&tap),
            traffic: Arc::clone(&traffic),
            parked: None,
        };
        let thread = std::thread::spawn(move || run(work));
        Self {
            receive,
            transmit,
            kicks,
            calls,
            stop,
            host,
            tap,
            traffic,
            alarms,
            changes,
            thread,
        }
    }

    fn kick(&self, queue: usize) {
        rustix::io::write(&self.kicks[queue], &1_u64.to_ne_bytes()).unwrap();
    }

    fn end(self) -> Ended {
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).unwrap();
        self.thread.join().unwrap()
    }
}

/// Wait until this is so.
#[track_caller]
fn until(mut so: impl FnMut() -> bool) {
    for _ in 0..30_000 {
        if so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("that never was so");
}

/// A frame of so many bytes with its header, as a tap gives it.
fn framed(number: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend(vec![number; len]);
    frame
}

#[test]
fn frames_come_and_go_and_the_driver_is_called() {
    let mut served = Served::new(OFFERED & !feature::MRG_RXBUF);
    served.receive.chain(&[(DATA, 2000)], WRITE);
    served.receive.chain(&[(DATA + 0x1000, 2000)], WRITE);
    served.kick(0);
    served.host.send(&framed(7, 100)).unwrap();
    let mut got = Vec::new();
    until(|| {
        got.extend(served.receive.answers());
        !got.is_empty()
    });
    assert_eq!(got, [(0, 112)]);
    assert_eq!(served.receive.bytes(DATA + 12, 100), [7; 100]);
    until(|| rustix::io::read(&served.calls[0], &mut [0; 8]).is_ok());
    let out = framed(9, 60);
    served
        .transmit
        .memory
        .write_slice(&out, GuestAddress(DATA + 0x3000))
        .unwrap();
    served.transmit.chain(&[(DATA + 0x3000, 72)], 0);
    served.kick(1);
    let mut seen = [0; 4096];
    let len = served.host.recv(&mut seen).unwrap();
    assert_eq!(seen[..len], out);
    until(|| served.transmit.answers() == [(0, 0)]);
    until(|| rustix::io::read(&served.calls[1], &mut [0; 8]).is_ok());
    let moved = (served.traffic.to_guest(), served.traffic.from_guest());
    assert_eq!((moved.0.frames, moved.0.bytes), (1, 100));
    assert_eq!((moved.1.frames, moved.1.bytes), (1, 60));
    let [receive, transmit] = served.end().states;
    // The second buffer was gathered, and is given back.
    assert_eq!((receive.next_available, receive.next_used), (1, 1));
    assert_eq!((transmit.next_available, transmit.next_used), (1, 1));
}

#[test]
fn a_frame_that_is_longer_than_the_buffers_waits_for_more_of_them() {
    let mut served = Served::new(OFFERED);
    served.receive.chain(&[(DATA, 500)], WRITE);
    served.kick(0);
    served.host.send(&framed(1, 1000)).unwrap();
    served.host.send(&framed(2, 10)).unwrap();
    // It is read once the one buffer is there, and then kept.
    until(|| rustix::io::ioctl_fionread(served.tap.frames()).unwrap() < 1012);
    served.receive.chain(&[(DATA + 0x1000, 400)], WRITE);
    served.kick(0);
    served.receive.chain(&[(DATA + 0x2000, 400)], WRITE);
    served.kick(0);
    let mut got = Vec::new();
    until(|| {
        got.extend(served.receive.answers());
        got.len() == 3
    });
    assert_eq!(got, [(0, 500), (1, 400), (2, 112)]);
    assert_eq!(served.receive.bytes(DATA + 12, 488), [1; 488]);
    assert_eq!(served.receive.bytes(DATA + 0x1000, 400), [1; 400]);
    assert_eq!(served.receive.bytes(DATA + 0x2000, 113)[111..], [1, 0]);
    served.receive.chain(&[(DATA, 500)], WRITE);
    served.kick(0);
    until(|| !served.receive.answers().is_empty());
    assert_eq!(served.receive.bytes(DATA + 12, 10), [2; 10]);
    served.end();
}

#[test]
fn a_frame_that_no_buffer_can_hold_is_dropped_and_the_next_one_comes() {
    let mut served = Served::new(OFFERED & !feature::MRG_RXBUF);
    served.receive.chain(&[(DATA, 500)], WRITE);
    served.kick(0);
    served.host.send(&framed(1, 1000)).unwrap();
    served.host.send(&framed(2, 10)).unwrap();
    let mut got = Vec::new();
    until(|| {
        got.extend(served.receive.answers());
        !got.is_empty()
    });
    assert_eq!(got, [(0, 22)]);
    assert_eq!(served.receive.bytes(DATA + 12, 10), [2; 10]);
    assert_eq!(served.traffic.to_guest().dropped, 1);
    served.end();
}

#[test]
fn a_stopped_device_goes_on_elsewhere_and_no_frame_is_lost_or_sent_twice() {
    let mut served = Served::new(OFFERED);
    for number in 0..SIZE {
        let frame = framed(number as u8, 60);
        let at = DATA + u64::from(number) * 0x100;
        served
            .transmit
            .memory
            .write_slice(&frame, GuestAddress(at))
            .unwrap();
    }
    let mut seen = [0; 200];
    let mut sent = Vec::new();
    for round in 0..40_u64 {
        let at = DATA + (round % u64::from(SIZE)) * 0x100;
        served.transmit.chain(&[(at, 72)], 0);
        if round % 2 == 0 {
            served.kick(1);
        }
        let (mut receive, mut transmit) = (Ring::new(&served.receive.memory, 0), served.transmit);
        rustix::io::write(&served.stop, &1_u64.to_ne_bytes()).unwrap();
        let [first, second] = served.thread.join().unwrap().states;
        served.host.set_nonblocking(true).unwrap();
        while let Ok(len) = served.host.recv(&mut seen) {
            sent.push(seen[len - 1]);
        }
        (receive.state, transmit.state) = (first, second);
        served = Served::with(OFFERED, receive, transmit);
    }
    served.kick(1);
    while sent.len() < 40 {
        let len = served.host.recv(&mut seen).unwrap();
        sent.push(seen[len - 1]);
    }
    let expected: Vec<u8> = (0..40).map(|round| round % SIZE as u8).collect();
    assert_eq!(sent, expected);
    served.end();
}

#[test]
fn a_driver_that_breaks_a_queue_is_told_and_nothing_is_touched_any_more() {
    for (queue, way) in [(0, WRITE), (1, 0)] {
        for (sin, commit) in SINS {
            let mut served = Served::new(OFFERED);
            let ring = match queue {
                0 => &mut served.receive,
                _ => &mut served.transmit,
            };
            commit(ring, way);
            served.kick(queue);
            until(|| served.alarms.load(Ordering::SeqCst) == 1);
            let before = served.receive.bytes(0, MEMORY);
            served.host.send(&framed(1, 100)).unwrap();
            served.kick(0);
            served.kick(1);
            let memory = served.receive.memory.clone();
            let alarms = Arc::clone(&served.alarms);
            let states = served.end().states;
            assert_eq!(alarms.load(Ordering::SeqCst), 1, "{sin}");
            assert!(states.iter().all(|state| state.next_used == 0), "{sin}");
            let after = Ring::new(&memory, 0).bytes(0, MEMORY);
            assert!(after == before, "{sin}");
        }
    }
}

#[test]
fn a_flood_from_the_host_does_not_keep_the_guest_from_sending_nor_the_device_from_stopping() {
    let mut served = Served::new(OFFERED);
    let flood = served.host.try_clone().unwrap();
    flood.set_nonblocking(true).unwrap();
    let over = bell();
    let told = over.try_clone().unwrap();
    let flooding = std::thread::spawn(move || {
        while rustix::io::read(&told, &mut [0; 8]).is_err() {
            let _ = flood.send(&framed(3, 200));
        }
    });
    let frame = framed(5, 60);
    let at = GuestAddress(DATA + 0x8000);
    served.transmit.memory.write_slice(&frame, at).unwrap();
    served.receive.chain(&[(DATA, 400)], WRITE);
    served.kick(0);
    let mut came = 0;
    for _ in 0..50 {
        served.transmit.chain(&[(at.0, 72)], 0);
        served.kick(1);
        until(|| {
            // The driver gives every buffer back at once.
            for _ in served.receive.answers() {
                came += 1;
                served.receive.chain(&[(DATA, 400)], WRITE);
                served.kick(0);
            }
            !served.transmit.answers().is_empty()
        });
        let mut seen = [0; 100];
        assert_eq!(served.host.recv(&mut seen).unwrap(), 72);
    }
    until(|| {
        came += served.receive.answers().len();
        came > 0
    });
    served.end();
    rustix::io::write(&over, &1_u64.to_ne_bytes()).unwrap();
    flooding.join().unwrap();
}

#[test]
fn a_tap_that_goes_away_takes_the_link_down_and_nothing_else() {
    let mut served = Served::new(OFFERED);
    let (gone, _) = UnixDatagram::pair().unwrap();
    drop(std::mem::replace(&mut served.host, gone));
    served.receive.chain(&[(DATA, 500)], WRITE);
    served.kick(0);
    served.transmit.chain(&[(DATA, 100)], 0);
    served.kick(1);
    until(|| served.transmit.answers() == [(0, 0)]);
    assert_eq!(served.traffic.from_guest().dropped, 1);
    until(|| !served.tap.is_up() && served.changes.load(Ordering::SeqCst) > 0);
    assert_eq!(served.alarms.load(Ordering::SeqCst), 0);
    served.end();
}

#[test]
fn a_tap_that_is_gone_before_the_driver_is_ready_is_a_link_that_is_down() {
    let mut served = Served::new(OFFERED);
    let tap = Arc::clone(&served.tap);
    rustix::io::write(&served.stop, &1_u64.to_ne_bytes()).unwrap();
    served.thread.join().unwrap();
    // What is no tap refuses offloads, as one does that was removed.
    let setup = |ring: &Ring, number: usize| QueueSetup {
        state: ring.state,
        kick: served.kicks[number].try_clone().unwrap(),
        call: served.calls[number].try_clone().unwrap(),
    };
    let stop = bell();
    let work = Work {
        features: OFFERED,
        memory: served.receive.memory.clone(),
        setups: [setup(&served.receive, 0), setup(&served.transmit, 1)],
        alarm: counting(&served.alarms),
        changed: counting(&served.changes),
        stop: stop.try_clone().unwrap(),
        tap: Arc::clone(&tap),
        traffic: Arc::clone(&served.traffic),
        parked: None,
    };
    let thread = std::thread::spawn(move || serve(work));
    served.transmit.chain(&[(DATA, 100)], 0);
    rustix::io::write(&served.kicks[1], &1_u64.to_ne_bytes()).unwrap();
    until(|| served.transmit.answers() == [(0, 0)]);
    assert!(!tap.is_up());
    assert_eq!(served.changes.load(Ordering::SeqCst), 1);
    assert_eq!(served.alarms.load(Ordering::SeqCst), 0);
    rustix::io::write(&stop, &1_u64.to_ne_bytes()).unwrap();
    thread.join().unwrap();
}
