//! `fill`, `fill-check`: all memory that is nobody's is written with words that are nowhere twice, and looked at.

use crate::command::Step;
use crate::machine::boot::{Boot, Region};
use crate::machine::memory::{self, Window};
use crate::random::stamp;
use crate::vcpu::Vcpu;

/// Bytes of a word.
const WORD: u64 = 8;
/// Bytes between two times that a vCPU shows that it runs.
const STRETCH: u64 = 1 << 20;

/// Writes every word; each vCPU takes its share.
pub(super) fn fill(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    let seed = step.number_or("seed", 1);
    let bytes = each(vcpu, boot, |window, at| {
        window.write(at, stamp(seed, window.address() + at));
    });
    vcpu.say(vcpu.event("fill").number("bytes", bytes));
}

/// Expects every word as `fill` has left it.
pub(super) fn check(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    let seed = step.number_or("seed", 1);
    let mut wrong = 0;
    let bytes = each(vcpu, boot, |window, at| {
        let found: u64 = window.read(at);
        wrong += u64::from(found != stamp(seed, window.address() + at));
    });
    super::found_wrong(wrong);
    let line = vcpu.event("fill-check").number("bytes", bytes);
    vcpu.say(line.number("wrong", wrong));
}

/// Does it with every word of this vCPU's share; how many bytes that is.
fn each(vcpu: &Vcpu, boot: &Boot, mut with: impl FnMut(&Window, u64)) -> u64 {
    let mut bytes = 0;
    for region in memory::spare(boot) {
        let window = Window::spare(region);
        let (start, end) = share(region, u64::from(vcpu.index), u64::from(vcpu.count));
        for at in (start..end).step_by(WORD as usize) {
            if at.is_multiple_of(STRETCH) {
                vcpu.beat();
            }
            with(&window, at);
        }
        bytes += end - start;
    }
    bytes
}

/// Where the words of share `index` of `count` begin and end in a region.
fn share(region: Region, index: u64, count: u64) -> (u64, u64) {
    let words = region.len / WORD;
    let begins = |index| words / count * index * WORD;
    let end = if index + 1 == count {
        words * WORD
    } else {
        begins(index + 1)
    };
    (begins(index), end)
}

#[cfg(test)]
mod tests {
    use super::share;
    use crate::machine::boot::Region;

    #[test]
    fn shares_cover_a_region_and_do_not_overlap() {
        for (len, count) in [(8, 1), (4096, 3), (1 << 39, 255), (16, 32)] {
            let region = Region { start: 0, len };
            let mut next = 0;
            for index in 0..count {
                let (start, end) = share(region, index, count);
                assert_eq!(start, next, "{len}, {index} of {count}");
                assert!(end >= start && end % 8 == 0);
                next = end;
            }
            assert_eq!(next, len);
        }
    }
}
