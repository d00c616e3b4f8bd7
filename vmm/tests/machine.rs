//! Machines on this host's KVM, with the freestanding guest in them.

#[path = "machine/ran.rs"]
mod ran;

use ran::{config, started, without_kvm};
use vmm::Exit;
use vmm::virtio::rng::Rng;

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
    let mut hello: Vec<u64> = printed
        .events("hello")
        .iter()
        .map(|event| event["vcpu"].as_u64().unwrap())
        .collect();
    hello.sort_unstable();
    assert_eq!(hello, (0..32).collect::<Vec<u64>>());
    println!("{}", printed.text());
}

#[test]
fn a_guest_finds_its_devices_on_pci_and_gets_entropy() {
    if without_kvm() {
        return;
    }
    let (machine, printed) = started(
        &config(2, 64 * MIB, "do=pci do=rng"),
        vec![Box::new(Rng::default())],
    );
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
    println!("{}", printed.text());
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
