//! The messages, as checked types.
//!
//! Whatever is in one of these after decoding keeps the bounds written at its fields.

use bytes::Bytes;
use uuid::Uuid;

/// What kind of image the target creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// A dynamic VHDX image.
    Vhdx,
    /// A sparse raw image.
    Raw,
}

/// What the target has to create.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DiskDescription {
    /// The disk's name: 1 to 255 bytes, no `/`, no NUL, not starting with a dot.
    pub name: String,
    /// Size of the disk in bytes: at least 512, at most 64 TiB, a multiple of 512.
    pub size: u64,
    /// Payload block size in bytes; 0 where the format has none.
    pub block_size: u32,
    /// Logical sector size in bytes: 512 or 4096.
    pub logical_sector: u32,
    /// Physical sector size in bytes: 512 or 4096.
    pub physical_sector: u32,
    /// The image format.
    pub format: DiskFormat,
}

/// The first message on the ordered lane, from the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The session: one attempt to move this disk, made anew after a crash of the source.
    pub session: Uuid,
    /// The disk's lineage: the same on every host it ever moves to.
    pub disk: Uuid,
    /// The source's ownership epoch; at least 1.
    pub epoch: u64,
    /// Grows with every connection of one session; at least 1.
    pub incarnation: u64,
    /// What to create.
    pub description: DiskDescription,
}

/// The first message on a bulk lane, from the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// The session.
    pub session: Uuid,
    /// The incarnation whose ordered lane this lane belongs to.
    pub incarnation: u64,
    /// Its number, from 1.
    pub lane: u16,
}

/// What the target has of the session that greets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing that counts: it will begin from an empty disk.
    Empty,
    /// Content of this disk that no session is known to have made what it is now: part of an earlier session's, what it
    /// had before it handed the disk over, or a copy that came another way.
    Stale,
    /// The disk as it was when this host handed it over, by that session, to the owner of that epoch; nothing has been
    /// done to it since.
    Left {
        /// The session that moved it.
        session: Uuid,
        /// The epoch that was granted: at least 1.
        epoch: u64,
    },
    /// Part of this session's data.
    Receiving,
    /// Everything of this session up to the final marker of `attempt`, durably; awaits the grant.
    Prepared {
        /// Which attempt to switch over.
        attempt: u64,
    },
    /// It owns the disk (or has owned it and moved it on).
    Owner {
        /// Its epoch.
        epoch: u64,
    },
}

/// From which content to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From what this session has brought so far.
    GoOn,
    /// From an empty disk.
    Fresh,
    /// From what is there, whatever it is: the source compares all of it.
    Compare,
    /// From what was left: the source knows what has changed since.
    Same,
}

/// Disks that follow together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The same for the same disks, whenever they are mirrored.
    pub id: Uuid,
    /// What they count by: numbers of another sequence have nothing to do with those of this one.
    pub sequence: Uuid,
}

/// How to go on, from the source after the greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// From which content.
    pub start: Start,
    /// The last record that the source knows to be durable at the target.
    pub acked: u64,
    /// The last switchover attempt that the source has given up; 0 for none.
    pub aborted: u64,
    /// Whether the target is to follow once it is in step, and again after an attempt that was given up.
    pub follow: bool,
    /// The disks that are to follow together, if there are some.
    pub group: Option<Group>,
}

/// Bytes of the disk, or that they are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes, 1 to [`super::MAX_PAYLOAD`] of them.
    Data(Bytes),
    /// This many zero bytes, at least 1.
    Zeroes(u64),
}

impl Content {
    /// How many bytes of the disk it covers.
    #[must_use]
    pub fn covers(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeroes(len) => *len,
        }
    }

    /// How many bytes of memory it holds.
    #[must_use]
    pub fn held(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeroes(_) => 0,
        }
    }
}

/// One change that a client of the source was told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number: grows along the stream, with gaps where changes went to the bitmap.
    pub seq: u64,
    /// First byte of the disk; `offset` plus what it covers is at most 64 TiB.
    pub offset: u64,
    /// What is there now.
    pub content: Content,
}

/// Where a host waits for a disk that it hands over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WayHome {
    /// For how many seconds, once the disk has moved.
    pub seconds: u64,
    /// Where, as sources are told; empty if it does not.
    pub address: String,
    /// The lineages of the disks that are mirrored together with it, at most [`super::MAX_DISKS`], its own among them; none
    /// of a disk by itself.
    pub together: Vec<Uuid>,
}

/// A part of the disk as it was when no record after `base` had happened, or later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Names it in the acknowledgement.
    pub id: u64,
    /// The last sequence number given out when its read was submitted.
    pub base: u64,
    /// First byte of the disk.
    pub offset: u64,
    /// What is there.
    pub content: Content,
    /// What [`super::check_of`] makes of the data; all zero bytes for zeroes.
    pub check: [u8; 16],
}

/// A part of the disk of which the target may have the same bytes already, by the hashes of its blocks. It stands for the
/// chunk of its base and place, and counts as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Names it in the answer.
    pub id: u64,
    /// The last sequence number given out when its read was submitted.
    pub base: u64,
    /// First byte of the disk.
    pub offset: u64,
    /// How many bytes, 1 to [`super::MAX_PAYLOAD`].
    pub len: u64,
    /// Bytes of a block, a power of two from 4 KiB to 1 MiB; the last one may be shorter.
    pub block: u32,
    /// BLAKE3 of each block, at most [`super::MAX_BLOCKS`].
    pub hashes: Vec<[u8; 32]>,
}

/// A part of the disk at which the target only looks: whether it is there as it is here. Stands for no chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Names it in the answer.
    pub id: u64,
    /// First byte of the disk.
    pub offset: u64,
    /// How many bytes: 1 to [`super::MAX_PAYLOAD`], or to [`super::MAX_LOOK`] of zeroes.
    pub len: u64,
    /// What is here.
    pub here: Here,
}

/// What the source has at a part of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Here {
    /// Zeroes.
    Zeroes,
    /// Blocks of so many bytes (a power of two from 4 KiB to 1 MiB; the last one may be shorter), and BLAKE3 of each, at most
    /// [`super::MAX_BLOCKS`].
    Blocks(u32, Vec<[u8; 32]>),
}

impl Here {
    /// How many hashes it has.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        match self {
            Self::Zeroes => 0,
            Self::Blocks(_, hashes) => hashes.len() as u64,
        }
    }
}

/// Asks the target to make everything before it durable and to say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Names it in the acknowledgement; grows.
    pub id: u64,
    /// No record up to this number follows.
    pub seq: u64,
    /// How many records lie between the previous marker and this one.
    pub count: u64,
    /// Digest over those records.
    pub digest: [u8; 32],
    /// No chunk with a smaller base follows.
    pub floor: u64,
    /// With all that came before, the target has the source's disk as it was when `seq` was the last number given out.
    pub consistent: bool,
    /// It is one side of a cut through so many disks of the group, at most [`super::MAX_DISKS`], each of which has a marker
    /// with the same number; 0 when it is not. A cut is consistent.
    pub disks: u16,
}

/// The last marker of an attempt to switch over: nothing follows unless the attempt is aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Final {
    /// Which attempt.
    pub attempt: u64,
    /// How many chunks the target has acknowledged in this incarnation.
    pub chunks: u64,
    /// The disk is offered, durably: once the target has everything it may ask that arbiter for it.
    pub arbiter: Option<Uuid>,
    /// The marker.
    pub marker: Marker,
}

/// Why a target does not take a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It does not speak the source's protocol version.
    Version,
    /// It already has another disk of that name.
    Occupied,
    /// It owns this disk itself, or a newer epoch of it than the source.
    Newer,
    /// It does not know the session that a lane wants to join, or the disk that is granted.
    Unknown,
    /// It cannot create the disk (no space, no permission, a size it does not support).
    CannotCreate,
    /// It cannot go on from what it has of the disk (another size, an image that does not open), and may empty it.
    Unusable,
}

/// Everything the two hosts say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Source: would you take a machine that is so? The only message of its connection. What it says is opaque here;
    /// at most [`super::MAX_PAYLOAD`] bytes.
    Offer(Bytes),
    /// Target: I would. The connection ends.
    Taken,
    /// Source: who I am (ordered lane).
    Hello(Hello),
    /// Source: this is a bulk lane.
    Join(Join),
    /// Target: what I have of your session.
    Welcome(Standing),
    /// Target: no. The connection ends.
    Refused {
        /// Why, to match on.
        refusal: Refusal,
        /// Why, for a person.
        text: String,
    },
    /// Source: how to go on.
    Begin(Begin),
    /// Target: done, send.
    Begun {
        /// The most bytes of records, and the most bytes of chunks, the source may have on the way.
        window: u64,
        /// Where clients will find the disk, if that is known; empty if not. Until then they are kept waiting there.
        address: String,
        /// Blocks of it may be here in other images: it saves bytes to ask, with [`Message::Probe`], before they are sent.
        templates: bool,
    },
    /// Either: I live.
    Beat,
    /// Source: a change (ordered lane).
    Record(Record),
    /// Source: a part of the disk (bulk lane).
    Chunk(Chunk),
    /// Source: do you have this part of the disk (bulk lane)?
    Probe(Probe),
    /// Target: of that probe these blocks are different here; bit 0 is the first. It is an answer as [`Message::ChunksDone`].
    Differs {
        /// Which probe.
        id: u64,
        /// Its blocks; at least one.
        blocks: u128,
    },
    /// Source: is this part of the disk there as it is here (bulk lane)?
    Look(Look),
    /// Target: of what it looked at these blocks are different here, and of these it cannot say; bit 0 is the first, and
    /// stands for all of zeroes.
    Seen {
        /// Which look.
        id: u64,
        /// Blocks that are different.
        unlike: u128,
        /// Blocks of which something newer waits elsewhere.
        unknown: u128,
    },
    /// Source: make it durable (ordered lane).
    Marker(Marker),
    /// Target: these chunks are in the disk, not yet durable. 1 to 512 of them.
    ChunksDone(Vec<u64>),
    /// Target: everything before that marker is durable.
    Durable {
        /// Which marker.
        marker: u64,
        /// The first so many chunks acknowledged in this incarnation are durable too.
        chunks: u64,
    },
    /// Source: I am about to switch over.
    Prepare {
        /// Which attempt.
        attempt: u64,
        /// The arbiter that is to decide about it, if it is a fast one: both have to mean the same.
        arbiter: Option<Uuid>,
    },
    /// Target: I can.
    Ready {
        /// Which attempt.
        attempt: u64,
    },
    /// Target: I cannot, now.
    NotReady {
        /// Which attempt.
        attempt: u64,
        /// Why, for a person.
        text: String,
    },
    /// Source: this is all.
    Final(Final),
    /// Target: I have all of it, durably, and wait.
    CommitRequest {
        /// Which attempt.
        attempt: u64,
    },
    /// Source: the disk is yours.
    Grant {
        /// Which attempt.
        attempt: u64,
        /// The epoch under which the target owns it.
        epoch: u64,
    },
    /// Target: I serve it.
    Running {
        /// Its epoch.
        epoch: u64,
        /// Where clients find it.
        address: String,
    },
    /// Source: once the disk is yours, keep a copy of it in step here for a while, so that it can come back. Said after
    /// each [`Message::Begun`].
    WayBack(WayHome),
    /// Source: this session is over and the disk stays here.
    Abandon {
        /// Why, for a person.
        text: String,
    },
    /// Target: I cannot go on with this session.
    Failed {
        /// Why, for a person.
        text: String,
    },
}
