//! One connection: bytes in to messages, messages to bytes out.
//!
//! Must never hold more received messages than fit the inbox: then it stops reading, and TCP tells
//! the peer. What waits to be sent is bounded by the machines' windows.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::buf::Limit;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::Clock;
use super::room::Room;
use super::stream::Stream;
use super::tls;
use crate::clock::Micros;
use crate::pacing::Squeeze;
use crate::session::ConnId;
use crate::wire::{
    Chunk, DecodeError, Decoder, Frame, Message, Record, encode, encode_packed, pack,
};

/// Messages that may wait for the machine, each at most one frame.
pub(super) const INBOX: usize = 64;
/// How long a connection that is closed here may take to carry what was sent before.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes gathered for one system call.
const BATCH: usize = 256 << 10;
/// Shorter payloads are not worth packing; longer ones than the second are packed on another thread.
const LEAST_PACKED: usize = 512;
const LONG_TO_PACK: usize = 16 << 10;
/// After so long without a byte a connection is taken for a quiet one.
const QUIET: Duration = Duration::from_secs(1);
/// Least room for one read of the socket.
pub(super) const READ_ROOM: usize = 32 << 10;

/// What is heard of a connection.
#[derive(Debug)]
pub(super) enum Heard {
    /// It is there.
    Connected,
    /// A message came.
    Message(Message),
    /// What came is no message; nothing more is heard.
    Malformed(DecodeError),
    /// It ended, for that reason; nothing more is heard.
    Closed(String),
}

/// What lanes carried, all together. Only grows.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// Bytes written to sockets.
    pub(super) sent: AtomicU64,
    /// Bytes by which packing made that less.
    pub(super) spared: AtomicU64,
}

/// Where what is heard goes.
pub(super) type Inbox = mpsc::Sender<(ConnId, Heard)>;

/// This end of a connection. Dropped, it ends at once.
#[derive(Debug)]
pub(super) struct Lane {
    outgoing: mpsc::UnboundedSender<Message>,
    task: JoinHandle<()>,
}

/// What a lane's task works with.
#[derive(Debug)]
pub(super) struct Ends {
    conn: ConnId,
    outgoing: mpsc::UnboundedReceiver<Message>,
    inbox: Inbox,
    carried: Arc<Carried>,
}

impl Lane {
    /// A lane whose task is what `run` makes of its ends.
    pub(super) fn spawn<F>(
        conn: ConnId,
        inbox: Inbox,
        carried: Arc<Carried>,
        run: impl FnOnce(Ends) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, outgoing) = mpsc::unbounded_channel();
        let task = tokio::spawn(run(Ends {
            conn,
            outgoing,
            inbox,
            carried,
        }));
        Self {
            outgoing: sender,
            task,
        }
    }

    /// Send `message` after those before.
    pub(super) fn send(&self, message: Message) {
        // A lane that ended says so in the inbox.
        let _ = self.outgoing.send(message);
    }

    /// Close it once what was sent before has left, in `closing`; within [`LINGER`].
    pub(super) fn close(mut self, closing: &mut JoinSet<()>) {
        // The task sees that nothing more can come when the last sender is gone.
        self.outgoing = mpsc::unbounded_channel().0;
        closing.spawn(async move {
            let _ = tokio::time::timeout(LINGER, &mut self.task).await;
        });
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ends {
    /// Tell the driver something about this connection.
    pub(super) async fn tell(&self, heard: Heard) {
        let _ = self.inbox.send((self.conn, heard)).await;
    }

    /// Carry messages both ways until either end has enough. `decoder` may hold what was read
    /// already.
    pub(super) async fn carry(mut self, stream: Stream, decoder: Decoder) {
        let (reader, mut writer) = tokio::io::split(stream);
        let inbox = self.inbox.clone();
        let mut reading = pin!(read_all(reader, decoder, self.conn, inbox));
        let last = tokio::select! {
            last = &mut reading => last,
            written = write_all(&mut writer, &mut self.outgoing, &self.carried) => match written {
                Ok(()) => {
                    // Closed here. Unread bytes would make the kernel reset the connection and
                    // throw away what the other side has yet to read.
                    let _ = writer.shutdown().await;
                    let _ = tokio::time::timeout(LINGER, reading).await;
                    return;
                }
                // The other side may have said why before it closed.
                Err(e) => tokio::time::timeout(LINGER, reading)
                    .await
                    .unwrap_or_else(|_| Heard::Closed(e.to_string())),
            },
        };
        self.tell(last).await;
    }
}

/// Read messages to the end of the stream; what the end was.
async fn read_all(
    mut reader: ReadHalf<Stream>,
    mut decoder: Decoder,
    conn: ConnId,
    inbox: Inbox,
) -> Heard {
    let mut room = Room::default();
    loop {
        let next = next_message(&mut reader, &mut decoder, &mut room);
        match next.await {
            Ok(message) => {
                room.remember(&message);
                if inbox.send((conn, Heard::Message(message))).await.is_err() {
                    return Heard::Closed("the session is over".into());
                }
            }
            Err(end) => return end,
        }
    }
}

/// The next message of a stream, or how it ended.
pub(super) async fn next_message<R>(
    reader: &mut R,
    decoder: &mut Decoder,
    room: &mut Room,
) -> Result<Message, Heard>
where
    R: tokio::io::AsyncRead + Unpin,
{
    loop {
        match decoder.next() {
            Ok(Some(message)) => return Ok(message),
            Ok(None) => {}
            Err(e) => return Err(Heard::Malformed(e)),
        }
        let (wants, payload_at) = (decoder.wants(), decoder.payload_at());
        let buffer = decoder.buffer();
        let most = room.make(buffer, wants, payload_at);
        match read_some(reader, &mut buffer.limit(most), room).await {
            Ok(0) => return Err(Heard::Closed("the other side closed the connection".into())),
            Ok(_) => {}
            Err(e) => return Err(Heard::Closed(tls::explain(&e))),
        }
    }
}

/// Read more into a buffer; no memory is remembered for a connection that nothing comes over.
async fn read_some<R>(
    reader: &mut R,
    buffer: &mut Limit<&mut BytesMut>,
    room: &mut Room,
) -> io::Result<usize>
where
    R: tokio::io::AsyncRead + Unpin,
{
    if !room.is_empty() {
        match tokio::time::timeout(QUIET, reader.read_buf(buffer)).await {
            Ok(read) => return read,
            Err(_) => room.clear(),
        }
    }
    reader.read_buf(buffer).await
}

/// Write every message until no more can come.
async fn write_all(
    writer: &mut WriteHalf<Stream>,
    outgoing: &mut mpsc::UnboundedReceiver<Message>,
    carried: &Carried,
) -> io::Result<()> {
    let mut batch = Batch::default();
    let mut packer = Packer::default();
    while let Some(message) = outgoing.recv().await {
        batch.push(packer.frame(message).await);
        while batch.len > 0 {
            while batch.len < BATCH
                && let Ok(message) = outgoing.try_recv()
            {
                batch.push(packer.frame(message).await);
            }
            carried.spared.fetch_add(packer.spared(), Ordering::Relaxed);
            let began = packer.clock.now();
            let written = writer.write_buf(&mut batch).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let written = written as u64;
            packer.waited_since(began, written);
            carried.sent.fetch_add(written, Ordering::Relaxed);
        }
        // What encrypts may hold some of it back.
        writer.flush().await?;
    }
    Ok(())
}

/// Packs what a lane sends, as hard as is worth it.
struct Packer {
    squeeze: Squeeze,
    clock: Clock,
    /// Bytes by which it made shorter what it packed, since that was last asked.
    spared: u64,
}

impl Default for Packer {
    fn default() -> Self {
        Self {
            squeeze: Squeeze::default(),
            clock: Clock::start(),
            spared: 0,
        }
    }
}

impl Packer {
    /// Bytes by which it made frames shorter since it was last asked.
    fn spared(&mut self) -> u64 {
        std::mem::take(&mut self.spared)
    }

    async fn frame(&mut self, message: Message) -> Frame {
        let len = match &message {
            Message::Chunk(Chunk { content, .. }) | Message::Record(Record { content, .. }) => {
                content.held() as usize
            }
            _ => 0,
        };
        let level = if len < LEAST_PACKED {
            None
        } else {
            self.squeeze.level()
        };
        let Some(level) = level else {
            return encode(&message);
        };
        let pack = move |message: &Message| {
            let mut shrank = false;
            let frame = encode_packed(message, |payload| {
                let packed = pack(payload, level);
                shrank = packed.is_some();
                packed
            });
            (frame, shrank)
        };
        let packed = if len < LONG_TO_PACK {
            Ok(pack(&message))
        } else {
            // Others have things to do meanwhile.
            let message = message.clone();
            tokio::task::spawn_blocking(move || pack(&message)).await
        };
        match packed {
            Ok((frame, shrank)) => {
                self.squeeze.packed(shrank);
                let held = if shrank { len } else { 0 };
                self.spared += held.saturating_sub(frame.payload.len()) as u64;
                frame
            }
            Err(_) => encode(&message),
        }
    }

    fn waited_since(&mut self, began: Micros, written: u64) {
        let now = self.clock.now();
        self.squeeze.waited(now, now.since(began), written);
    }
}

/// Send one message on a connection that is no lane, and end it.
pub(super) async fn answer_and_close(mut stream: Stream, message: &Message) {
    let mut batch = Batch::default();
    batch.add(message);
    let mut rest = [0; 4096];
    let last_words = async {
        stream.write_all_buf(&mut batch).await?;
        stream.flush().await?;
        stream.shutdown().await?;
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(LINGER, last_words).await;
}

/// Encoded frames, written with as few system calls as it takes and without copying payloads.
#[derive(Debug, Default)]
struct Batch {
    parts: VecDeque<Bytes>,
    len: usize,
}

impl Batch {
    fn add(&mut self, message: &Message) {
        self.push(encode(message));
    }

    fn push(&mut self, frame: Frame) {
        for part in [frame.head, frame.payload] {
            if !part.is_empty() {
                self.len += part.len();
                self.parts.push_back(part);
            }
        }
    }
}

impl Buf for Batch {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let count = into.len().min(self.parts.len());
        for (slot, part) in into.iter_mut().zip(&self.parts) {
            *slot = IoSlice::new(part);
        }
        count
    }

    fn advance(&mut self, mut written: usize) {
        self.len = self.len.saturating_sub(written);
        while written > 0
            && let Some(part) = self.parts.front_mut()
        {
            let step = written.min(part.len());
            part.advance(step);
            written -= step;
            if part.is_empty() {
                self.parts.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Content, Record};

    #[test]
    fn a_batch_written_in_any_pieces_is_the_frames_in_order() {
        let messages: Vec<Message> = (1..40)
            .map(|seq| {
                let content = Content::Data(Bytes::from(vec![seq as u8; seq as usize * 7]));
                Message::Record(Record {
                    seq,
                    offset: 0,
                    content,
                })
            })
            .collect();
        let mut batch = Batch::default();
        for message in &messages {
            batch.add(message);
        }
        let (mut decoder, mut seen, mut step) = (Decoder::default(), Vec::new(), 1);
        while batch.has_remaining() {
            let mut slices = [IoSlice::new(&[]); 5];
            let count = batch.chunks_vectored(&mut slices);
            let bytes: Vec<u8> = slices[..count]
                .iter()
                .flat_map(|s| s.iter().copied())
                .collect();
            let taken = bytes.len().min(step);
            decoder.feed(&bytes[..taken]);
            batch.advance(taken);
            step = step * 3 % 97 + 1;
            while let Some(message) = decoder.next().unwrap() {
                seen.push(message);
            }
        }
        assert_eq!(seen, messages);
    }
}
