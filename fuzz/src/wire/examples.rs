//! Messages of every kind, to begin from. Inputs that a fuzzer keeps for what they reach are seldom whole messages.

use bytes::Bytes;
use mirror::wire::{
    Begin, Chunk, Content, DiskDescription, DiskFormat, Final, Group, Hello, Here, Join, Look,
    Marker, Message, Probe, Record, Refusal, Standing, Start, WayHome, check_of,
};
use uuid::Uuid;

const ONE: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
const TWO: Uuid = Uuid::from_u128(0xfedc_ba98_7654_3210_fedc_ba98_7654_3210);

/// What a kind of message is called. Whoever adds one adds an example of it below.
#[must_use]
pub fn name(message: &Message) -> &'static str {
    match message {
        Message::Offer(_) => "offer",
        Message::Taken => "taken",
        Message::Hello(_) => "hello",
        Message::Join(_) => "join",
        Message::Welcome(_) => "welcome",
        Message::Refused { .. } => "refused",
        Message::Begin(_) => "begin",
        Message::Begun { .. } => "begun",
        Message::Beat => "beat",
        Message::Record(_) => "record",
        Message::Chunk(_) => "chunk",
        Message::Probe(_) => "probe",
        Message::Differs { .. } => "differs",
        Message::Look(_) => "look",
        Message::Seen { .. } => "seen",
        Message::Marker(_) => "marker",
        Message::ChunksDone(_) => "chunks-done",
        Message::Durable { .. } => "durable",
        Message::Prepare { .. } => "prepare",
        Message::Ready { .. } => "ready",
        Message::NotReady { .. } => "not-ready",
        Message::Final(_) => "final",
        Message::CommitRequest { .. } => "commit-request",
        Message::Grant { .. } => "grant",
        Message::Running { .. } => "running",
        Message::WayBack(_) => "way-back",
        Message::Abandon { .. } => "abandon",
        Message::Failed { .. } => "failed",
    }
}

/// How many kinds there are.
pub const KINDS: usize = 28;

fn greetings() -> Vec<Message> {
    let description = DiskDescription {
        name: "data".to_owned(),
        size: 1 << 40,
        block_size: 32 << 20,
        logical_sector: 512,
        physical_sector: 4096,
        format: DiskFormat::Vhdx,
    };
    let left = Standing::Left {
        session: TWO,
        epoch: 2,
    };
    vec![
        Message::Offer(Bytes::from_static(b"{}")),
        Message::Taken,
        Message::Hello(Hello {
            session: ONE,
            disk: TWO,
            epoch: 1,
            incarnation: 1,
            description,
        }),
        Message::Join(Join {
            session: ONE,
            incarnation: 1,
            lane: 1,
        }),
        Message::Welcome(Standing::Receiving),
        Message::Welcome(left),
        Message::Welcome(Standing::Prepared { attempt: 1 }),
        Message::Welcome(Standing::Owner { epoch: 2 }),
        Message::Refused {
            refusal: Refusal::Newer,
            text: "no".to_owned(),
        },
        begin(None),
        begin(Some(Group {
            id: ONE,
            sequence: TWO,
        })),
        Message::Begun {
            window: 1 << 24,
            address: "nbd://there/data".to_owned(),
            templates: true,
        },
        Message::Beat,
    ]
}

fn begin(group: Option<Group>) -> Message {
    Message::Begin(Begin {
        start: Start::Compare,
        acked: 7,
        aborted: 1,
        follow: true,
        group,
    })
}

fn copies() -> Vec<Message> {
    let (id, base, offset, len) = (3, 5, 1 << 20, 6000);
    let chunk = |content, check| {
        Message::Chunk(Chunk {
            id,
            base,
            offset,
            content,
            check,
        })
    };
    let record = |content| {
        Message::Record(Record {
            seq: 6,
            offset,
            content,
        })
    };
    let data = Bytes::from_static(b"sixteen bytes ..");
    let hash = *blake3::hash(&data).as_bytes();
    let look = |here| {
        Message::Look(Look {
            id,
            offset,
            len,
            here,
        })
    };
    vec![
        chunk(Content::Data(data.clone()), check_of(&data)),
        chunk(Content::Zeroes(1 << 20), [0; 16]),
        record(Content::Data(data)),
        record(Content::Zeroes(4096)),
        Message::Probe(Probe {
            id,
            base,
            offset,
            len,
            block: 4096,
            hashes: vec![hash; 2],
        }),
        Message::Differs { id, blocks: 2 },
        look(Here::Zeroes),
        look(Here::Blocks(4096, vec![hash; 2])),
        Message::Seen {
            id,
            unlike: 1,
            unknown: 2,
        },
        Message::Marker(marker(0)),
        Message::Marker(marker(2)),
        Message::ChunksDone(vec![1, 2, 3]),
        Message::Durable {
            marker: 4,
            chunks: 3,
        },
    ]
}

fn marker(disks: u16) -> Marker {
    Marker {
        id: 4,
        seq: 6,
        count: 1,
        digest: [9; 32],
        floor: 5,
        consistent: true,
        disks,
    }
}

fn switchover() -> Vec<Message> {
    let (attempt, epoch) = (1, 2);
    let text = || "why".to_owned();
    vec![
        Message::Prepare {
            attempt,
            arbiter: Some(ONE),
        },
        Message::Ready { attempt },
        Message::NotReady {
            attempt,
            text: text(),
        },
        Message::Final(Final {
            attempt,
            chunks: 3,
            arbiter: None,
            marker: marker(0),
        }),
        Message::CommitRequest { attempt },
        Message::Grant { attempt, epoch },
        Message::Running {
            epoch,
            address: "nbd://there/data".to_owned(),
        },
        Message::WayBack(WayHome {
            seconds: 3600,
            address: "here:10810".to_owned(),
            together: vec![Uuid::from_u128(5), Uuid::from_u128(6)],
        }),
        Message::Abandon { text: text() },
        Message::Failed { text: text() },
    ]
}

/// Some of every kind.
#[must_use]
pub fn examples() -> Vec<Message> {
    [greetings(), copies(), switchover()].concat()
}
