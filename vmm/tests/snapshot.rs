//! Machines on this host's KVM that are saved, and go on in another machine where they were.

#[path = "snapshot/kept.rs"]
mod kept;
#[path = "machine/ran.rs"]
mod ran;

use kept::{anew, keep};
use ran::{config, numbers, started, without_kvm};
use vmm::Exit;

const MIB: u64 = 1 << 20;

#[test]
fn a_machine_goes_on_where_it_was_saved() {
    if without_kvm() {
        return;
    }
    // Four processors that print most of the time: every line of each comes once, whatever moment meets them.
    let words = "do=spin every=1 rounds=40";
    let config = config(4, 64 * MIB, words);
    let (mut machine, printed) = started(&config, Vec::new());
    printed.wait_for("spin", 1);
    let mut moves = 0;
    while machine.exit().is_none() && moves < 12 {
        let kept = keep(machine);
        moves += 1;
        machine = anew(&config, kept, &printed, Vec::new()).unwrap();
        machine.start().unwrap();
    }
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
    assert!(moves > 0);
    let spun = printed.events("spin");
    for vcpu in 0..4 {
        let own: Vec<_> = spun
            .iter()
            .filter(|event| event["vcpu"] == vcpu)
            .cloned()
            .collect();
        assert_eq!(numbers(&own, "round"), (1..=40).collect::<Vec<u64>>());
        let counts = numbers(&own, "count");
        assert!(counts.is_sorted(), "{counts:?}");
    }
}
