//! Every message comes back as it was sent, and nothing else is taken for one.

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9._-]{0,40}"
}

fn description() -> impl Strategy<Value = DiskDescription> {
    let sector = prop_oneof![Just(512_u32), Just(4096)];
    let format = prop_oneof![Just(DiskFormat::Vhdx), Just(DiskFormat::Raw)];
    (
        name(),
        1_u64..=MAX_DISK / 512,
        any::<u32>(),
        sector.clone(),
        sector,
        format,
    )
        .prop_map(
            |(name, sectors, block_size, logical_sector, physical_sector, format)| {
                DiskDescription {
                    name,
                    size: sectors * 512,
                    block_size,
                    logical_sector,
                    physical_sector,
                    format,
                }
            },
        )
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..2000).prop_map(|v| Content::Data(v.into())),
        (1_u64..MAX_DISK / 2).prop_map(Content::Zeroes),
    ]
}

fn marker() -> impl Strategy<Value = Marker> {
    (
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        any::<[u8; 32]>(),
        any::<bool>(),
        0..=MAX_DISKS,
    )
        .prop_map(
            |(id, seq, count, floor, digest, consistent, disks)| Marker {
                id,
                seq,
                count,
                digest,
                floor,
                consistent,
                disks: if consistent { disks } else { 0 },
            },
        )
}

fn standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        Just(Standing::Empty),
        Just(Standing::Receiving),
        Just(Standing::Stale),
        (1_u64.., any::<u128>()).prop_map(|(epoch, session)| Standing::Left {
            session: Uuid::from_u128(session),
            epoch,
        }),
        (1..u64::MAX).prop_map(|attempt| Standing::Prepared { attempt }),
        (1..u64::MAX).prop_map(|epoch| Standing::Owner { epoch }),
    ]
}

fn begin() -> impl Strategy<Value = Start> {
    prop_oneof![
        Just(Start::GoOn),
        Just(Start::Fresh),
        Just(Start::Compare),
        Just(Start::Same)
    ]
}

fn probe() -> impl Strategy<Value = Probe> {
    let numbers = (any::<u64>(), any::<u64>(), 0_u64..MAX_DISK / 2);
    (numbers, 1..=MAX_PAYLOAD as u64, any::<[u8; 32]>()).prop_map(
        |((id, base, offset), len, hash)| Probe {
            id,
            base,
            offset,
            len,
            block: 65536,
            hashes: vec![hash; len.div_ceil(65536) as usize],
        },
    )
}

fn look() -> impl Strategy<Value = Look> {
    let zeroes = (1..=MAX_LOOK).prop_map(|len| (len, Here::Zeroes));
    let blocks = (1..=MAX_PAYLOAD as u64, any::<[u8; 32]>()).prop_map(|(len, hash)| {
        let hashes = vec![hash; len.div_ceil(65536) as usize];
        (len, Here::Blocks(65536, hashes))
    });
    let here = prop_oneof![zeroes, blocks];
    (any::<u64>(), 0_u64..MAX_DISK / 2, here).prop_map(|(id, offset, (len, here))| Look {
        id,
        offset,
        len,
        here,
    })
}

/// Any message at all.
pub(crate) fn message() -> impl Strategy<Value = Message> {
    prop_oneof![greeting(), data(), switching()]
}

fn greeting() -> impl Strategy<Value = Message> {
    let number = 1..u64::MAX;
    let text = ".{0,100}";
    let id = (1..u128::MAX).prop_map(Uuid::from_u128);
    prop_oneof![
        (
            id.clone(),
            id.clone(),
            number.clone(),
            number.clone(),
            description()
        )
            .prop_map(|(session, disk, epoch, incarnation, description)| {
                Message::Hello(Hello {
                    session,
                    disk,
                    epoch,
                    incarnation,
                    description,
                })
            }),
        (id, number.clone(), any::<u16>()).prop_map(|(session, incarnation, lane)| {
            Message::Join(Join {
                session,
                incarnation,
                lane,
            })
        }),
        standing().prop_map(Message::Welcome),
        text.prop_map(|text| Message::Refused {
            refusal: Refusal::Unusable,
            text
        }),
        (begin(), any::<u64>(), any::<u64>(), any::<bool>(), group()).prop_map(
            |(start, acked, aborted, follow, group)| {
                Message::Begin(Begin {
                    start,
                    acked,
                    aborted,
                    follow,
                    group,
                })
            }
        ),
        (number.clone(), text, any::<bool>()).prop_map(|(window, address, templates)| {
            Message::Begun {
                window,
                address,
                templates,
            }
        }),
        Just(Message::Beat),
        Just(Message::Taken),
        proptest::collection::vec(any::<u8>(), 0..2000)
            .prop_map(|bytes| Message::Offer(bytes.into())),
    ]
}

fn data() -> impl Strategy<Value = Message> {
    let number = 1..u64::MAX;
    prop_oneof![
        (number.clone(), 0_u64..MAX_DISK / 2, content()).prop_map(|(seq, offset, content)| {
            Message::Record(Record {
                seq,
                offset,
                content,
            })
        }),
        (any::<u64>(), any::<u64>(), 0_u64..MAX_DISK / 2, content()).prop_map(
            |(id, base, offset, content)| {
                let check = match &content {
                    Content::Data(data) => check_of(data),
                    Content::Zeroes(_) => [0; 16],
                };
                Message::Chunk(Chunk {
                    id,
                    base,
                    offset,
                    content,
                    check,
                })
            }
        ),
        probe().prop_map(Message::Probe),
        look().prop_map(Message::Look),
        (any::<u64>(), any::<u128>(), any::<u128>()).prop_map(|(id, unlike, unknown)| {
            Message::Seen {
                id,
                unlike,
                unknown,
            }
        }),
        (any::<u64>(), 1_u128..).prop_map(|(id, blocks)| Message::Differs { id, blocks }),
        marker().prop_map(Message::Marker),
        prop::collection::vec(any::<u64>(), 1..=MAX_CHUNKS_DONE).prop_map(Message::ChunksDone),
        (any::<u64>(), any::<u64>())
            .prop_map(|(marker, chunks)| Message::Durable { marker, chunks }),
    ]
}

fn arbiter() -> impl Strategy<Value = Option<Uuid>> {
    prop::option::of((1..u128::MAX).prop_map(Uuid::from_u128))
}

fn group() -> impl Strategy<Value = Option<Group>> {
    let name = || (1..u128::MAX).prop_map(Uuid::from_u128);
    prop::option::of((name(), name()).prop_map(|(id, sequence)| Group { id, sequence }))
}

fn lineages() -> impl Strategy<Value = Vec<Uuid>> {
    let lineage = any::<u128>().prop_map(Uuid::from_u128);
    prop::collection::vec(lineage, 0..=usize::from(MAX_DISKS))
}

fn switching() -> impl Strategy<Value = Message> {
    let number = 1..u64::MAX;
    let text = ".{0,100}";
    prop_oneof![
        (number.clone(), arbiter())
            .prop_map(|(attempt, arbiter)| Message::Prepare { attempt, arbiter }),
        (number.clone(), text).prop_map(|(attempt, text)| Message::NotReady { attempt, text }),
        number
            .clone()
            .prop_map(|attempt| Message::Ready { attempt }),
        number
            .clone()
            .prop_map(|attempt| Message::CommitRequest { attempt }),
        (number.clone(), any::<u64>(), arbiter(), marker()).prop_map(
            |(attempt, chunks, arbiter, marker)| {
                Message::Final(Final {
                    attempt,
                    chunks,
                    arbiter,
                    marker,
                })
            }
        ),
        (number.clone(), number.clone())
            .prop_map(|(attempt, epoch)| Message::Grant { attempt, epoch }),
        (number.clone(), text).prop_map(|(epoch, address)| Message::Running { epoch, address }),
        (number, text, lineages()).prop_map(|(seconds, address, together)| {
            Message::WayBack(WayHome {
                seconds,
                address,
                together,
            })
        }),
        text.prop_map(|text| Message::Abandon { text }),
        text.prop_map(|text| Message::Failed { text }),
    ]
}

/// All of a frame's bytes.
fn bytes_of(message: &Message) -> Vec<u8> {
    let frame = encode(message);
    [&frame.head[..], &frame.payload[..]].concat()
}

/// What a decoder makes of a byte stream that ends.
fn decode_all(bytes: &[u8]) -> Result<Vec<Message>, DecodeError> {
    let mut decoder = Decoder::default();
    decoder.feed(bytes);
    let mut messages = Vec::new();
    while let Some(message) = decoder.next()? {
        messages.push(message);
    }
    Ok(messages)
}

proptest! {
    #[test]
    fn a_message_comes_back_as_it_was_sent(messages in prop::collection::vec(message(), 1..4)) {
        let bytes: Vec<u8> = messages.iter().flat_map(bytes_of).collect();
        let mut decoder = Decoder::default();
        let mut read = Vec::new();
        for piece in bytes.chunks(7) {
            decoder.feed(piece);
            while let Some(message) = decoder.next().unwrap() {
                read.push(message);
            }
        }
        prop_assert_eq!(read, messages);
    }

    #[test]
    fn a_flipped_bit_outside_the_payload_is_noticed(message in message(), at in any::<usize>()) {
        let frame = encode(&message);
        let mut bytes = bytes_of(&message);
        let at = at % (frame.head.len() * 8);
        bytes[at / 8] ^= 1 << (at % 8);
        // A longer length than there is waits for more: it is no message either.
        let read = decode_all(&bytes);
        prop_assert!(read.is_err() || read == Ok(Vec::new()), "bit {} changed {:?}", at, message);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_hoard(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut decoder = Decoder::default();
        decoder.feed(&bytes);
        while let Ok(Some(_)) = decoder.next() {}
        prop_assert!(decoder.wants() <= MAX_FRAME);
    }

    #[test]
    fn a_message_comes_back_as_it_was_packed(message in message(), level in 1..4) {
        let frame = encode_packed(&message, |payload| pack(payload, level));
        let mut decoder = Decoder::default();
        decoder.feed(&frame.head);
        decoder.feed(&frame.payload);
        prop_assert_eq!(decoder.next().unwrap(), Some(message));
        prop_assert!(frame.len() <= MAX_FRAME);
    }

    #[test]
    fn a_body_with_a_right_check_and_wrong_fields_is_an_error_with_its_place(
        kind in any::<u8>(),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        if let Err(e) = decode_forged(kind, &body, &[]) {
            prop_assert!(e.offset <= HEAD_LEN + body.len() + 8, "{e}");
        }
    }
}

/// A frame that a hostile peer would make: its check is right.
fn decode_forged(kind: u8, fixed: &[u8], payload: &[u8]) -> Result<Message, DecodeError> {
    let mut head = Vec::new();
    head.extend(((fixed.len() + payload.len()) as u32).to_le_bytes());
    head.extend([kind, 0]);
    head.extend((fixed.len() as u16).to_le_bytes());
    let check = decode::check_of(&head, fixed);
    head.extend(check);
    let head = decode_head(head.try_into().unwrap())?;
    decode_body(&head, Bytes::from([fixed, payload].concat()))
}

fn hello_with(change: impl Fn(&mut Vec<u8>)) -> DecodeError {
    let hello = Message::Hello(Hello {
        session: Uuid::from_u128(1),
        disk: Uuid::from_u128(2),
        epoch: 1,
        incarnation: 1,
        description: DiskDescription {
            name: "disk".into(),
            size: 1 << 40,
            block_size: 0,
            logical_sector: 512,
            physical_sector: 4096,
            format: DiskFormat::Vhdx,
        },
    });
    let mut fixed = encode(&hello).head[HEAD_LEN..].to_vec();
    change(&mut fixed);
    decode_forged(kind::HELLO, &fixed, &[]).unwrap_err()
}

#[test]
fn malformed_greetings_are_refused_naming_the_field() {
    let field = |change: &dyn Fn(&mut Vec<u8>)| hello_with(change).field;
    assert_eq!(field(&|f| f[0] ^= 1), "magic");
    assert_eq!(hello_with(|f| f[4] = 9).fault, Fault::Version);
    assert_eq!(field(&|f| f[6..22].fill(0)), "session");
    assert_eq!(field(&|f| f[22..38].fill(0)), "disk");
    assert_eq!(field(&|f| f[54..62].fill(0xff)), "size");
    assert_eq!(field(&|f| f[54] = 1), "size");
    assert_eq!(field(&|f| f[66] = 1), "logical sector");
    assert_eq!(field(&|f| f[74] = 9), "format");
    assert_eq!(field(&|f| f.push(0)), "message");
    assert_eq!(field(&|f| f.truncate(20)), "session");
    for bad in ["../x", ".", "a/b", "a\0b", "", "\\x"] {
        let error = hello_with(|f| {
            f.truncate(75);
            f.extend((bad.len() as u16).to_le_bytes());
            f.extend(bad.as_bytes());
        });
        assert_eq!(error.field, "name", "{bad:?} was taken for a name");
    }
}

#[test]
fn lengths_beyond_their_bounds_are_refused_before_anything_is_allocated() {
    let head = |body: u32, kind: u8, fixed: u16| {
        let mut head = body.to_le_bytes().to_vec();
        head.extend([kind, 0]);
        head.extend(fixed.to_le_bytes());
        head.extend([0; 4]);
        decode_head(head.try_into().unwrap())
    };
    assert_eq!(
        head(u32::MAX, kind::CHUNK_DATA, 56).unwrap_err().field,
        "body length"
    );
    assert_eq!(
        head(100, kind::MARKER, 64).unwrap_err().field,
        "body length"
    );
    assert_eq!(
        head(10, kind::MARKER, 64).unwrap_err().field,
        "fixed length"
    );
    assert_eq!(
        head(60_000, kind::MARKER, 60_000).unwrap_err().field,
        "fixed length"
    );
    assert_eq!(head(0, 0xee, 0).unwrap_err().field, "kind");
    let place = [1_u64, u64::MAX - 5].map(u64::to_le_bytes).concat();
    let error = decode_forged(kind::RECORD_DATA, &place, &[1; 512]).unwrap_err();
    assert_eq!(error.field, "place on the disk");
    assert!(
        decode_forged(
            kind::RECORD_DATA,
            &[1_u64, 0].map(u64::to_le_bytes).concat(),
            &[]
        )
        .is_err()
    );
}

#[test]
fn a_cut_that_is_not_consistent_or_goes_through_too_many_disks_is_no_marker_and_half_a_group_no_group()
 {
    let marker = |consistent: u8, disks: u16| {
        let mut fields = vec![0; 64];
        fields.push(consistent);
        fields.extend(disks.to_le_bytes());
        decode_forged(kind::MARKER, &fields, &[])
    };
    assert_eq!(marker(0, 1).unwrap_err().field, "disks");
    assert_eq!(marker(1, MAX_DISKS + 1).unwrap_err().field, "disks");
    assert!(marker(1, MAX_DISKS).is_ok() && marker(1, 0).is_ok() && marker(0, 0).is_ok());
    let begin = |group: u8, sequence: u8| {
        let mut fields = vec![0; 18];
        fields.extend([group; 16]);
        fields.extend([sequence; 16]);
        decode_forged(kind::BEGIN, &fields, &[])
    };
    assert_eq!(begin(1, 0).unwrap_err().field, "sequence");
    assert_eq!(begin(0, 1).unwrap_err().field, "sequence");
    assert!(begin(0, 0).is_ok() && begin(1, 2).is_ok());
}

#[test]
fn a_text_too_long_is_cut_at_a_character_and_still_arrives() {
    let text = "ä".repeat(MAX_TEXT);
    let sent = Message::Failed { text };
    let Ok(messages) = decode_all(&bytes_of(&sent)) else {
        panic!("refused")
    };
    assert!(matches!(&messages[..], [Message::Failed { text }] if text.len() == MAX_TEXT));
}
