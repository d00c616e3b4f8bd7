//! `resize-watch`: says when the disk's capacity changes.

use crate::command::Step;
use crate::machine::boot::Boot;
use crate::vcpu::Vcpu;
use crate::virtio::disk::Disk;

/// Ticks between two looks.
const PAUSE: u64 = 1 << 22;

/// Says the capacity now, and each other one, until it changed `changes` times.
pub(super) fn watch(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    let (disk, _channel) = Disk::open(vcpu, boot, step);
    if vcpu.leads() {
        let mut left = step.number_or("changes", 1);
        let mut capacity = disk.capacity();
        vcpu.say(vcpu.event("capacity").number("bytes", capacity));
        while left > 0 {
            let begun = vcpu.beat();
            while vcpu.beat().wrapping_sub(begun) < PAUSE {}
            let now = disk.capacity();
            if now != capacity {
                capacity = now;
                left -= 1;
                vcpu.say(vcpu.event("resized").number("bytes", capacity));
            }
        }
    }
    disk.close(vcpu);
}
