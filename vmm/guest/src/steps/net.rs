//! `net`, `net-echo`, `net-send`, `net-link`: frames to and from a virtio network device (5.1).
//!
//! The first vCPU drives it. Nothing is known of the network: whoever wants an answer says by its frame where
//! it is.

use crate::command::Step;
use crate::machine::boot::Boot;
use crate::machine::memory::Window;
use crate::random::stamp;
use crate::vcpu::Vcpu;
use crate::virtio::net::{Arrived, Card, HEADER, Header, LONG_UDP, NEEDS_CHECKSUM};

/// How many datagrams are sent for each that asks for some.
const BURST: u64 = 4;
/// Ticks between two looks at the link.
const PAUSE: u64 = 1 << 22;
/// Places in a frame, from the beginning of its header on. All are even, so that words of two bytes can be read.
const TYPE: u64 = HEADER + 12;
const IP: u64 = HEADER + 14;
const UDP: u64 = IP + 20;
const DATA: u64 = UDP + 8;
/// Types of frames: IPv4, and one for experiments.
const IPV4: u16 = 0x0800;
const EXPERIMENT: u16 = 0x88b5;
/// Below this is where in a datagram a fragment begins; above are flags.
const FRAGMENTS: u16 = 0x2000;
/// IPv4 without options, and its protocols.
const PLAIN: u16 = 0x45;
const IS_UDP: u16 = 17;

/// Says what the device is.
pub(super) fn describe(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    if !vcpu.leads() {
        return;
    }
    let card = Card::open(vcpu, boot, step);
    let (mac, up, mtu) = card.describe();
    let line = vcpu
        .event("net")
        .hex("mac", &mac)
        .number("up", u64::from(up))
        .number("mtu", u64::from(mtu));
    vcpu.say(line.number("features", card.features));
    card.close(vcpu);
}

/// What came.
#[derive(Default)]
struct Seen {
    frames: u64,
    bytes: u64,
    longest: u64,
    partial: u64,
    long: u64,
    spread: u64,
    unnumbered: u64,
    others: u64,
}

impl Seen {
    fn count(&mut self, frame: &Arrived) {
        self.longest = self.longest.max(frame.len);
        self.partial += u64::from(frame.header.flags & NEEDS_CHECKSUM != 0);
        self.long += u64::from(frame.header.kind != 0);
        self.spread += u64::from(frame.buffers > 1);
        self.unnumbered += u64::from(frame.unnumbered);
    }

    fn say(&self, vcpu: &Vcpu) {
        let line = vcpu
            .event("echoed")
            .number("frames", self.frames)
            .number("bytes", self.bytes)
            .number("longest", self.longest)
            .number("partial", self.partial)
            .number("long", self.long)
            .number("spread", self.spread)
            .number("unnumbered", self.unnumbered)
            .number("others", self.others);
        vcpu.say(line.number("gap", vcpu.longest_gap()));
    }
}

/// Sends `frames` frames back to where they came from.
pub(super) fn echo(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    if !vcpu.leads() {
        return;
    }
    let mut card = Card::open(vcpu, boot, step);
    vcpu.say(vcpu.event("listening"));
    let wanted = step.number_or("frames", 0);
    let every = step.number_or("every", 0);
    let mut seen = Seen::default();
    while wanted == 0 || seen.frames < wanted {
        vcpu.beat();
        let Some(frame) = card.take() else {
            card.publish();
            core::hint::spin_loop();
            continue;
        };
        seen.count(&frame);
        if frame.header.kind != 0 || !turn_round(&card.whole, frame.len) {
            seen.others += 1;
            continue;
        }
        seen.frames += 1;
        seen.bytes += frame.len;
        let partial = frame.header.flags & NEEDS_CHECKSUM != 0 && card.leaves_checksums();
        // A sum that is to be made does not change by turning a frame round.
        let header = Header {
            flags: if partial { NEEDS_CHECKSUM } else { 0 },
            sum_from: frame.header.sum_from,
            sum_at: frame.header.sum_at,
            ..Header::default()
        };
        card.send(vcpu, header, frame.len);
        if every != 0 && seen.frames.is_multiple_of(every) {
            seen.say(vcpu);
        }
    }
    card.drain(vcpu);
    seen.say(vcpu);
    card.close(vcpu);
}

/// Sends `frames` datagrams of `size` bytes, each with its number and a pattern: [`BURST`] of them for each that
/// asks for some, to where that came from.
pub(super) fn send(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    if !vcpu.leads() {
        return;
    }
    let size = step.number_or("size", 1024);
    assert!(
        size.is_multiple_of(8) && (8..=65_504).contains(&size),
        "size={size}"
    );
    let mut card = Card::open(vcpu, boot, step);
    vcpu.say(vcpu.event("listening"));
    let (_, _, mtu) = card.describe();
    let frames = step.number_or("frames", 1);
    let mut next = 0;
    while next < frames {
        vcpu.beat();
        if let Some(frame) = card.take()
            && is_datagram(&card.whole, frame.len)
            && turn_round(&card.whole, frame.len)
        {
            write_lengths(&card.whole, size);
            let leaves = card.leaves_checksums();
            let header = finish(&card.whole, size, (leaves, u64::from(mtu)));
            let burst = next..frames.min(next + BURST);
            next = burst.end;
            for number in burst {
                fill(&card.whole, size, (number, leaves));
                card.send(vcpu, header, DATA - HEADER + size);
            }
        }
        card.publish();
    }
    card.drain(vcpu);
    vcpu.say(vcpu.event("sent").number("frames", frames));
    card.close(vcpu);
}

/// Fills a datagram with its number and pattern, and sums it up, if that is not left to the device.
fn fill(frame: &Window, size: u64, (number, leaves): (u64, bool)) {
    for at in (0..size).step_by(8) {
        put(frame, DATA + at, stamp(number, at));
    }
    put(frame, DATA, number);
    if !leaves {
        frame.write(UDP + 6, 0u16);
        let sum = match !sum(frame, size) {
            0 => 0xffff,
            sum => sum,
        };
        frame.write(UDP + 6, sum.to_be());
    }
}

/// Says whether the link is up, and each change, until it changed `changes` times.
pub(super) fn link(vcpu: &Vcpu, boot: &Boot, step: &Step) {
    if !vcpu.leads() {
        return;
    }
    let card = Card::open(vcpu, boot, step);
    let say = |up: bool| vcpu.say(vcpu.event("link").number("up", u64::from(up)));
    let (_, mut up, _) = card.describe();
    say(up);
    let mut left = step.number_or("changes", 1);
    while left > 0 {
        let begun = vcpu.beat();
        while vcpu.beat().wrapping_sub(begun) < PAUSE {}
        let (_, now, _) = card.describe();
        if now != up {
            up = now;
            left -= 1;
            say(up);
        }
    }
    card.close(vcpu);
}

fn word(frame: &Window, at: u64) -> u16 {
    u16::from_be(frame.read(at))
}

fn swap(frame: &Window, one: u64, other: u64, bytes: u64) {
    for at in (0..bytes).step_by(2) {
        let (first, second): (u16, u16) = (frame.read(one + at), frame.read(other + at));
        frame.write(one + at, second);
        frame.write(other + at, first);
    }
}

/// Writes eight bytes to where only words of two have a place, least first.
fn put(frame: &Window, at: u64, value: u64) {
    for place in 0..4 {
        frame.write(at + 2 * place, (value >> (16 * place)) as u16);
    }
}

fn is_datagram(frame: &Window, len: u64) -> bool {
    len >= DATA - HEADER
        && word(frame, TYPE) == IPV4
        && word(frame, IP) >> 8 == PLAIN
        && word(frame, IP + 8) & 0xff == IS_UDP
}

/// Turns a frame round, if it is one that is answered: to a single station, and of a type that is known.
fn turn_round(frame: &Window, len: u64) -> bool {
    let single = word(frame, HEADER) & 0x0100 == 0;
    let datagram = is_datagram(frame, len);
    if !single || !datagram && word(frame, TYPE) != EXPERIMENT {
        return false;
    }
    swap(frame, HEADER, HEADER + 6, 6);
    if datagram {
        swap(frame, IP + 12, IP + 16, 4);
        // Only the first fragment of a datagram has its ports.
        if word(frame, IP + 6).is_multiple_of(FRAGMENTS) {
            swap(frame, UDP, UDP + 2, 2);
        }
    }
    true
}

/// The sum of words of two bytes with the carry brought round (RFC 1071).
fn add(frame: &Window, from: u64, bytes: u64, begun: u64) -> u64 {
    (from..from + bytes)
        .step_by(2)
        .fold(begun, |sum, at| sum + u64::from(word(frame, at)))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum over what a datagram's checksum counts of the header before it.
fn pseudo(frame: &Window, size: u64) -> u64 {
    add(frame, IP + 12, 8, u64::from(IS_UDP) + 8 + size)
}

/// The sum over a datagram of `size` bytes of data, in which the place of the checksum is zero.
fn sum(frame: &Window, size: u64) -> u16 {
    fold(add(frame, UDP, 8 + size, pseudo(frame, size)))
}

/// Makes a datagram one of `size` bytes of data.
fn write_lengths(frame: &Window, size: u64) {
    frame.write(IP + 2, (28 + size as u16).to_be());
    // Not a fragment of another one.
    frame.write(IP + 6, 0u16);
    frame.write(IP + 10, 0u16);
    let sum = !fold(add(frame, IP, 20, 0));
    frame.write(IP + 10, sum.to_be());
    frame.write(UDP + 4, (8 + size as u16).to_be());
}

/// What is left to the device: the checksum, and where a datagram is longer than the link takes, its cutting.
fn finish(frame: &Window, size: u64, (leaves, mtu): (bool, u64)) -> Header {
    if !leaves {
        assert!(28 + size <= mtu, "size={size} on a link of {mtu}");
        return Header::default();
    }
    frame.write(UDP + 6, fold(pseudo(frame, size)).to_be());
    let long = 28 + size > mtu;
    Header {
        flags: NEEDS_CHECKSUM,
        kind: if long { LONG_UDP } else { 0 },
        fixed: (DATA - HEADER) as u16,
        piece: if long { (mtu - 28) as u16 & !7 } else { 0 },
        sum_from: (UDP - HEADER) as u16,
        sum_at: 6,
    }
}
