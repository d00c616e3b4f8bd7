//! Disks are put into machines that run, and taken out of them, with the freestanding guest on this host's KVM.

#[path = "machine/ran.rs"]
mod ran;

use std::sync::Arc;
use std::time::Duration;

use blockserver::export::{Disk, ExportHandle, ExportOptions};
use blockserver::server::{Server, ServerConfig};
use ran::{config, numbers, started, without_kvm};
use vdisk::disk::OpenOptions;
use vmm::virtio::VirtioDevice;
use vmm::virtio::block::Block;
use vmm::virtio::rng::Rng;
use vmm::{ErrorKind, Exit};

const MIB: u64 = 1 << 20;
/// Longer than any guest takes that answers at all.
const LONG: Duration = Duration::from_mins(2);

/// A server with a raw disk of 64 MiB.
fn served() -> (Server, ExportHandle) {
    let server = Server::start(ServerConfig {
        workers: 1,
        ..ServerConfig::default()
    });
    let server = server.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 * MIB).unwrap();
    let disk = Disk::open(file.path(), &OpenOptions::default()).unwrap();
    let export = server.add_export("disk", disk, ExportOptions::default());
    let export = export.unwrap();
    (server, export)
}

fn block(export: &ExportHandle) -> Box<dyn VirtioDevice> {
    Box::new(Block::new(export.clone(), 2))
}

#[test]
fn a_disk_that_is_put_in_is_used_and_its_slot_is_free_again_when_the_guest_let_go() {
    if without_kvm() {
        return;
    }
    let (server, export) = served();
    let words = "do=plug-watch rounds=3";
    let virtio = Box::new(Rng::default());
    let (machine, printed) = started(&config(2, 64 * MIB, words), vec![virtio]);
    printed.wait_for("plug-watch", 1);
    for round in 1..=3 {
        assert_eq!(machine.add_device(block(&export)).unwrap(), 2);
        printed.wait_for("came", round);
        machine.remove_device(2, LONG).unwrap().wait();
        printed.wait_for("left", round);
        assert!(machine.remove_device(2, LONG).is_err(), "it is gone");
    }
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
    let came = printed.events("came");
    assert_eq!(numbers(&came, "capacity"), [64 * MIB; 3]);
    assert_eq!(numbers(&came, "errors"), [0; 3]);
    assert_eq!(numbers(&came, "wrong"), [0; 3]);
    assert_eq!(numbers(&printed.events("left"), "there"), [0; 3]);
    drop(machine);
    server.remove_export(&export).unwrap();
}

#[test]
fn a_guest_may_keep_what_it_is_asked_for_and_loses_it_when_it_is_pulled() {
    if without_kvm() {
        return;
    }
    let (_server, export) = served();
    let words = "do=plug-watch deaf=1";
    let (machine, printed) = started(&config(1, 64 * MIB, words), Vec::new());
    let slot = machine.add_device(block(&export)).unwrap();
    printed.wait_for("came", 1);
    let refused = machine.remove_device(slot, Duration::from_millis(50));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Guest);
    machine.pause();
    let _queues = machine.stop_devices();
    assert_eq!(
        machine.save().unwrap().events.wanted,
        0,
        "nobody wants it back"
    );
    machine.resume_devices();
    machine.resume();
    // In a held export its reads are under way when it is pulled, and end when the export goes on.
    export.hold_and_wait();
    let leaving = machine.pull_device(slot).unwrap();
    assert!(machine.pull_device(slot).is_err(), "once is enough");
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
    assert_eq!(numbers(&printed.events("left"), "there"), [0]);
    export.release();
    leaving.wait();
}

#[test]
fn a_guest_that_resets_a_held_disk_keeps_nobody_waiting() {
    if without_kvm() {
        return;
    }
    let (_server, export) = served();
    let (machine, printed) = started(&config(2, 64 * MIB, "do=plug-watch"), Vec::new());
    let machine = Arc::new(machine);
    let slot = machine.add_device(block(&export)).unwrap();
    printed.wait_for("came", 1);
    export.hold_and_wait();
    let removing = Arc::clone(&machine);
    let removing = std::thread::spawn(move || removing.remove_device(slot, LONG));
    printed.wait_for("wanted", 1);
    // Its reads are held, so the reset does not end. Processors stop all the same, and so does whoever asks the function.
    machine.pause();
    machine.config_changed(slot);
    machine.resume();
    assert!(printed.events("left").is_empty());
    export.release();
    removing.join().unwrap().unwrap().wait();
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
}

#[test]
fn a_machine_that_ends_keeps_nobody_waiting_for_its_guest() {
    if without_kvm() {
        return;
    }
    let (_server, export) = served();
    let (machine, printed) = started(&config(1, 64 * MIB, "do=plug-watch deaf=1"), Vec::new());
    let machine = Arc::new(machine);
    let slot = machine.add_device(block(&export)).unwrap();
    printed.wait_for("came", 1);
    let removing = Arc::clone(&machine);
    let removing = std::thread::spawn(move || removing.remove_device(slot, LONG));
    printed.wait_for("wanted", 1);
    machine.stop();
    let refused = removing.join().unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Guest);
    assert!(machine.add_device(block(&export)).is_err());
}

#[test]
fn a_machine_has_31_places_and_no_more() {
    if without_kvm() {
        return;
    }
    let (machine, printed) = started(&config(1, 64 * MIB, "do=plug-watch"), Vec::new());
    printed.wait_for("plug-watch", 1);
    let slots: Vec<usize> = (0..31)
        .map(|_| machine.add_device(Box::new(Rng::default())).unwrap())
        .collect();
    assert_eq!(slots, (1..=31).collect::<Vec<_>>());
    assert!(machine.add_device(Box::new(Rng::default())).is_err());
    machine.pull_device(17).unwrap().wait();
    assert_eq!(machine.add_device(Box::new(Rng::default())).unwrap(), 17);
    machine.power_button();
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
    assert_eq!(printed.events("button").len(), 1);
}
