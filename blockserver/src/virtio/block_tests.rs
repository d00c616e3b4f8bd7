//! Requests and configuration against the text of VIRTIO 1.2.

use super::*;

const NEXT: u16 = virtio_ring::VRING_DESC_F_NEXT as u16;
const WRITE: u16 = virtio_ring::VRING_DESC_F_WRITE as u16;
/// Where the tests put headers, data, and the status.
const HEAD: u64 = 0x1000;
const DATA: u64 = 0x10_000;
const STATUS: u64 = 0x2000;

fn memory() -> GuestMemoryMmap<()> {
    let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(2 << 20), 1 << 20)];
    GuestMemoryMmap::from_ranges(&ranges).expect("two megabytes")
}

fn rules() -> Rules {
    Rules {
        size: 1 << 30,
        read_only: false,
        features: !0,
    }
}

/// Descriptors of these pieces (address, length, writable), the last one without a successor.
fn chain(pieces: &[(u64, u32, bool)]) -> Vec<Descriptor> {
    let last = pieces.len() - 1;
    let all = pieces.iter().enumerate();
    all.map(|(number, (address, len, writable))| {
        let next = if number < last { NEXT } else { 0 };
        let write = if *writable { WRITE } else { 0 };
        Descriptor::new(*address, *len, next | write, number as u16 + 1)
    })
    .collect()
}

fn put_header(memory: &GuestMemoryMmap<()>, kind: u32, sector: u64) {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend_from_slice(&7u32.to_le_bytes());
    header.extend_from_slice(&sector.to_le_bytes());
    memory
        .write_slice(&header, GuestAddress(HEAD))
        .expect("inside");
}

fn parse_with(
    (kind, sector): (u32, u64),
    pieces: &[(u64, u32, bool)],
    rules: &Rules,
) -> (Result<Parsed, Fault>, Chain) {
    let (memory, mut taken) = (memory(), Chain::default());
    put_header(&memory, kind, sector);
    let found = taken.parse(&memory, chain(pieces).into_iter(), rules);
    (found, taken)
}

fn parse(head: (u32, u64), pieces: &[(u64, u32, bool)]) -> Result<Parsed, Fault> {
    parse_with(head, pieces, &rules()).0
}

const IOERR: Result<Parsed, Fault> = Ok(Parsed::Refused(Status::IoError));
const UNSUPP: Result<Parsed, Fault> = Ok(Parsed::Refused(Status::Unsupported));

#[test]
fn a_read_names_its_data_and_the_place_of_its_status() {
    let pieces = [(HEAD, 16, false), (DATA, 1024, true), (STATUS, 1, true)];
    let (found, taken) = parse_with((blk::VIRTIO_BLK_T_IN, 3), &pieces, &rules());
    let request = Request {
        what: What::Read(3 * 512),
        len: 1024,
        room: 1024,
    };
    assert_eq!(
        (
            request.written(Status::Ok),
            request.written(Status::IoError)
        ),
        (1025, 0)
    );
    assert_eq!(found, Ok(Parsed::Request(request)));
    assert_eq!((taken.status_at(), taken.data().len()), (STATUS, 1));
    assert_eq!(
        taken.data()[0],
        Segment {
            address: DATA,
            len: 1024
        }
    );
}

#[test]
fn no_framing_is_taken_for_granted() {
    // 2.7.4.1: a header in three parts, one of them with data; data with the status behind it.
    let pieces = [
        (HEAD, 3, false),
        (HEAD + 3, 5, false),
        (HEAD + 8, 8 + 512, false),
    ];
    let pieces = [
        &pieces[..],
        &[(DATA, 0, false), (DATA, 512, false), (STATUS, 1, true)],
    ]
    .concat();
    let (found, taken) = parse_with((blk::VIRTIO_BLK_T_OUT, 0), &pieces, &rules());
    let Ok(Parsed::Request(request)) = found else {
        panic!("{found:?}");
    };
    assert_eq!((request.what.clone(), request.len), (What::Write(0), 1024));
    assert_eq!(request.written(Status::Ok), 1);
    assert_eq!(
        taken.data()[0],
        Segment {
            address: HEAD + 16,
            len: 512
        }
    );
    let (found, taken) = parse_with(
        (blk::VIRTIO_BLK_T_IN, 0),
        &[(HEAD, 16, false), (DATA, 513, true)],
        &rules(),
    );
    assert!(matches!(found, Ok(Parsed::Request(_))), "{found:?}");
    assert_eq!(taken.status_at(), DATA + 512);
    assert_eq!(
        taken.data(),
        [Segment {
            address: DATA,
            len: 512
        }]
    );
}

#[test]
fn what_breaks_a_rule_is_refused() {
    let (read, write) = (blk::VIRTIO_BLK_T_IN, blk::VIRTIO_BLK_T_OUT);
    let status = (STATUS, 1, true);
    let head = (HEAD, 16, false);
    // 5.2.6.1: whole sectors, inside the capacity.
    assert_eq!(parse((read, 0), &[head, (DATA, 511, true), status]), IOERR);
    let last = (1 << 30) / 512 - 1;
    for (sector, sound) in [
        (last, true),
        (last + 1, false),
        (u64::MAX, false),
        (1 << 55, false),
    ] {
        let found = parse((read, sector), &[head, (DATA, 512, true), status]);
        assert_eq!(
            matches!(found, Ok(Parsed::Request(_))),
            sound,
            "sector {sector}"
        );
        assert!(sound || found == IOERR);
    }
    // Data of the wrong direction; 2.7.4.2: what is written comes last.
    assert_eq!(parse((read, 0), &[head, (DATA, 512, false), status]), IOERR);
    assert_eq!(parse((write, 0), &[head, (DATA, 512, true), status]), IOERR);
    assert_eq!(parse((read, 0), &[(DATA, 512, true), head, status]), IOERR);
    // A header too short, or not in memory.
    assert_eq!(parse((read, 0), &[(HEAD, 15, false), status]), IOERR);
    assert_eq!(parse((read, 0), &[(1 << 20, 16, false), status]), IOERR);
    assert_eq!(parse((read, 0), &[(DATA, 512, true), status]), IOERR);
    // An address that overflows.
    let huge = (u64::MAX - 10, 512, true);
    assert_eq!(parse((read, 0), &[head, huge, status]), IOERR);
    // More segments than seg_max.
    let mut many = vec![head];
    many.extend((0..u64::from(SEG_MAX)).map(|n| (DATA + n * 512, 512, true)));
    let most = [&many[..], &[status]].concat();
    assert!(matches!(parse((read, 0), &most), Ok(Parsed::Request(_))));
    let more = [&many[..], &[(DATA, 512, true), status]].concat();
    assert_eq!(parse((read, 0), &more), IOERR);
    // 5.2.6.2: a write to a read-only device.
    let rules = Rules {
        read_only: true,
        ..rules()
    };
    let (found, _) = parse_with((write, 0), &[head, (DATA, 512, false), status], &rules);
    assert_eq!(found, IOERR);
    // A request that nobody knows, and the zoned ones.
    for kind in [2, 5, 14, 15, 16, 18, 20, 22, 24, 26, 0x8000_0000, u32::MAX] {
        assert_eq!(parse((kind, 0), &[head, status]), UNSUPP, "{kind}");
    }
}

#[test]
fn a_chain_without_a_place_for_its_status_breaks_the_queue() {
    let head = (HEAD, 16, false);
    let read = (blk::VIRTIO_BLK_T_IN, 0);
    assert_eq!(parse(read, &[head]), Err(Fault::NoStatus));
    assert_eq!(
        parse(read, &[head, (STATUS, 0, true)]),
        Err(Fault::NoStatus)
    );
    assert_eq!(
        parse(read, &[head, (1 << 20, 1, true)]),
        Err(Fault::NoStatus)
    );
    let huge = (u64::MAX, 16, true);
    assert_eq!(parse(read, &[head, huge]), Err(Fault::NoStatus));
    let (memory, mut taken) = (memory(), Chain::default());
    let mut parse =
        |descriptors: Vec<Descriptor>| taken.parse(&memory, descriptors.into_iter(), &rules());
    assert_eq!(parse(Vec::new()), Err(Fault::Endless));
    let open = vec![Descriptor::new(STATUS, 1, WRITE | NEXT, 9)];
    assert_eq!(parse(open), Err(Fault::Endless));
    let long = vec![(STATUS, u32::MAX, true); MAX_DESCRIPTORS + 1];
    assert_eq!(parse(chain(&long)), Err(Fault::TooLong));
    let endless = std::iter::repeat(Descriptor::new(STATUS, u32::MAX, WRITE | NEXT, 0));
    assert_eq!(taken.parse(&memory, endless, &rules()), Err(Fault::TooLong));
    assert!(
        taken.writable.capacity() <= 2 * MAX_DESCRIPTORS,
        "memory is bounded"
    );
}

/// A request of these ranges (sector, sectors, flags).
fn parse_ranges(kind: u32, ranges: &[(u64, u32, u32)], rules: &Rules) -> Result<Parsed, Fault> {
    let memory = memory();
    put_header(&memory, kind, 0);
    let mut bytes = Vec::new();
    for (sector, sectors, flags) in ranges {
        bytes.extend_from_slice(&sector.to_le_bytes());
        bytes.extend_from_slice(&sectors.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
    }
    memory
        .write_slice(&bytes, GuestAddress(DATA))
        .expect("inside");
    let (half, len) = (bytes.len() as u32 / 3, bytes.len() as u32);
    let pieces = [
        (HEAD, 16, false),
        (DATA, half, false),
        (DATA + u64::from(half), len - half, false),
        (STATUS, 1, true),
    ];
    Chain::default().parse(&memory, chain(&pieces).into_iter(), rules)
}

#[test]
fn ranges_are_checked_one_by_one() {
    let (discard, zeroes) = (blk::VIRTIO_BLK_T_DISCARD, blk::VIRTIO_BLK_T_WRITE_ZEROES);
    let all = rules();
    let found = parse_ranges(zeroes, &[(1, 2, 1), (8, 0, 0)], &all);
    let range = |offset, len, unmap| DiskRange { offset, len, unmap };
    let expected = Request {
        what: What::WriteZeroes(vec![range(512, 1024, true), range(4096, 0, false)]),
        len: 0,
        room: 0,
    };
    assert_eq!(expected.written(Status::Ok), 1);
    assert_eq!(found, Ok(Parsed::Request(expected)));
    assert!(matches!(
        parse_ranges(discard, &[(1, 2, 0)], &all),
        Ok(Parsed::Request(_))
    ));
    // 5.2.6.2: unknown flags, and unmap of what is discarded.
    assert_eq!(parse_ranges(discard, &[(1, 2, 1)], &all), UNSUPP);
    assert_eq!(parse_ranges(zeroes, &[(1, 2, 0), (1, 2, 2)], &all), UNSUPP);
    let last = (1u64 << 30) / 512;
    for bad in [
        (last, 1, 0),
        (u64::MAX, 1, 0),
        (0, MAX_RANGE_SECTORS + 1, 0),
        (last - 1, 2, 0),
    ] {
        assert_eq!(
            parse_ranges(discard, &[(0, 1, 0), bad], &all),
            IOERR,
            "{bad:?}"
        );
    }
    assert_eq!(parse_ranges(discard, &[], &all), IOERR);
    let most = vec![(0, 1, 0); MAX_RANGES];
    assert!(matches!(
        parse_ranges(discard, &most, &all),
        Ok(Parsed::Request(_))
    ));
    assert_eq!(
        parse_ranges(discard, &vec![(0, 1, 0); MAX_RANGES + 1], &all),
        IOERR
    );
    let plain = Rules {
        features: feature::FLUSH,
        ..all
    };
    assert_eq!(parse_ranges(discard, &[(1, 2, 0)], &plain), UNSUPP);
    let fixed = Rules {
        read_only: true,
        ..all
    };
    assert_eq!(parse_ranges(zeroes, &[(1, 2, 0)], &fixed), IOERR);
    let torn = [(HEAD, 16, false), (DATA, 17, false), (STATUS, 1, true)];
    assert_eq!(parse((discard, 0), &torn), IOERR);
}

#[test]
fn the_name_of_a_device_fills_twenty_bytes() {
    let ask = |len| {
        parse(
            (blk::VIRTIO_BLK_T_GET_ID, 0),
            &[(HEAD, 16, false), (DATA, len, true)],
        )
    };
    for (len, written) in [(21, 21), (9, 9), (1001, 20)] {
        let Ok(Parsed::Request(request)) = ask(len) else {
            panic!("{len} bytes");
        };
        assert_eq!(
            (request.what.clone(), request.written(Status::Ok)),
            (What::Identify, written)
        );
    }
    assert_eq!(ask(1), IOERR);
    assert_eq!(&serial("disk-0")[..8], b"disk-0\0\0");
    assert_eq!(
        &serial("twenty bytes and then some"),
        b"twenty bytes and the"
    );
}

#[test]
fn the_configuration_lies_as_the_text_says() {
    let device = BlockDevice {
        size: (16 << 40) + 700,
        logical_sector: 512,
        read_only: false,
        queues: 4,
        queue_size: 256,
    };
    let config = device.config();
    let u16_at = |at: usize| u16::from_le_bytes([config[at], config[at + 1]]);
    let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    assert_eq!(u64_at(0), (16 << 40) / 512 + 1, "whole sectors only");
    assert_eq!((u32_at(8), u32_at(12), u32_at(16)), (0, 254, 0), "segments");
    assert_eq!((u32_at(20), config[24], config[25]), (512, 3, 0), "sectors");
    assert_eq!(
        (u16_at(26), u32_at(28), u16_at(32)),
        (8, 2048, 0),
        "topology"
    );
    assert_eq!(u16_at(34), 4, "queues");
    assert_eq!(
        (u32_at(36), u32_at(40), u32_at(44)),
        (1 << 21, 64, 8),
        "discard"
    );
    assert_eq!(
        (u32_at(48), u32_at(52), config[56]),
        (1 << 21, 64, 1),
        "write zeroes"
    );
    let small = BlockDevice {
        queue_size: 1,
        logical_sector: 4096,
        ..device
    };
    assert_eq!(small.config()[12..16], [1, 0, 0, 0]);
    assert_eq!(small.config()[20..26], [0, 16, 0, 0, 0, 0]);
}

#[test]
fn a_read_only_device_offers_no_changes() {
    let device = BlockDevice {
        size: 1 << 30,
        logical_sector: 512,
        read_only: true,
        queues: 1,
        queue_size: 128,
    };
    let changes = feature::DISCARD | feature::WRITE_ZEROES;
    assert_eq!(
        device.features() & (changes | feature::RO | feature::MQ),
        feature::RO
    );
    let both = BlockDevice {
        read_only: false,
        queues: 2,
        ..device
    };
    let offered = changes | feature::MQ;
    assert_eq!(both.features() & (offered | feature::RO), offered);
    for never in [1, 11, 16, 17] {
        assert_eq!(both.features() & 1 << never, 0, "feature bit {never}");
    }
    assert_eq!(feature::VERSION_1, 1 << 32);
    assert_eq!(
        (feature::INDIRECT_DESC, feature::EVENT_IDX),
        (1 << 28, 1 << 29)
    );
}
