//! Machines on this host's KVM, with the freestanding guest in them.

#[path = "machine/ran.rs"]
mod ran;

use ran::{config, started, without_kvm};
use vmm::Exit;

const MIB: u64 = 1 << 20;

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
