//! A server that knows nothing of moves, and may do what such servers may: a part of the simulation.

use bytes::Bytes;

use crate::GRANULE;
use crate::clock::Micros;
use crate::session::OpId;
use crate::session::foreign::{ForeignAbilities, ForeignAnswer, ForeignOrder};

/// The content of a disk: one number a granule, 0 for zeroes.
pub(super) type Content = Vec<u64>;

pub(super) struct Request {
    pub(super) op: OpId,
    pub(super) order: ForeignOrder,
    pub(super) done: bool,
    /// What was answered when it came.
    pub(super) answered: Content,
    /// Connection lost: still done until then.
    pub(super) until: Micros,
}

pub(super) struct Server {
    pub(super) link: u64,
    pub(super) requests: Vec<Request>,
    pub(super) late: Vec<Request>,
    pub(super) visible: Content,
    pub(super) durable: Content,
    /// What was answered.
    pub(super) answered: Content,
    pub(super) can: ForeignAbilities,
}

pub(super) fn granules(offset: u64, len: u64) -> std::ops::Range<usize> {
    (offset / GRANULE) as usize..((offset + len).div_ceil(GRANULE)) as usize
}

pub(super) fn bytes_of(content: &[u64]) -> Bytes {
    let mut bytes = vec![0; content.len() * GRANULE as usize];
    for (granule, version) in bytes.chunks_mut(GRANULE as usize).zip(content) {
        granule[..8].copy_from_slice(&version.to_le_bytes());
    }
    bytes.into()
}

impl Server {
    pub(super) fn apply(&mut self, order: &ForeignOrder, answered: &Content) {
        match order {
            ForeignOrder::Look(..) => {}
            ForeignOrder::Zero(offset, len) => self.visible[granules(*offset, *len)].fill(0),
            ForeignOrder::Write(offset, data) => put(&mut self.visible, *offset, data),
            ForeignOrder::Flush => self.durable.clone_from(answered),
        }
    }

    /// Do what came over a connection that is no more: for the server it is answered.
    pub(super) fn end(&mut self, order: &ForeignOrder, answered: &Content) {
        self.apply(order, answered);
        self.answer(order);
    }

    /// The answer; from now on the client may count on it.
    pub(super) fn answer(&mut self, order: &ForeignOrder) -> ForeignAnswer {
        match order {
            ForeignOrder::Look(offset, len) => {
                let mut range = self.visible[granules(*offset, *len)].iter();
                if range.all(|version| *version == 0) {
                    return ForeignAnswer::IsZero;
                }
            }
            ForeignOrder::Zero(offset, len) => self.answered[granules(*offset, *len)].fill(0),
            ForeignOrder::Write(offset, data) => put(&mut self.answered, *offset, data),
            ForeignOrder::Flush => {}
        }
        ForeignAnswer::Done
    }
}

fn put(content: &mut Content, offset: u64, data: &Bytes) {
    let first = (offset / GRANULE) as usize;
    for (granule, bytes) in data.chunks(GRANULE as usize).enumerate() {
        content[first + granule] = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    }
}
