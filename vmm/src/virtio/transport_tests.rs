//! The registers, as a driver that keeps to VIRTIO 1.2 uses them, and one that does not.

use proptest::prelude::*;

use super::*;

const FEATURE: u64 = 1 << 5;
const LATER: u64 = 1 << 40;

fn transport() -> Transport {
    Transport::new(FEATURE | LATER, &[256, 8], 3)
}

fn read<const N: usize>(transport: &Transport, at: u64) -> [u8; N] {
    let mut data = [0xAA; N];
    transport.read(at, &mut data);
    data
}

fn word(transport: &Transport, at: u64) -> u16 {
    u16::from_le_bytes(read(transport, at))
}

fn status(transport: &Transport) -> u8 {
    read::<1>(transport, 0x14)[0]
}

/// Steps 1 to 6 of 3.1.1, with these features.
fn negotiated(features: u64) -> Transport {
    let mut transport = transport();
    transport.write(0x14, &[1]);
    transport.write(0x14, &[3]);
    for half in [0_u32, 1] {
        transport.write(8, &half.to_le_bytes());
        let value = (features >> (32 * half)) as u32;
        transport.write(0xC, &value.to_le_bytes());
    }
    transport.write(0x14, &[11]);
    transport
}

/// Set up queue `number` with its three areas from `at` on.
fn set_queue(transport: &mut Transport, number: u16, size: u16, at: u64) {
    transport.write(0x16, &number.to_le_bytes());
    transport.write(0x18, &size.to_le_bytes());
    for (register, address) in [(0x20, at), (0x28, at + 0x1000), (0x30, at + 0x2000)] {
        transport.write(register, &(address as u32).to_le_bytes());
        transport.write(register + 4, &((address >> 32) as u32).to_le_bytes());
    }
    transport.write(0x1C, &1_u16.to_le_bytes());
}

#[test]
fn features_are_offered_by_halves_and_always_with_version_1() {
    // 4.1.4.3: device_feature_select; 6: VIRTIO_F_VERSION_1.
    let mut transport = transport();
    assert_eq!(read(&transport, 4), (FEATURE as u32).to_le_bytes());
    transport.write(0, &1_u32.to_le_bytes());
    assert_eq!(read(&transport, 4), (1_u32 | 1 << 8).to_le_bytes());
    transport.write(0, &2_u32.to_le_bytes());
    assert_eq!(read(&transport, 4), [0; 4], "3.1.1: there are no more");
}

#[test]
fn features_that_were_not_offered_are_not_agreed_upon() {
    // 2.2.2 and 3.1.1, step 6; 6.2: a driver must accept VERSION_1.
    assert_eq!(status(&negotiated(FEATURE | VERSION_1)), 11);
    assert_eq!(status(&negotiated(FEATURE)), 3);
    assert_eq!(status(&negotiated(VERSION_1 | 1)), 3);
    let mut agreed = negotiated(VERSION_1);
    agreed.write(8, &0_u32.to_le_bytes());
    agreed.write(0xC, &(FEATURE as u32).to_le_bytes());
    assert_eq!(
        agreed.features(),
        VERSION_1,
        "not changed after FEATURES_OK"
    );
}

#[test]
fn a_device_goes_live_only_after_features_were_agreed_upon() {
    // 3.1.1: steps in this order.
    let mut early = transport();
    assert_eq!(early.write(0x14, &[7]), Effect::Nothing);
    assert_eq!((status(&early), early.is_live()), (3, false));
    let mut live = negotiated(VERSION_1);
    assert_eq!(live.write(0x14, &[15]), Effect::Activate);
    assert!(live.is_live());
    assert_eq!(live.write(0x14, &[15]), Effect::Nothing, "only once");
}

#[test]
fn a_driver_adds_bits_of_the_status_or_writes_zero() {
    // 2.1.1: the driver must not clear a bit; 2.4: zero resets.
    let mut transport = negotiated(VERSION_1);
    set_queue(&mut transport, 1, 4, 0x1000);
    transport.write(0x1A, &2_u16.to_le_bytes());
    transport.write(0x14, &[1]);
    assert_eq!(status(&transport), 11);
    assert_eq!(transport.write(0x14, &[0]), Effect::Reset);
    transport.reset();
    assert_eq!(status(&transport), 0);
    transport.write(0x16, &1_u16.to_le_bytes());
    assert_eq!(
        word(&transport, 0x18),
        8,
        "4.1.4.3.1: the greatest size again"
    );
    assert_eq!(word(&transport, 0x1A), NO_VECTOR);
    assert_eq!(word(&transport, 0x1C), 0, "4.1.4.3.1: no queue is enabled");
    assert_eq!(transport.features(), 0);
}

#[test]
fn queues_are_handed_over_as_they_were_set_up() {
    let mut transport = negotiated(VERSION_1);
    assert_eq!(word(&transport, 0x12), 2);
    set_queue(&mut transport, 1, 4, 0x5_0000_1000);
    let queues = transport.queue_states(|_, _| true).unwrap();
    let expected = QueueState {
        size: 4,
        descriptors: 0x5_0000_1000,
        available: 0x5_0000_2000,
        used: 0x5_0000_3000,
        next_available: 0,
        next_used: 0,
    };
    assert_eq!(queues, [(1, expected)], "queue 0 was not enabled");
}

#[test]
fn a_queue_outside_of_memory_or_out_of_line_is_a_fault() {
    // 2.7: the parts are aligned to 16, 2 and 4 bytes.
    for at in [0x1001, 0x1002, 0x1004, 0x1008] {
        let mut transport = negotiated(VERSION_1);
        set_queue(&mut transport, 0, 4, at);
        let fault = Fault::Placement { queue: 0 };
        assert_eq!(transport.queue_states(|_, _| true), Err(fault), "{at:#x}");
    }
    let mut transport = negotiated(VERSION_1);
    set_queue(&mut transport, 0, 4, 0x1000);
    // 2.7: sizes of 16, 2 and 8 bytes an entry, and what is around them.
    let used_fits = |at: u64, bytes: u64| at + bytes <= 0x3000 + 6 + 8 * 4;
    assert!(transport.queue_states(used_fits).is_ok());
    let one_less = |at: u64, bytes: u64| at + bytes < 0x3000 + 6 + 8 * 4;
    assert!(transport.queue_states(one_less).is_err());
}

#[test]
fn sizes_that_a_queue_cannot_have_are_not_taken() {
    // 4.1.4.3.2: a power of two, at most what the device said.
    let mut transport = negotiated(VERSION_1);
    for (size, then) in [(0_u16, 256), (3, 256), (512, 256), (128, 128), (1, 1)] {
        transport.write(0x18, &size.to_le_bytes());
        assert_eq!(word(&transport, 0x18), then, "{size}");
    }
    transport.write(0x16, &9_u16.to_le_bytes());
    assert_eq!(
        word(&transport, 0x18),
        0,
        "4.1.4.3.1: there is no such queue"
    );
    transport.write(0x1C, &1_u16.to_le_bytes());
    assert_eq!(word(&transport, 0x1C), 0);
}

#[test]
fn a_queue_that_is_enabled_does_not_change() {
    // 4.1.4.3.2: a driver configures the other fields before it enables the queue, and never writes 0.
    let mut transport = negotiated(VERSION_1);
    set_queue(&mut transport, 0, 4, 0x1000);
    let before = transport.queue_states(|_, _| true).unwrap();
    set_queue(&mut transport, 0, 8, 0x9000);
    transport.write(0x1C, &0_u16.to_le_bytes());
    assert_eq!(transport.queue_states(|_, _| true).unwrap(), before);
}

#[test]
fn a_vector_that_is_not_there_reads_as_none() {
    // 4.1.5.1.2: the driver reads back what it wrote, or NO_VECTOR.
    let mut transport = transport();
    assert_eq!(
        transport.write(0x10, &2_u16.to_le_bytes()),
        Effect::ConfigVector(2)
    );
    assert_eq!(word(&transport, 0x10), 2);
    let none = Effect::QueueVector(0, NO_VECTOR);
    assert_eq!(transport.write(0x1A, &3_u16.to_le_bytes()), none);
    assert_eq!(word(&transport, 0x1A), NO_VECTOR);
    assert_eq!(transport.vectors(), (2, vec![NO_VECTOR; 2]));
}

#[test]
fn a_change_of_configuration_is_told_once_the_driver_is_ready() {
    // 2.5.1 and 4.1.4.3.1: another generation; 4.1.4.5.1: reading the ISR status clears it.
    let mut transport = negotiated(VERSION_1);
    assert!(!transport.config_changed());
    let generation = read::<1>(&transport, 0x15);
    transport.write(0x14, &[15]);
    assert!(transport.config_changed());
    assert_ne!(read::<1>(&transport, 0x15), generation);
    assert_eq!((transport.take_isr(), transport.take_isr()), (2, 0));
}

#[test]
fn a_device_that_cannot_go_on_says_so_until_it_is_reset() {
    // 2.1.2: DEVICE_NEEDS_RESET, and a notification after DRIVER_OK.
    let mut transport = negotiated(VERSION_1);
    assert!(!transport.needs_reset());
    let mut live = negotiated(VERSION_1);
    live.write(0x14, &[15]);
    assert!(live.needs_reset());
    assert_eq!((status(&live), live.is_live()), (79, false));
    live.write(0x14, &[15]);
    assert_eq!(status(&live), 79);
    live.reset();
    assert_eq!(status(&live), 0);
}

#[test]
fn a_driver_that_has_failed_is_not_served() {
    // 2.1: FAILED.
    let mut transport = negotiated(VERSION_1);
    transport.write(0x14, &[0x8B]);
    assert_eq!(transport.write(0x14, &[0x8F]), Effect::Nothing);
    assert!(!transport.is_live());
}

proptest! {
    #[test]
    fn whatever_is_written_registers_stay_within_bounds(
        writes in prop::collection::vec((0_u64..0x48, prop::collection::vec(any::<u8>(), 0..9)), 0..200),
    ) {
        let mut transport = transport();
        for (at, data) in writes {
            if transport.write(at, &data) == Effect::Reset {
                transport.reset();
            }
            let mut data = data;
            transport.read(at, &mut data);
        }
        let (config, queues) = transport.vectors();
        prop_assert!(queues.into_iter().chain([config]).all(|vector| vector < 3 || vector == NO_VECTOR));
        for (number, queue) in transport.queue_states(|_, _| true).unwrap_or_default() {
            prop_assert!(queue.size.is_power_of_two() && queue.size <= [256, 8][usize::from(number)]);
        }
        prop_assert!(!transport.is_live() || transport.features() & VERSION_1 != 0);
        prop_assert_eq!(transport.features() & !(FEATURE | LATER | VERSION_1) != 0 && transport.is_live(), false);
    }
}
