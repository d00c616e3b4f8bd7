//! What must hold of states and their bytes, and of hosts that a machine goes on at.

mod any;

use proptest::prelude::*;

use self::any::{sample, states};
use super::container::{self, Kind, SKIPPABLE};
use super::*;

/// The same bytes with checksums that are right.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut at = 16;
    while let Some(head) = bytes.get(at..at + 12) {
        let length = u32::from_le_bytes(head[4..8].try_into().unwrap()) as usize;
        if bytes.len() < at + 12 + length {
            break;
        }
        if head[..2] == Kind::End.number().to_le_bytes() && length == 4 {
            let check = crc32c::crc32c(&bytes[..at]).to_le_bytes();
            bytes[at + 12..at + 16].copy_from_slice(&check);
        }
        let check = crc32c::crc32c(&bytes[at..at + 8]);
        let check = crc32c::crc32c_append(check, &bytes[at + 12..at + 12 + length]);
        bytes[at + 8..at + 12].copy_from_slice(&check.to_le_bytes());
        at += 12 + length;
    }
    bytes
}

fn fault(bytes: &[u8]) -> Fault {
    MachineState::decode(bytes).unwrap_err().fault().clone()
}

/// Offset and kind of each message, and at last where all end.
fn messages(bytes: &[u8]) -> Vec<(usize, u16)> {
    let mut found = vec![(16, 0)];
    while let Some((at, kind)) = found.last_mut() {
        let Some(head) = bytes.get(*at..*at + 12) else {
            break;
        };
        *kind = u16::from_le_bytes([head[0], head[1]]);
        let length = u32::from_le_bytes(head[4..8].try_into().unwrap());
        let next = *at + 12 + length as usize;
        found.push((next, 0));
    }
    found
}

/// Offset of the first message of a kind.
fn message(bytes: &[u8], kind: u16) -> usize {
    let all = messages(bytes);
    let mut found = all.iter().filter(|(_, of)| *of == kind);
    found.next().unwrap().0
}

/// What decodes is written again alike, but for what may be skipped.
fn is_refused_or_alike(bytes: &[u8]) -> bool {
    let Ok(state) = MachineState::decode(bytes) else {
        return true;
    };
    let skipped = messages(bytes)
        .iter()
        .any(|(_, kind)| kind & SKIPPABLE != 0);
    skipped || state.encode() == bytes
}

#[test]
fn bytes_that_are_cut_anywhere_are_refused() {
    let bytes = sample().encode();
    for end in 0..bytes.len() {
        let error = MachineState::decode(&bytes[..end]).unwrap_err();
        assert!(error.offset() <= end as u64, "{error} of {end}");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_eq!(fault(&longer), Fault::Trailing);
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let bytes = sample().encode();
    for at in 0..bytes.len() {
        let mut harmed = bytes.clone();
        harmed[at] ^= 1 << (at % 8);
        assert!(MachineState::decode(&harmed).is_err(), "byte {at}");
    }
}

#[test]
fn a_byte_with_right_checksums_is_refused_or_read_as_it_is() {
    let bytes = sample().encode();
    for at in 16..bytes.len() {
        for value in [0x00, 0x01, 0x80, 0xFF] {
            let mut harmed = bytes.clone();
            harmed[at] = value;
            let harmed = sealed(harmed);
            assert!(is_refused_or_alike(&harmed), "byte {at}, {value:#x}");
        }
    }
}

#[test]
fn versions_that_are_not_known_are_refused_by_their_number() {
    let bytes = sample().encode();
    let mut other = bytes.clone();
    other[0] = b'X';
    assert_eq!(fault(&other), Fault::Magic);
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert_eq!(fault(&newer), Fault::Format(2));
    for kind in Kind::ALL {
        let at = message(&bytes, kind.number());
        let mut newer = bytes.clone();
        newer[at + 2] = 2;
        let error = MachineState::decode(&sealed(newer)).unwrap_err();
        assert_eq!(error.fault(), &Fault::Version(2));
        let words = error.to_string();
        assert!(words.contains(&kind.to_string()), "{words}");
    }
}

#[test]
fn a_message_that_is_not_known_is_refused_unless_it_may_be_skipped() {
    let bytes = sample().encode();
    let end = message(&bytes, Kind::End.number());
    let with = |kind: u16| {
        let mut more = bytes[..end].to_vec();
        more.extend(kind.to_le_bytes());
        more.extend([7, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
        more.extend(&bytes[end..]);
        sealed(more)
    };
    assert_eq!(fault(&with(99)), Fault::Kind(99));
    let state = MachineState::decode(&with(SKIPPABLE + 99)).unwrap();
    assert_eq!(state, sample());
}

#[test]
fn messages_that_are_missing_or_moved_are_noticed() {
    let bytes = sample().encode();
    for pair in messages(&bytes).windows(2) {
        let ((from, kind), (to, _)) = (pair[0], pair[1]);
        let without = [&bytes[..from], &bytes[to..]].concat();
        assert!(MachineState::decode(&without).is_err());
        if to == bytes.len() {
            continue;
        }
        // All but a function has to be there, once; there may be fewer functions.
        let read = MachineState::decode(&sealed(without));
        assert_eq!(read.is_ok(), kind == Kind::Function.number(), "{read:?}");
        let twice = [&bytes[..to], &bytes[from..]].concat();
        assert!(MachineState::decode(&sealed(twice)).is_err());
    }
}

#[test]
fn values_that_cannot_be_are_refused_with_the_reason() {
    type Harm = fn(&mut MachineState);
    let harms: [(&str, Harm); 14] = [
        ("1 to 255 processors", |it| it.shape.vcpus = 256),
        ("laid out in another way", |it| {
            it.shape.slots[0].start = 4096;
        }),
        ("memory, in pages", |it| it.shape.memory += 1),
        ("another number of processors", |it| {
            it.processors.pop();
        }),
        ("are not in order", |it| it.processors[0].msrs.reverse()),
        ("an exception that does not exist", |it| {
            it.processors[0].pending.exception = Some(Exception {
                vector: 32,
                error_code: None,
            });
        }),
        ("access rights", |it| {
            it.processors[1].segments.task.rights = 0x100;
        }),
        ("an XSAVE area", |it| it.processors[0].xsave.truncate(4092)),
        ("more than 64 bytes", |it| it.serial.input = vec![0; 65]),
        ("slot 1 to 31", |it| it.functions[0].slot = 0),
        ("slots are not in order", |it| it.functions[1].slot = 1),
        ("a vector that", |it| {
            it.functions[0].transport.queues[0].vector = 9;
        }),
        ("not one that it may have", |it| {
            it.functions[0].transport.queues[0].size = 3;
        }),
        ("has a position", |it| {
            it.functions[0].transport.queues[0].enabled = false;
        }),
    ];
    for (words, harm) in harms {
        let mut state = sample();
        harm(&mut state);
        let error = MachineState::decode(&state.encode()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_count_takes_no_memory_that_is_not_there() {
    let mut bytes = container::begin();
    container::append(&mut bytes, Kind::Host, &u32::MAX);
    let bytes = container::finish(bytes);
    assert_eq!(fault(&bytes), Fault::Cut);
}

fn misfit(change: impl FnOnce(&mut HostFacts)) -> String {
    let state = sample();
    let mut here = state.host.clone();
    assert_eq!(here.carries(&state), Ok(()));
    change(&mut here);
    here.carries(&state).unwrap_err().to_string()
}

#[test]
fn a_host_that_lacks_something_is_refused_by_name() {
    let words = misfit(|here| here.vendor = *b"AuthenticAMD");
    assert!(
        words.contains("GenuineIntel") && words.contains("AuthenticAMD"),
        "{words}"
    );
    let words = misfit(|here| here.signature = 0x000F_0F00);
    assert!(
        words.contains("family 0x6") && words.contains("0xf"),
        "{words}"
    );
    let words = misfit(|here| here.cpuid[1].ecx &= !(1 << 25));
    assert!(words.contains("AES, CPUID 0x1.0 ecx bit 25"), "{words}");
    let words = misfit(|here| here.cpuid.retain(|leaf| leaf.function != 7));
    assert!(words.contains("AVX2, CPUID 0x7.0 ebx bit 5"), "{words}");
    let words = misfit(|here| here.cpuid[3].eax = 39);
    assert!(words.contains("46 bits") && words.contains("39"), "{words}");
    let words = misfit(|here| here.tsc_khz = 2_500_000);
    assert!(
        words.contains("2400000 kHz") && words.contains("2500000 kHz"),
        "{words}"
    );
}

#[test]
fn a_host_that_has_more_or_scales_or_is_near_enough_carries_a_machine() {
    type Change = fn(&mut HostFacts);
    let state = sample();
    let changes: [Change; 5] = [
        |here| here.cpuid[1].ecx = u32::MAX,
        |here| here.cpuid[3].eax = 52,
        |here| (here.tsc_khz, here.tsc_scaling) = (1, true),
        |here| here.tsc_khz = 2_400_599,
        |here| here.signature += 0x10,
    ];
    for change in changes {
        let mut here = state.host.clone();
        change(&mut here);
        assert_eq!(here.carries(&state), Ok(()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_state_is_read_as_it_was_written(state in states()) {
        let bytes = state.encode();
        let read = MachineState::decode(&bytes);
        prop_assert_eq!(read.as_ref(), Ok(&state));
        let read = read.map(|read| read.encode());
        prop_assert_eq!(read, Ok(bytes));
    }

    #[test]
    fn whatever_is_harmed_is_refused_or_read_as_it_is(
        state in states(),
        harms in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = state.encode();
        for (at, value) in harms {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let bytes = sealed(bytes);
        prop_assert!(is_refused_or_alike(&bytes));
    }
}
