//! Saves machines, and makes them anew of bytes and of a copy of their memory.

use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vmm::snapshot::MachineState;
use vmm::virtio::VirtioDevice;
use vmm::{Devices, Machine, MachineConfig, Memory};

use crate::ran::Printed;

/// What is left of a machine: its state as bytes, and its memory.
pub(crate) struct Kept {
    pub(crate) bytes: Vec<u8>,
    pub(crate) memory: Memory,
}

/// A copy of a machine's memory: the pages that are there.
pub(crate) fn copied(memory: &Memory) -> Memory {
    let copy = Memory::new(memory.bytes(), false).expect("memory");
    let (from, to) = (memory.file(), copy.file());
    let mut at = 0;
    loop {
        at = match seek(from, SeekFrom::Data(at)) {
            Ok(at) => at,
            Err(Errno::NXIO) => return copy,
            Err(error) => panic!("{error}"),
        };
        let end = seek(from, SeekFrom::Hole(at)).expect("an end");
        let mut bytes = vec![0; 1 << 20];
        while at < end {
            let part = bytes.len().min((end - at) as usize);
            from.read_exact_at(&mut bytes[..part], at).expect("bytes");
            to.write_all_at(&bytes[..part], at).expect("room");
            at += part as u64;
        }
    }
}

/// Pause a machine, save it, and end it.
pub(crate) fn keep(machine: Machine) -> Kept {
    machine.pause();
    let _queues = machine.stop_devices();
    let state = machine.save().expect("a machine that stands still");
    let kept = Kept {
        bytes: state.encode(),
        memory: copied(machine.memory()),
    };
    drop(machine);
    kept
}

/// The state that is in some bytes.
pub(crate) fn state(bytes: &[u8]) -> MachineState {
    let state = MachineState::decode(bytes).unwrap_or_else(|error| panic!("{error}"));
    assert!(state.encode() == bytes, "a state is written again alike");
    state
}

/// The machine, to go on with these devices.
pub(crate) fn anew(
    config: &MachineConfig,
    kept: Kept,
    printed: &Printed,
    virtio: Vec<Box<dyn VirtioDevice>>,
) -> vmm::Result<Machine> {
    let serial = Box::new(printed.clone());
    let devices = Devices { serial, virtio };
    Machine::restored(config, &state(&kept.bytes), kept.memory, devices)
}

/// A state without what passes by itself: clocks, counters and what timers have counted.
pub(crate) fn timeless(mut state: MachineState) -> MachineState {
    state.clock.nanoseconds = 0;
    state.clock.realtime = None;
    for processor in &mut state.processors {
        (processor.tsc.value, processor.tsc.offset) = (0, None);
        // The timer's current count (Intel SDM volume 3, 11.5.4).
        processor.apic[0x39] = 0;
    }
    state
}

/// Return when this one of the machine's devices has got its queues. The machine goes on.
pub(crate) fn wait_for_queues(machine: &Machine, device: usize) {
    loop {
        machine.pause();
        let queues = machine.stop_devices();
        machine.resume_devices();
        machine.resume();
        if !queues[device].is_empty() {
            return;
        }
        std::thread::yield_now();
    }
}
