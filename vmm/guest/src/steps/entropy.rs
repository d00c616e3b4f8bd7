//! `rng`: bytes from a virtio entropy device (5.4).

use crate::command::Step;
use crate::machine::boot::Boot;
use crate::machine::memory::{self, PAGE};
use crate::vcpu::Vcpu;
use crate::virtio::device::{self, Device};
use crate::virtio::queue::{Descriptor, Queue, WRITE};

/// Descriptors of the queue.
const SIZE: u16 = 8;
/// Most bytes that are asked for.
const MOST: u64 = 128;

/// Reads `bytes` bytes and says them.
pub(super) fn read(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    if !vcpu.leads() {
        return;
    }
    let wanted = step.number_or("bytes", 32);
    assert!((1..=MOST).contains(&wanted), "bytes={wanted}");
    let device = Device::find(boot, device::ENTROPY, step.number_or("device", 0) as usize);
    device.negotiate(vcpu, 0);
    let size = SIZE.min(device.longest_queue(0));
    let memory = memory::take(boot, Queue::bytes(size) + PAGE);
    memory.clear();
    let mut queue = Queue::new(memory, size, false);
    device.set_queue(0, &queue);
    let doorbell = device.doorbell(0);
    device.start();
    let buffer = memory::take(boot, PAGE);
    let mut bytes = [0; MOST as usize];
    let mut have = 0;
    // A device may give less than was asked for, but something (5.4.6.2).
    while have < wanted {
        let descriptor = Descriptor {
            address: buffer.address(),
            len: (wanted - have) as u32,
            flags: WRITE,
            next: 0,
        };
        descriptor.put(queue.table(), 0);
        queue.offer(0);
        queue.publish(&doorbell);
        let got = loop {
            match queue.take() {
                Some(used) => break u64::from(used.len),
                None => vcpu.beat(),
            };
        };
        assert!(
            (1..=wanted - have).contains(&got),
            "the device gave {got} bytes"
        );
        for at in 0..got {
            bytes[(have + at) as usize] = buffer.read(at);
        }
        have += got;
    }
    device.expect_health();
    device.reset(vcpu);
    memory::give_back();
    vcpu.say(vcpu.event("rng").hex("bytes", &bytes[..wanted as usize]));
}
