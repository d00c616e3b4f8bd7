//! `touch`: words at both ends and in between of all memory are written, read back, and restored.

use crate::command::Step;
use crate::machine::boot::{Boot, Region};
use crate::machine::memory::{self, Window};
use crate::random::stamp;
use crate::vcpu::Vcpu;

/// Bytes of a word.
const WORD: u64 = 8;

/// Touches `points` words of each region, those at its ends among them; each vCPU takes its share.
pub(super) fn touch(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    let points = step.number_or("points", 64).max(2);
    let (mut touched, mut wrong) = (0, 0);
    for region in memory::spare(boot) {
        let window = Window::spare(region);
        let mine = (0..points)
            .skip(vcpu.index as usize)
            .step_by(vcpu.count as usize);
        for point in mine {
            vcpu.beat();
            touched += 1;
            if !keeps(&window, place(region, points, point)) {
                wrong += 1;
            }
        }
    }
    super::found_wrong(wrong);
    let line = vcpu
        .event("touch")
        .number("touched", touched)
        .number("wrong", wrong);
    vcpu.say(line.number("highest", highest(boot)));
}

/// Where point `point` of a region is: the first at its start, the last at its last word.
fn place(region: Region, points: u64, point: u64) -> u64 {
    let last = region.len / WORD - 1;
    // Wide, since words times points can be more than 64 bits hold.
    let word = u128::from(last) * u128::from(point) / u128::from(points - 1);
    word as u64 * WORD
}

fn keeps(window: &Window, at: u64) -> bool {
    let before: u64 = window.read(at);
    let mark = stamp(before, window.address() + at);
    window.write(at, mark);
    let found: u64 = window.read(at);
    window.write(at, before);
    found == mark && window.read::<u64>(at) == before
}

/// The address behind the last byte of memory.
fn highest(boot: &Boot) -> u64 {
    boot.memory().map(|region| region.end()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::place;
    use crate::machine::boot::Region;

    #[test]
    fn points_are_at_both_ends_and_in_between() {
        let start = 1 << 32;
        for len in [8, 16, 4096, 1 << 39] {
            let region = Region { start, len };
            assert_eq!(place(region, 64, 0), 0);
            assert_eq!(place(region, 64, 63), len - 8);
            let middle = place(region, 3, 1);
            assert!(middle.is_multiple_of(8) && middle < len, "{len}: {middle}");
        }
    }
}
