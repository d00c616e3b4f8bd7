//! Which buffers of a guest a frame goes to, and which it comes from (VIRTIO 1.2, 5.1.6).
//!
//! Machine over the guest's memory: [`Receive`] gathers buffers before there is a frame, since how long the
//! next one is cannot be asked; [`Transmit`] takes one frame after the other. Neither sees what is behind a
//! header. Memory is bounded by [`MOST_SEGMENTS`], and what breaks a rule ends with a [`Fault`], by which the
//! queue stands before the chain that is at fault.

use std::collections::VecDeque;

use blockserver::virtio::block::{Fault, Segment};
use blockserver::virtio::ring::{Descriptors, SplitQueue};
use blockserver::virtio::{GuestMemory, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::header::{HEADER, Header, LONGEST, feature};

/// Most descriptors of a queue, and of a chain (2.7.5.3.1).
pub(super) const QUEUE_SIZE: u16 = 256;
/// Most segments that are gathered for one frame; with two more they are one vectored system call.
pub(super) const MOST_SEGMENTS: usize = 1000;
/// The shortest frame: an Ethernet header.
const SHORTEST: u64 = 14;

/// Take a chain apart into its segments; says how many bytes they are. All of them have to be in memory and
/// go the same way, and hold at least a header.
fn read_chain(
    memory: &GuestMemoryMmap<()>,
    chain: Descriptors<'_>,
    (to_guest, segments): (bool, &mut Vec<Segment>),
) -> Result<u64, Fault> {
    segments.clear();
    let (mut bytes, mut ended, mut count) = (0, false, 0);
    for descriptor in chain {
        count += 1;
        if count > QUEUE_SIZE {
            return Err(Fault::TooLong);
        }
        if descriptor.is_write_only() != to_guest {
            return Err(Fault::Unfit);
        }
        ended = !descriptor.has_next();
        let (address, len) = (descriptor.addr(), descriptor.len());
        if len == 0 {
            continue;
        }
        if !memory.check_range(address, len as usize) {
            return Err(Fault::Memory);
        }
        let address = address.0;
        segments.push(Segment { address, len });
        bytes += u64::from(len);
    }
    // The walk also ends at a descriptor that is not there.
    if !ended {
        return Err(Fault::Endless);
    }
    if bytes < HEADER as u64 {
        return Err(Fault::Unfit);
    }
    Ok(bytes)
}

/// What is left of segments behind their first `skip` bytes.
fn behind(
    segments: impl Iterator<Item = Segment>,
    mut skip: usize,
) -> impl Iterator<Item = Segment> {
    segments.filter_map(move |Segment { address, len }| {
        let here = skip.min(len as usize);
        skip -= here;
        let len = len - here as u32;
        (len > 0).then_some(Segment {
            address: address + here as u64,
            len,
        })
    })
}

/// Write bytes to where the segments are; what does not fit is left out.
fn scatter(
    memory: &GuestMemory,
    segments: impl Iterator<Item = Segment>,
    mut bytes: &[u8],
) -> Result<(), Fault> {
    for Segment { address, len } in segments {
        let (here, rest) = bytes.split_at(bytes.len().min(len as usize));
        memory
            .write_slice(here, GuestAddress(address))
            .map_err(|_| Fault::Memory)?;
        bytes = rest;
        if bytes.is_empty() {
            break;
        }
    }
    Ok(())
}

/// Whether a frame can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There is as much room as was asked for.
    Enough,
    /// There is less, and the driver may give more.
    Less,
    /// There is less, and will not be more.
    Full,
}

/// A chain that was gathered.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    head: u16,
    bytes: u64,
    segments: usize,
}

/// The receive queue.
#[derive(Debug)]
pub(super) struct Receive {
    queue: SplitQueue,
    features: u64,
    gathered: VecDeque<Buffer>,
    segments: VecDeque<Segment>,
    /// Bytes of all that is gathered.
    bytes: u64,
    chain: Vec<Segment>,
}

impl Receive {
    /// The queue, with these features negotiated.
    pub(super) fn new(queue: SplitQueue, features: u64) -> Self {
        Self {
            queue,
            features,
            gathered: VecDeque::new(),
            segments: VecDeque::new(),
            bytes: 0,
            chain: Vec::new(),
        }
    }

    /// Gather buffers for a frame of `wanted` bytes: one, or where they are merged, as many as it takes.
    pub(super) fn gather(&mut self, wanted: usize) -> Result<Room, Fault> {
        let merges = self.features & feature::MRG_RXBUF != 0;
        let wanted = (HEADER + wanted) as u64;
        loop {
            if self.bytes >= wanted {
                return Ok(Room::Enough);
            }
            let all = self.gathered.len() >= usize::from(self.queue.state().size);
            if all || !merges && !self.gathered.is_empty() {
                return Ok(Room::Full);
            }
            let chain = &mut self.chain;
            let read = |memory: &GuestMemoryMmap<()>, next: Descriptors<'_>| {
                read_chain(memory, next, (true, chain))
            };
            let Some((head, bytes)) = self.queue.take(read)? else {
                return Ok(Room::Less);
            };
            if self.segments.len() + self.chain.len() > MOST_SEGMENTS {
                self.queue.give_back(1);
                return Ok(Room::Full);
            }
            self.gathered.push_back(Buffer {
                head,
                bytes,
                segments: self.chain.len(),
            });
            self.segments.extend(&self.chain);
            self.bytes += bytes;
        }
    }

    /// Where the bytes of a frame go, without its header.
    pub(super) fn places(&self) -> impl Iterator<Item = Segment> {
        behind(self.segments.iter().copied(), HEADER)
    }

    /// For a frame of how many bytes there is room now.
    pub(super) fn room(&self) -> usize {
        let bytes = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        bytes.saturating_sub(HEADER)
    }

    /// Bytes of the places that a frame which does not fit was written to in part.
    pub(super) fn written(&self, bytes: &mut [u8]) -> Result<(), Fault> {
        let mut rest = bytes;
        for Segment { address, len } in self.places() {
            let here = rest.len().min(len as usize);
            let (now, later) = rest.split_at_mut(here);
            let memory = self.queue.memory();
            memory
                .read_slice(now, GuestAddress(address))
                .map_err(|_| Fault::Memory)?;
            rest = later;
        }
        Ok(())
    }

    /// A frame, which fits, by a copy.
    pub(super) fn copy(&mut self, header: Header, frame: &[u8]) -> Result<bool, Fault> {
        scatter(self.queue.memory(), self.places(), frame)?;
        self.deliver(header, frame.len())
    }

    /// A frame of `len` bytes, which fit, has been written to its places: the driver gets it. Says whether
    /// it did: not if the driver did not agree to such a frame, and then the buffers serve the next one.
    pub(super) fn deliver(&mut self, header: Header, len: usize) -> Result<bool, Fault> {
        let Some(header) = header.incoming(self.features) else {
            return Ok(false);
        };
        let mut left = (HEADER + len) as u64;
        let mut answers = Vec::new();
        for buffer in &self.gathered {
            // 5.1.6.4.1: each buffer but the last is filled.
            let here = left.min(buffer.bytes);
            answers.push((buffer.head, u32::try_from(here).unwrap_or(u32::MAX)));
            left -= here;
            if left == 0 {
                break;
            }
        }
        // 5.1.6.4.1: without merging it is 1.
        let buffers = answers.len() as u16;
        let bytes = header.of_buffers(buffers).encode();
        scatter(self.queue.memory(), self.segments.iter().copied(), &bytes)?;
        for buffer in self.gathered.drain(..answers.len()) {
            self.segments.drain(..buffer.segments);
            self.bytes -= buffer.bytes;
        }
        self.queue.put_together(&answers)?;
        Ok(true)
    }

    /// The queue itself, for notifications.
    pub(super) fn queue(&mut self) -> &mut SplitQueue {
        &mut self.queue
    }

    /// How far the queue is: buffers that no frame went to are the driver's again.
    pub(super) fn stop(mut self) -> QueueState {
        self.queue.give_back(self.gathered.len() as u16);
        self.queue.state()
    }
}

/// A frame that the driver sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// It goes out with this header.
    Send(Header),
    /// It is not one that may be sent.
    Drop,
}

/// The transmit queue.
#[derive(Debug)]
pub(super) struct Transmit {
    queue: SplitQueue,
    features: u64,
    /// The frame that was taken and is not answered.
    taken: Option<(u16, Outgoing)>,
    chain: Vec<Segment>,
}

impl Transmit {
    /// The queue, with these features negotiated.
    pub(super) fn new(queue: SplitQueue, features: u64) -> Self {
        Self {
            queue,
            features,
            taken: None,
            chain: Vec::new(),
        }
    }

    /// The next frame: the same one until [`Self::done`].
    pub(super) fn next(&mut self) -> Result<Option<Outgoing>, Fault> {
        if let Some((_, frame)) = self.taken {
            return Ok(Some(frame));
        }
        let (features, segments) = (self.features, &mut self.chain);
        let read = |memory: &GuestMemoryMmap<()>, next: Descriptors<'_>| {
            let bytes = read_chain(memory, next, (false, segments))?;
            // The kernel is told what was read here once, whatever the guest makes of it meanwhile.
            let header = read_header(memory, segments)?;
            let len = bytes - HEADER as u64;
            let possible = (SHORTEST..=LONGEST as u64).contains(&len);
            let sent = header.outgoing(features, len as usize);
            let sent = sent.filter(|_| possible);
            Ok(sent.map_or(Outgoing::Drop, Outgoing::Send))
        };
        self.taken = self.queue.take(read)?;
        Ok(self.taken.map(|(_, frame)| frame))
    }

    /// The bytes of the frame, without its header.
    pub(super) fn places(&self) -> impl Iterator<Item = Segment> {
        behind(self.chain.iter().copied(), HEADER)
    }

    /// The frame has been sent or dropped: its buffer is the driver's again.
    pub(super) fn done(&mut self) -> Result<(), Fault> {
        match self.taken.take() {
            // 2.7.8.2: nothing was written to it.
            Some((head, _)) => self.queue.put_together(&[(head, 0)]),
            None => Ok(()),
        }
    }

    /// The queue itself, for notifications.
    pub(super) fn queue(&mut self) -> &mut SplitQueue {
        &mut self.queue
    }

    /// How far the queue is: a frame that was not sent is the driver's again.
    pub(super) fn stop(mut self) -> QueueState {
        self.queue.give_back(u16::from(self.taken.is_some()));
        self.queue.state()
    }
}

fn read_header(memory: &GuestMemoryMmap<()>, segments: &[Segment]) -> Result<Header, Fault> {
    let mut bytes = [0; HEADER];
    let mut rest = &mut bytes[..];
    for Segment { address, len } in segments {
        let here = rest.len().min(*len as usize);
        let (now, later) = rest.split_at_mut(here);
        memory
            .read_slice(now, GuestAddress(*address))
            .map_err(|_| Fault::Memory)?;
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    Ok(Header::decode(bytes))
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
