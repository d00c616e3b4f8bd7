//! Memory that long messages are received into, used again when nobody has them any more.
//!
//! Fresh memory costs a fault for each page, nearly as much as to copy the bytes into it.

use bytes::{Buf, Bytes, BytesMut};

use super::lane::READ_ROOM;
use crate::wire::{Chunk, Content, Message};

/// Shorter ones come from what the allocator has at hand.
const LONG: usize = 128 << 10;
/// What direct writes want memory to be a multiple of, at most.
const ALIGNMENT: usize = 4096;
/// So many are remembered: one that is received, one that is carried out, one that waits between them.
const MOST: usize = 3;

/// The memory of the last long messages of a connection.
#[derive(Debug, Default)]
pub(super) struct Room(Vec<Bytes>);

impl Room {
    /// Remember the memory of a message, if it is worth that.
    pub(super) fn remember(&mut self, message: &Message) {
        if let Message::Chunk(Chunk {
            content: Content::Data(data),
            ..
        }) = message
            && data.len() >= LONG
            && self.0.len() < MOST
        {
            self.0.push(data.clone());
        }
    }

    /// Whether any is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Remember none.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Have room in `buffer` for the rest of the frame that it begins with, of which it `wants` so many bytes; says how
    /// many are to be read. Of a long frame that is no more: what follows would have to be copied to where it is received.
    pub(super) fn make(&mut self, buffer: &mut BytesMut, wants: usize, payload_at: usize) -> usize {
        let room = buffer.capacity() - buffer.len();
        if room >= wants && buffer.len() > READ_ROOM {
            return wants;
        }
        if wants < LONG {
            buffer.reserve(wants.max(READ_ROOM));
            return wants.max(READ_ROOM);
        }
        if room < wants {
            let mut memory = self.memory(buffer.len() + wants, payload_at);
            memory.extend_from_slice(buffer);
            *buffer = memory;
        }
        wants
    }

    /// Memory for so many bytes, the one at `payload_at` as direct writes need it.
    fn memory(&mut self, len: usize, payload_at: usize) -> BytesMut {
        let mut memory = self.take().unwrap_or_default();
        memory.reserve(len + ALIGNMENT);
        let skip = memory
            .as_ptr()
            .wrapping_add(payload_at)
            .addr()
            .wrapping_neg()
            % ALIGNMENT;
        memory.resize(skip, 0);
        let mut memory = BytesMut::from(Bytes::from(memory));
        memory.advance(skip);
        memory
    }

    /// Memory that nobody has any more, empty.
    fn take(&mut self) -> Option<Vec<u8>> {
        let at = self.0.iter().position(Bytes::is_unique)?;
        let mut memory = self.0.swap_remove(at).try_into_mut().ok()?;
        memory.clear();
        Some(Vec::from(memory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Receive so many bytes as a chunk, behind a few fields, in several reads.
    fn received(room: &mut Room, buffer: &mut BytesMut, len: usize) -> Message {
        *buffer = BytesMut::with_capacity(64);
        buffer.extend_from_slice(b"fields");
        let whole = buffer.len() + len;
        while buffer.len() < whole {
            let most = room.make(buffer, whole - buffer.len(), 6);
            let reads = most.min(whole - buffer.len()).min(100_001);
            assert!(buffer.capacity() - buffer.len() >= reads && buffer.starts_with(b"fields"));
            buffer.resize(buffer.len() + reads, 7);
        }
        let content = Content::Data(buffer.split().freeze().slice(6..));
        let (id, base, offset, check) = (0, 0, 0, [0; 16]);
        #[rustfmt::skip]
        let message = Message::Chunk(Chunk { id, base, offset, content, check });
        room.remember(&message);
        message
    }

    fn place(message: &Message) -> *const u8 {
        match message {
            Message::Chunk(Chunk {
                content: Content::Data(data),
                ..
            }) => data.as_ptr(),
            _ => unreachable!("it is a chunk with data"),
        }
    }

    #[test]
    fn memory_is_used_again_once_nobody_has_it() {
        let (mut room, mut buffer) = (Room::default(), BytesMut::new());
        let first = received(&mut room, &mut buffer, 512 << 10);
        let second = received(&mut room, &mut buffer, 512 << 10);
        let places = [place(&first), place(&second)];
        assert_ne!(places[0], places[1], "the first is held");
        drop((first, second));
        for len in [512 << 10, 300 << 10, 512 << 10, 512 << 10] {
            let next = received(&mut room, &mut buffer, len);
            let at = place(&next);
            assert!(places.contains(&at), "{len} bytes are elsewhere");
            assert_eq!(at.addr() % ALIGNMENT, 0, "they can be written directly");
        }
    }

    #[test]
    fn no_more_is_kept_than_a_few_long_ones() {
        let (mut room, mut buffer) = (Room::default(), BytesMut::new());
        let held: Vec<_> = (0..10)
            .map(|_| received(&mut room, &mut buffer, LONG))
            .collect();
        assert_eq!(room.0.len(), MOST);
        drop(held);
        room.clear();
        received(&mut room, &mut buffer, LONG - 1);
        assert!(room.is_empty(), "a short one is not worth it");
    }
}
