//! Machines that are not saved, and states that no machine is made of, each with its reason.

use vmm::snapshot::{Activity, CpuidLeaf, MachineState};
use vmm::virtio::VirtioDevice;
use vmm::virtio::rng::Rng;
use vmm::{Devices, ErrorKind, Exit, Machine, MachineConfig, Memory};

use crate::MIB;
use crate::disk::Served;
use crate::kept::{keep, wait_for_queues};
use crate::ran::{config, started, without_kvm};

fn rng() -> Box<dyn VirtioDevice> {
    Box::new(Rng::default())
}

/// Why no machine is made of this.
fn refused(
    config: &MachineConfig,
    state: &MachineState,
    virtio: Vec<Box<dyn VirtioDevice>>,
) -> String {
    let memory = Memory::new(config.memory, false).unwrap();
    let serial = Box::new(std::io::sink());
    let devices = Devices { serial, virtio };
    let error = Machine::restored(config, state, memory, devices).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    error.to_string()
}

#[track_caller]
fn says(what: &str, words: &[&str]) {
    for word in words {
        assert!(what.contains(word), "no `{word}` in: {what}");
    }
}

/// A state of two processors with a disk of two queues and an entropy device, both at work or not.
fn saved(served: &Served) -> (MachineConfig, MachineState) {
    let config = config(2, 64 * MIB, "do=load ticks=1T");
    let (machine, _printed) = started(&config, vec![served.device(2), rng()]);
    wait_for_queues(&machine, 0);
    let kept = keep(machine);
    (config, crate::kept::state(&kept.bytes))
}

#[test]
fn a_machine_that_does_not_stand_still_is_not_saved() {
    if without_kvm() {
        return;
    }
    let served = Served::new("disk", 16 * MIB);
    let config = config(2, 64 * MIB, "do=load ticks=1T");
    let (machine, _printed) = started(&config, vec![served.device(2)]);
    let refused = |machine: &Machine| {
        let error = machine.save().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        error.to_string()
    };
    says(&refused(&machine), &["while it is paused"]);
    wait_for_queues(&machine, 0);
    machine.pause();
    says(
        &refused(&machine),
        &["device 2 in slot 1", "has to be stopped"],
    );
    let _queues = machine.stop_devices();
    machine.save().unwrap();
    machine.stop();
    assert_eq!(machine.wait(), Exit::Stopped);
    says(&refused(&machine), &["has ended"]);
}

#[test]
fn another_size_is_refused() {
    if without_kvm() {
        return;
    }
    let served = Served::new("disk", 16 * MIB);
    let (config, state) = saved(&served);
    let fewer = MachineConfig {
        vcpus: 1,
        ..config.clone()
    };
    let devices = || vec![served.device(2), rng()];
    says(
        &refused(&fewer, &state, devices()),
        &["processors", "had 2", "have 1"],
    );
    let larger = MachineConfig {
        memory: 128 * MIB,
        ..config.clone()
    };
    says(
        &refused(&larger, &state, devices()),
        &["memory", "67108864", "134217728"],
    );
    let serial = Box::new(std::io::sink());
    let virtio = devices();
    let memory = Memory::new(32 * MIB, false).unwrap();
    let error = Machine::restored(&config, &state, memory, Devices { serial, virtio });
    says(&error.unwrap_err().to_string(), &["33554432 are there"]);
}

#[test]
fn other_devices_are_refused_by_their_slot_and_kind() {
    if without_kvm() {
        return;
    }
    let served = Served::new("disk", 16 * MIB);
    let (config, state) = saved(&served);
    let with = |virtio| refused(&config, &state, virtio);
    says(
        &with(vec![served.device(2)]),
        &["slot 2 (kind 4)", "no device for it"],
    );
    let more = vec![served.device(2), rng(), rng()];
    says(&with(more), &["device 3 (kind 4)", "had no such device"]);
    says(
        &with(vec![rng(), rng()]),
        &["slot 1 (kind 2)", "is of kind 4"],
    );
    says(
        &with(vec![served.device(1), rng()]),
        &["slot 1 (kind 2)", "features"],
    );
    says(
        &with(vec![served.device(3), rng()]),
        &["slot 1 (kind 2)", "queues"],
    );
    let other = Served::new("other", 16 * MIB);
    says(&with(vec![other.device(2), rng()]), &["`other`", "`disk`"]);
    let larger = Served::new("disk", 32 * MIB);
    says(
        &with(vec![larger.device(2), rng()]),
        &["65536 sectors", "32768 sectors"],
    );
    let fixed = Served::with("disk", 16 * MIB, true);
    says(&with(vec![fixed.device(2), rng()]), &["slot 1", "features"]);
}

#[test]
fn a_host_that_does_not_fit_is_refused() {
    if without_kvm() {
        return;
    }
    let config = config(1, 64 * MIB, "do=spin");
    let (machine, _printed) = started(&config, Vec::new());
    let sound = crate::kept::state(&keep(machine).bytes);
    assert_eq!(vmm::host_facts().unwrap().carries(&sound), Ok(()));
    let with = |change: &dyn Fn(&mut MachineState)| {
        let mut state = sound.clone();
        change(&mut state);
        refused(&config, &state, Vec::new())
    };
    let words = with(&|state| {
        // Bits of leaf 1 that no processor has.
        let leaves: &mut Vec<CpuidLeaf> = &mut state.processors[0].cpuid;
        let basic = leaves.iter_mut().find(|leaf| leaf.function == 1).unwrap();
        basic.edx |= 1 << 10;
    });
    says(&words, &["this host", "CPUID 0x1.0 edx bit 10"]);
    let words = with(&|state| state.host.vendor = *b"NobodysChips");
    says(&words, &["processors of NobodysChips"]);
    let words = with(&|state| state.host.signature ^= 0x100);
    says(&words, &["family"]);
    if !sound.host.tsc_scaling {
        let words = with(&|state| state.processors[0].tsc.khz /= 2);
        says(&words, &["kHz", "cannot be scaled"]);
    }
    let words = with(&|state| {
        state.processors[0].msrs[0].index = 0x0BAD_0000;
        state.processors[0].msrs[0].value = 1;
    });
    says(&words, &["register 0xbad0000"]);
}

#[test]
fn registers_that_no_driver_can_leave_are_refused() {
    if without_kvm() {
        return;
    }
    let served = Served::new("disk", 16 * MIB);
    let (config, sound) = saved(&served);
    let with = |change: &dyn Fn(&mut MachineState)| {
        let mut state = sound.clone();
        change(&mut state);
        refused(&config, &state, vec![served.device(2), rng()])
    };
    says(
        &with(&|it| it.functions[0].config[0] ^= 1),
        &["configuration space", "0x0"],
    );
    says(
        &with(&|it| it.pci.host_bridge[0] ^= 1),
        &["PCI", "host bridge"],
    );
    let more = |it: &mut MachineState| it.functions[0].transport.accepted |= 1 << 40;
    says(&with(&more), &["slot 1", "any driver"]);
    says(
        &with(&|it| it.functions[0].transport.status &= !8),
        &["any driver"],
    );
    let far = |it: &mut MachineState| it.functions[0].transport.queues[1].areas[0] = 1 << 40;
    says(&with(&far), &["queue 1", "not in memory"]);
    let odd = |it: &mut MachineState| it.functions[0].transport.queues[1].areas[0] += 1;
    says(&with(&odd), &["queue 1", "not aligned"]);
    let lost = |it: &mut MachineState| it.functions[0].transport.queues[0].position = None;
    says(&with(&lost), &["queue 0 has no position"]);
    // What is not at work has no queues that could have got anywhere.
    let idle = |it: &mut MachineState| it.functions[0].transport.status = 0;
    says(&with(&idle), &["has a position"]);
}

#[test]
fn registers_of_processors_may_be_anything_and_only_the_guest_suffers() {
    if without_kvm() {
        return;
    }
    let hostile = config(2, 64 * MIB, "do=spin");
    let (machine, _printed) = started(&hostile, Vec::new());
    let mut state = crate::kept::state(&keep(machine).bytes);
    state.processors[0].general.rip = 0x1000;
    state.processors[1].activity = Activity::Halted;
    state.processors[1].apic = [0xFFFF_FFFF; 64];
    state.chips.io_apic.redirection = [u64::MAX; 24];
    let memory = Memory::new(64 * MIB, false).unwrap();
    let devices = Devices {
        serial: Box::new(std::io::sink()),
        virtio: Vec::new(),
    };
    // KVM refuses it, or runs it until it crashes or is stopped: a guest could have done as much.
    if let Ok(mut machine) = Machine::restored(&hostile, &state, memory, devices) {
        machine.start().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        machine.stop();
        let exit = machine.wait();
        assert!(matches!(exit, Exit::Crash(_) | Exit::Stopped), "{exit}");
    }
    // Whatever it did, it did to itself.
    let (machine, printed) = started(&config(1, 64 * MIB, "do=hello"), Vec::new());
    assert_eq!(machine.wait(), Exit::PowerOff(0), "{}", printed.text());
}
