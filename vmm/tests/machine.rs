//! Machines on this host's KVM, with the freestanding guest in them.

#[path = "machine/ran.rs"]
mod ran;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use ran::{config, numbers, started, without_kvm};
use vmm::statistics::{Statistics, VcpuState};
use vmm::virtio::VirtioDevice;
use vmm::virtio::rng::Rng;
use vmm::{Devices, ErrorKind, Exit, Machine, MachineConfig};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[test]
fn a_guest_boots_prints_and_ends_with_its_code() {
    if without_kvm() {
        return;
    }
    let (machine, printed) = started(&config(1, 64 * MIB, "do=hello"), Vec::new());
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
    assert_eq!(printed.events("hello")[0]["vcpus"], 1);
    let (machine, printed) = started(&config(1, 64 * MIB, "do=dance"), Vec::new());
    assert_eq!(machine.wait(), Exit::PowerOff(101), "{}", printed.text());
}

#[test]
fn all_of_32_processors_run_and_512_gib_are_touched() {
    if without_kvm() {
        return;
    }
    let (machine, printed) = started(&config(32, 512 * GIB, "do=hello do=touch"), Vec::new());
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
    for name in ["hello", "touch"] {
        let mut vcpus = numbers(&printed.events(name), "vcpu");
        vcpus.sort_unstable();
        assert_eq!(vcpus, (0..32).collect::<Vec<u64>>(), "{name}");
    }
    let touched = printed.events("touch");
    assert!(numbers(&touched, "touched").iter().all(|count| *count > 0));
    assert_eq!(numbers(&touched, "wrong"), [0; 32]);
    let highest = numbers(&touched, "highest").into_iter().max();
    assert!(highest >= Some(513 * GIB - MIB), "{highest:?}");
}

#[test]
fn a_machine_has_up_to_255_processors() {
    if without_kvm() {
        return;
    }
    // They are only made: so many that wait for one another by spinning take their time on two cores.
    let config = config(255, 64 * MIB, "");
    let devices = Devices {
        serial: Box::new(std::io::sink()),
        virtio: Vec::new(),
    };
    let machine = Machine::new(&config, devices).unwrap();
    assert_eq!(machine.exit(), None);
    machine.stop();
    assert_eq!(machine.wait(), Exit::Stopped);
}

#[test]
fn the_first_processor_enters_a_kernel_by_pvh() {
    if without_kvm() {
        return;
    }
    // The guest without its note for the direct entry: the other one is left.
    let mut image = vmm::guest::IMAGE.to_vec();
    let owner = image
        .windows(9)
        .position(|bytes| bytes == b"Diskferry")
        .unwrap();
    image[owner] = b'?';
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&image).unwrap();
    let config = MachineConfig {
        kernel: file.path().to_owned(),
        ..config(2, 64 * MIB, "do=hello")
    };
    let (machine, printed) = started(&config, Vec::new());
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
    assert_eq!(
        printed.events("hello")[0]["vcpus"],
        1,
        "by PVH there is one"
    );
}

#[test]
fn a_guest_finds_its_devices_on_pci_and_gets_entropy() {
    if without_kvm() {
        return;
    }
    let rng = || Box::new(Rng::default()) as Box<dyn VirtioDevice>;
    let words = "do=pci do=rng do=rng device=1 bytes=128 do=rng";
    let (machine, printed) = started(&config(2, 64 * MIB, words), vec![rng(), rng()]);
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
    let functions = printed.events("pci");
    assert_eq!(numbers(&functions[1..], "virtio"), [4, 4]);
    let mut got: Vec<String> = printed
        .events("rng")
        .iter()
        .map(|event| event["bytes"].to_string())
        .collect();
    assert_eq!(got.len(), 3);
    got.sort();
    got.dedup();
    assert_eq!(got.len(), 3, "the same bytes twice");
}

#[test]
fn a_crash_is_reported_with_its_place() {
    if without_kvm() {
        return;
    }
    let (machine, printed) = started(&config(2, 64 * MIB, "do=crash how=ud2 on=1"), Vec::new());
    let exit = machine.wait();
    let Exit::Crash(why) = &exit else {
        panic!("{exit:?}: {}", printed.text());
    };
    assert!(
        why.contains("processor 1: triple fault at rip 0x2"),
        "{why}"
    );
}

#[test]
fn a_guest_does_not_run_while_it_is_paused() {
    if without_kvm() {
        return;
    }
    let words = "do=spin every=1M";
    let (machine, printed) = started(&config(4, 64 * MIB, words), Vec::new());
    printed.wait_for("spin", 8);
    machine.pause();
    let before = printed.text();
    let memory = || {
        let mut bytes = vec![0; 16 << 20];
        machine
            .memory()
            .file()
            .read_exact_at(&mut bytes, 0)
            .unwrap();
        bytes
    };
    let at_first = memory();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(printed.text(), before);
    assert!(memory() == at_first, "memory changed");
    machine.pause();
    machine.resume();
    printed.wait_for("spin", printed.events("spin").len() + 8);
    machine.stop();
    assert_eq!(machine.wait(), Exit::Stopped);
}

#[test]
fn what_a_machine_does_is_counted() {
    if without_kvm() {
        return;
    }
    let (machine, printed) = started(&config(2, 64 * MIB, "do=pci do=spin every=1M"), Vec::new());
    printed.wait_for("spin", 4);
    machine.pause();
    let first = machine.statistics();
    assert!(
        first
            .vcpus
            .iter()
            .all(|vcpu| vcpu.state == VcpuState::Paused)
    );
    assert!(
        first.vcpus[0].port_writes > 0 && first.vcpus[0].port_reads > 0,
        "it looked for functions"
    );
    std::thread::sleep(Duration::from_millis(2));
    let second = machine.statistics();
    assert_eq!(first.vcpus, second.vcpus, "nothing happens in a pause");
    assert!(second.paused > first.paused && second.uptime > second.paused);
    machine.resume();
    let paused = machine.statistics().paused;
    printed.wait_for("spin", printed.events("spin").len() + 4);
    let third = machine.statistics();
    assert_eq!(third.paused, paused);
    // Which of them it was that printed, the host's scheduler decides.
    let writes =
        |counted: &Statistics| -> u64 { counted.vcpus.iter().map(|vcpu| vcpu.port_writes).sum() };
    assert!(writes(&third) > writes(&second));
    machine.reset();
    assert_eq!(machine.wait(), Exit::Reset);
    let ended = machine.statistics();
    assert!(ended.vcpus.iter().all(|vcpu| vcpu.state == VcpuState::Off));
}

/// How long a guest may take for what takes it a second.
const STUCK: Duration = Duration::from_mins(5);

/// Let the machine run for one of many moments, most of them long enough to enter the guest in: one that is always
/// paused again before it has entered never gets anywhere.
fn run_for_a_moment(begun: Instant, number: u32) {
    assert!(begun.elapsed() < STUCK, "stuck after {number} pauses");
    std::thread::sleep(Duration::from_micros(u64::from(number % 23) * 17));
}

#[test]
fn pauses_at_any_moment_lose_nothing_and_do_nothing_twice() {
    if without_kvm() {
        return;
    }
    // Four processors that print most of the time, so that nearly every pause meets a half-done access to a port.
    let words = "do=spin every=1 rounds=50";
    let (machine, printed) = started(&config(4, 64 * MIB, words), Vec::new());
    let (begun, mut pauses) = (Instant::now(), 0);
    while machine.exit().is_none() {
        machine.pause();
        machine.resume();
        run_for_a_moment(begun, pauses);
        pauses += 1;
    }
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
    assert!(pauses > 0);
    let spun = printed.events("spin");
    for vcpu in 0..4 {
        let own: Vec<_> = spun
            .iter()
            .filter(|event| event["vcpu"] == vcpu)
            .cloned()
            .collect();
        assert_eq!(numbers(&own, "round"), (1..=50).collect::<Vec<u64>>());
    }
}

#[test]
fn devices_that_are_stopped_go_on_where_they_were() {
    if without_kvm() {
        return;
    }
    let words = "do=rng bytes=128 ".repeat(40);
    let device = Box::new(Rng::default());
    let (machine, printed) = started(&config(1, 64 * MIB, &words), vec![device]);
    let (begun, mut pauses) = (Instant::now(), 0);
    while machine.exit().is_none() {
        machine.pause();
        let queues = machine.stop_devices();
        assert_eq!(queues.len(), 1);
        machine.resume_devices();
        machine.resume();
        run_for_a_moment(begun, pauses);
        pauses += 1;
    }
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
    assert_eq!(printed.events("rng").len(), 40);
}

#[test]
fn a_machine_that_nobody_waits_for_is_ended() {
    if without_kvm() {
        return;
    }
    let (mut machine, printed) = started(&config(8, 64 * MIB, "do=spin every=1M"), Vec::new());
    printed.wait_for("spin", 1);
    assert!(machine.start().is_err(), "started twice");
    drop(machine);
    let after = printed.text();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(printed.text(), after);
}

#[test]
fn machines_that_cannot_be_are_refused() {
    if without_kvm() {
        return;
    }
    let none = || Devices {
        serial: Box::new(std::io::sink()),
        virtio: Vec::new(),
    };
    let refused = |config: MachineConfig| Machine::new(&config, none()).unwrap_err().kind();
    assert_eq!(refused(config(0, 64 * MIB, "")), ErrorKind::InvalidArgument);
    assert_eq!(refused(config(1, 5, "")), ErrorKind::InvalidArgument);
    assert_eq!(refused(config(1, 2 * MIB, "")), ErrorKind::BadKernel);
    let absent = MachineConfig {
        kernel: "/nonexistent".into(),
        ..config(1, 64 * MIB, "")
    };
    assert_eq!(refused(absent), ErrorKind::BadKernel);
}
