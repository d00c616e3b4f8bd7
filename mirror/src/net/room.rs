//! Memory that long messages are received into, used again when nobody has them any more.
//!
//! Fresh memory costs a fault for each page, nearly as much as to copy the bytes into it.

use bytes::{Bytes, BytesMut};

use super::lane::READ_ROOM;
use crate::wire::{Chunk, Content, Message};

/// Shorter ones come from what the allocator has at hand.
const LONG: usize = 128 << 10;
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

    /// Have room in `buffer` behind what is there, for so many bytes or a few more; says how many are to be read. More
    /// would belong to the next message, and be copied to where that is received.
    pub(super) fn make(&mut self, buffer: &mut BytesMut, wants: usize) -> usize {
        let wants = wants.max(READ_ROOM);
        if wants >= LONG
            && buffer.capacity() - buffer.len() < wants
            && let Some(mut memory) = self.take()
        {
            memory.clear();
            memory.reserve(buffer.len() + wants);
            memory.extend_from_slice(buffer);
            *buffer = memory;
        }
        buffer.reserve(wants);
        wants
    }

    /// Memory that nobody has any more.
    fn take(&mut self) -> Option<BytesMut> {
        let at = self.0.iter().position(Bytes::is_unique)?;
        self.0.swap_remove(at).try_into_mut().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Receive so many bytes as a chunk, behind a few that were read with it.
    fn received(room: &mut Room, buffer: &mut BytesMut, len: usize) -> Message {
        buffer.extend_from_slice(b"head");
        let reads = room.make(buffer, len);
        assert_eq!(reads, len);
        assert!(buffer.capacity() - buffer.len() >= len && buffer.starts_with(b"head"));
        buffer.resize(4 + len, 7);
        let content = Content::Data(buffer.split().freeze().slice(4..));
        let (id, base, offset, hash) = (0, 0, 0, [0; 32]);
        #[rustfmt::skip]
        let message = Message::Chunk(Chunk { id, base, offset, content, hash });
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
            // What was in front of it may be so again.
            let near = |at: &*const u8| place(&next).addr().wrapping_sub(at.addr()) < 64;
            assert!(places.iter().any(near), "{len} bytes are elsewhere");
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
