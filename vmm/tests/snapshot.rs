//! Machines on this host's KVM that are saved, and go on in another machine where they were.

#[path = "snapshot/disk.rs"]
mod disk;
#[path = "snapshot/kept.rs"]
mod kept;
#[path = "machine/ran.rs"]
mod ran;
#[path = "snapshot/refusals.rs"]
mod refusals;

use disk::Served;
use kept::{anew, copied, keep, state, timeless, wait_for_queues};
use ran::{Printed, config, numbers, started, without_kvm};
use serde_json::Value;
use vmm::virtio::VirtioDevice;
use vmm::virtio::rng::Rng;
use vmm::{Devices, Exit, Machine, MachineConfig};

const MIB: u64 = 1 << 20;

/// Move a machine from one to another until it ends by itself, at most so often; says how often it was.
fn moved(
    config: &MachineConfig,
    (mut machine, printed): (Machine, &Printed),
    most: usize,
    devices: impl Fn() -> Vec<Box<dyn VirtioDevice>>,
) -> usize {
    let mut moves = 0;
    while moves < most {
        machine.pause();
        if machine.exit().is_some() {
            break;
        }
        let kept = keep(machine);
        moves += 1;
        machine = anew(config, kept, printed, devices()).unwrap();
        machine.start().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
    moves
}

fn of_vcpu(events: &[Value], vcpu: u64) -> Vec<Value> {
    let own = events.iter().filter(|event| event["vcpu"] == vcpu);
    own.cloned().collect()
}

/// What a machine of one processor with a disk and an entropy device at work has left, in format 1.
const FORMAT_1: &[u8] = include_bytes!("snapshot/format-1.state");

#[test]
fn a_state_that_was_written_once_is_read_for_ever() {
    let state = state(FORMAT_1);
    assert_eq!((state.shape.vcpus, state.shape.memory), (1, 64 * MIB));
    assert_eq!(state.processors.len(), 1);
    let kinds: Vec<u16> = state.functions.iter().map(|it| it.device.kind()).collect();
    assert_eq!(kinds, [2, 4]);
    let disk = &state.functions[0].transport;
    assert_eq!((disk.status, disk.queues.len()), (15, 1));
    assert!(disk.queues[0].position.is_some());
}

#[test]
fn a_machine_goes_on_where_it_was_saved() {
    if without_kvm() {
        return;
    }
    // Four processors that print most of the time: every line of each comes once, whatever moment meets them.
    let config = config(4, 64 * MIB, "do=spin every=1 rounds=60");
    let (machine, printed) = started(&config, Vec::new());
    printed.wait_for("spin", 1);
    let moves = moved(&config, (machine, &printed), 8, Vec::new);
    assert!(moves > 0);
    for vcpu in 0..4 {
        let own = of_vcpu(&printed.events("spin"), vcpu);
        assert_eq!(numbers(&own, "round"), (1..=60).collect::<Vec<u64>>());
        let counts = numbers(&own, "count");
        assert!(counts.is_sorted(), "{counts:?}");
    }
}

#[test]
fn a_disk_loses_nothing_that_was_flushed_and_does_nothing_twice() {
    if without_kvm() {
        return;
    }
    let served = Served::new("disk", 64 * MIB);
    let words = "blocks=256 do=ledger rounds=300 batch=8 every=5 do=ledger-check";
    let config = config(2, 64 * MIB, words);
    let devices = || vec![served.device(2)];
    let (machine, printed) = started(&config, devices());
    printed.wait_for("ledger", 1);
    let moves = moved(&config, (machine, &printed), 8, devices);
    assert!(moves > 1, "it ended before it was moved");
    for vcpu in 0..2 {
        let own = of_vcpu(&printed.events("ledger"), vcpu);
        assert_eq!(numbers(&own, "round").last(), Some(&300));
        assert_eq!(numbers(&own, "flushed").last(), Some(&2400));
        for name in ["wrong", "errors"] {
            assert!(
                numbers(&own, name).iter().all(|count| *count == 0),
                "{name}"
            );
        }
    }
    let found = printed.events("ledger-check");
    assert_eq!(numbers(&found, "holds"), [2400, 2400]);
    assert_eq!(numbers(&found, "torn"), [0, 0]);
}

#[test]
fn a_machine_that_lost_a_device_goes_on_with_its_disk_in_the_same_slot() {
    if without_kvm() {
        return;
    }
    let served = Served::new("disk", 64 * MIB);
    let config = config(1, 64 * MIB, "do=hello do=load ops=20000 write=50");
    let rng = || Box::new(Rng::default()) as Box<dyn VirtioDevice>;
    let (machine, printed) = started(&config, vec![rng(), served.device(1)]);
    printed.wait_for("hello", 1);
    machine.pull_device(1).unwrap().wait();
    let moves = moved(&config, (machine, &printed), 3, || vec![served.device(1)]);
    assert!(moves > 0, "it ended before it was moved");
    let loads = printed.events("load");
    assert_eq!(numbers(&loads, "errors"), [0]);
    assert_eq!(numbers(&loads, "writes").len(), 1);
}

#[test]
fn requests_on_their_way_at_any_depth_are_all_answered() {
    if without_kvm() {
        return;
    }
    let served = Served::new("disk", 64 * MIB);
    let load = "ops=4000 write=50 do=load events=1 do=load indirect=1 depth=64 do=load";
    let config = config(2, 64 * MIB, load);
    let devices = || vec![served.device(2)];
    let (machine, printed) = started(&config, devices());
    let moves = moved(&config, (machine, &printed), 10, devices);
    assert!(moves > 1, "it ended before it was moved");
    let loads = printed.events("load");
    assert_eq!(loads.len(), 6);
    let done: Vec<u64> = numbers(&loads, "reads")
        .iter()
        .zip(numbers(&loads, "writes"))
        .map(|(reads, writes)| reads + writes)
        .collect();
    assert_eq!(done, [4000; 6]);
    assert_eq!(numbers(&loads, "errors"), [0; 6]);
}

#[test]
fn an_entropy_device_goes_on_where_its_queue_was() {
    if without_kvm() {
        return;
    }
    let words = "do=rng bytes=128 ".repeat(60);
    let config = config(1, 64 * MIB, &words);
    let devices = || vec![Box::new(Rng::default()) as Box<dyn VirtioDevice>];
    let (machine, printed) = started(&config, devices());
    let moves = moved(&config, (machine, &printed), 20, devices);
    assert!(moves > 1, "it ended before it was moved");
    let mut got: Vec<String> = printed
        .events("rng")
        .iter()
        .map(|event| event["bytes"].to_string())
        .collect();
    got.sort();
    got.dedup();
    assert_eq!(got.len(), 60, "each answer once");
}

#[test]
fn a_machine_that_is_saved_twice_or_made_anew_is_the_same() {
    if without_kvm() {
        return;
    }
    let served = Served::new("disk", 16 * MIB);
    let config = config(3, 64 * MIB, "do=load ticks=1T write=30");
    let devices = || {
        vec![
            Box::new(Rng::default()) as Box<dyn VirtioDevice>,
            served.device(2),
        ]
    };
    let (machine, printed) = started(&config, devices());
    wait_for_queues(&machine, 1);
    machine.pause();
    let _queues = machine.stop_devices();
    let first = machine.save().unwrap();
    let second = machine.save().unwrap();
    assert!(second.clock.nanoseconds >= first.clock.nanoseconds);
    assert_eq!(timeless(first.clone()), timeless(second));
    let live = first.functions[1].transport.queues.iter();
    assert!(
        live.clone().all(|queue| queue.position.is_some()),
        "its disk is at work"
    );
    // The machine that was saved goes on as well, and is not the same any more.
    let copy = copied(machine.memory());
    machine.resume_devices();
    machine.resume();
    assert_eq!(machine.exit(), None);
    machine.stop();
    drop(machine);
    let serial = Box::new(printed.clone());
    let devices = Devices {
        serial,
        virtio: devices(),
    };
    let anew = Machine::restored(&config, &first, copy, devices).unwrap();
    let again = anew.save().unwrap();
    assert!(
        again.clock.nanoseconds > first.clock.nanoseconds,
        "time passes as in a pause"
    );
    for (before, after) in first.processors.iter().zip(&again.processors) {
        assert!(after.tsc.value > before.tsc.value);
    }
    assert_eq!(timeless(again), timeless(first));
}

#[test]
fn a_machine_that_has_not_started_begins_in_another() {
    if without_kvm() {
        return;
    }
    let config = config(3, 4096 * MIB, "do=hello do=touch points=3");
    let printed = Printed::default();
    let devices = Devices {
        serial: Box::new(std::io::sink()),
        virtio: Vec::new(),
    };
    let machine = Machine::new(&config, devices).unwrap();
    let kept = keep(machine);
    assert_eq!(
        state(&kept.bytes).shape.slots.len(),
        2,
        "memory on both sides of the hole"
    );
    let mut machine = anew(&config, kept, &printed, Vec::new()).unwrap();
    machine.start().unwrap();
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
    assert_eq!(printed.events("hello").len(), 3);
    assert_eq!(numbers(&printed.events("touch"), "wrong"), [0; 3]);
}

#[test]
fn what_was_typed_and_not_read_is_there_in_the_other_machine() {
    if without_kvm() {
        return;
    }
    let config = config(1, 64 * MIB, "do=spin every=1M");
    let (machine, printed) = started(&config, Vec::new());
    printed.wait_for("spin", 1);
    assert_eq!(machine.serial_input(&[b'x'; 40]), 40);
    let kept = keep(machine);
    let machine = anew(&config, kept, &printed, Vec::new()).unwrap();
    assert_eq!(machine.serial_input(&[b'y'; 40]), 24, "of 64 there are 40");
    assert_eq!(
        machine.save().unwrap().serial.input[..41],
        [&[b'x'; 40][..], b"y"].concat()
    );
}

#[test]
fn clocks_stand_still_where_no_time_is_to_be_seen() {
    if without_kvm() {
        return;
    }
    let config = config(2, 64 * MIB, "do=spin every=1M");
    let (machine, printed) = started(&config, Vec::new());
    printed.wait_for("spin", 1);
    let kept = keep(machine);
    let mut saved = state(&kept.bytes);
    let hour = 3_600_000_000_000;
    let made = |saved: &vmm::snapshot::MachineState, memory| {
        let serial = Box::new(std::io::sink());
        let virtio = Vec::new();
        Machine::restored(&config, saved, memory, Devices { serial, virtio }).unwrap()
    };
    saved.clock.realtime = saved.clock.realtime.map(|time| time - hour);
    let later = made(&saved, copied(&kept.memory)).save().unwrap();
    assert!(later.clock.nanoseconds >= saved.clock.nanoseconds + hour);
    saved.clock.realtime = None;
    let same = made(&saved, kept.memory).save().unwrap();
    assert!(same.clock.nanoseconds >= saved.clock.nanoseconds);
    assert!(same.clock.nanoseconds < saved.clock.nanoseconds + hour);
    let ticks = hour / 1_000_000 * u64::from(saved.processors[0].tsc.khz);
    for at in 0..2 {
        if later.processors[at].tsc.offset == saved.processors[at].tsc.offset {
            // This KVM shows the host's counter as it is.
            continue;
        }
        let tsc = [&saved, &later, &same].map(|state| state.processors[at].tsc.value);
        assert!(tsc[1].wrapping_sub(tsc[0]) >= ticks, "{tsc:?}");
        assert!(tsc[2].wrapping_sub(tsc[0]) < ticks, "{tsc:?}");
    }
}
