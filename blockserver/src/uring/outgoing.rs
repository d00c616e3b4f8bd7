//! A batch of replies on its way to a client: heads in one piece of memory, payloads where they lie.

use std::ops::Range;
use std::ptr;

use super::buffer::{IoBuffer, Pool};

/// The most pieces one send takes (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// Replies in the order in which they go out.
///
/// Not shared between threads: the vectors point into the heads and payloads it owns.
#[derive(Default)]
pub(crate) struct Outgoing {
    head: Vec<u8>,
    payloads: Vec<Payload>,
    /// Bytes of all heads and payloads.
    total: usize,
    /// How many of them the kernel has taken.
    sent: usize,
    vectors: Vec<libc::iovec>,
    message: Option<Box<libc::msghdr>>,
}

/// Bytes of a buffer that go out behind the first `after` bytes of the heads.
struct Payload {
    after: usize,
    buffer: IoBuffer,
    range: Range<usize>,
}

impl Outgoing {
    /// Append heads through `write`, which may only append.
    pub(crate) fn head(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.head.len();
        write(&mut self.head);
        self.total += self.head.len() - before;
    }

    /// Append bytes that stay where they are until they were sent.
    pub(crate) fn payload(&mut self, buffer: IoBuffer, range: Range<usize>) {
        self.total += range.len();
        self.payloads.push(Payload {
            after: self.head.len(),
            buffer,
            range,
        });
    }

    /// Whether nothing is left to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.total
    }

    /// How many bytes are left to send.
    pub(crate) fn left(&self) -> usize {
        self.total - self.sent
    }

    /// The kernel took `bytes` of what [`Self::prepare`] offered.
    pub(crate) fn advance(&mut self, bytes: usize) {
        self.sent = (self.sent + bytes).min(self.total);
    }

    /// Begin anew with the memory kept and the payloads given back to `pool`; answers how many
    /// bytes of payload there were.
    pub(crate) fn clear(&mut self, pool: &mut Pool) -> usize {
        self.head.clear();
        let mut freed = 0;
        for payload in self.payloads.drain(..) {
            freed += payload.range.len();
            pool.give(payload.buffer);
        }
        self.vectors.clear();
        (self.total, self.sent) = (0, 0);
        freed
    }

    /// What is left to send, as the kernel wants it: valid until `self` is changed or dropped.
    pub(super) fn prepare(&mut self) -> *mut libc::msghdr {
        self.vectors.clear();
        let mut skip = self.sent;
        let mut head = 0;
        for payload in &self.payloads {
            push(
                &mut self.vectors,
                &mut skip,
                &self.head[head..payload.after],
            );
            head = payload.after;
            let hidden = skip.min(payload.range.len());
            skip -= hidden;
            let left = payload.range.start + hidden..payload.range.end;
            if !left.is_empty() {
                self.vectors.push(libc::iovec {
                    iov_len: left.len(),
                    iov_base: payload.buffer.pointer(left).cast(),
                });
            }
            if self.vectors.len() + 2 > MAX_PIECES {
                break;
            }
        }
        if self.vectors.len() < MAX_PIECES {
            let rest = if self.payloads.last().is_none_or(|last| last.after == head) {
                &self.head[head..]
            } else {
                &[]
            };
            push(&mut self.vectors, &mut skip, rest);
        }
        let message = self
            .message
            .get_or_insert_with(|| Box::new(empty_message()));
        message.msg_iov = self.vectors.as_mut_ptr();
        message.msg_iovlen = self.vectors.len() as _;
        ptr::from_mut(message.as_mut())
    }

    /// The first piece of what [`Self::prepare`] offered, when it is the only one.
    pub(super) fn only_piece(&self) -> Option<libc::iovec> {
        match self.vectors.as_slice() {
            [only] => Some(*only),
            _ => None,
        }
    }
}

/// Append what `skip` leaves of `bytes`.
fn push(vectors: &mut Vec<libc::iovec>, skip: &mut usize, bytes: &[u8]) {
    let hidden = (*skip).min(bytes.len());
    *skip -= hidden;
    let left = &bytes[hidden..];
    if !left.is_empty() {
        vectors.push(libc::iovec {
            iov_base: left.as_ptr().cast_mut().cast(),
            iov_len: left.len(),
        });
    }
}

fn empty_message() -> libc::msghdr {
    // SAFETY: `msghdr` is a plain C structure for which all zeros means no name, no vectors, no
    // control data.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a kernel would take that accepts `limit` bytes at a time.
    fn drain(outgoing: &mut Outgoing, limit: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        while !outgoing.is_empty() {
            outgoing.prepare();
            let mut room = limit;
            for vector in &outgoing.vectors {
                let len = vector.iov_len.min(room);
                // SAFETY: `prepare` made the vectors point into heads and payloads that `outgoing`
                // owns and that nothing changes meanwhile.
                let piece = unsafe { std::slice::from_raw_parts(vector.iov_base.cast(), len) };
                taken.extend_from_slice(piece);
                room -= len;
            }
            outgoing.advance(limit - room);
        }
        taken
    }

    #[test]
    fn a_send_cut_at_any_byte_goes_on_where_it_stopped() {
        for limit in 1..40 {
            let mut outgoing = Outgoing::default();
            let mut expected = Vec::new();
            for reply in 0..5u8 {
                outgoing.head(|out| out.extend_from_slice(&[reply; 3]));
                expected.extend_from_slice(&[reply; 3]);
                if reply % 2 == 0 {
                    let buffer = IoBuffer::zeroed(4096);
                    buffer.copy_in(7, &[b'a' + reply; 9]);
                    outgoing.payload(buffer, 7..16);
                    expected.extend_from_slice(&[b'a' + reply; 9]);
                }
            }
            assert_eq!(outgoing.left(), expected.len());
            assert_eq!(drain(&mut outgoing, limit), expected);
        }
    }

    #[test]
    fn more_replies_than_one_send_takes_all_go_out() {
        let (mut outgoing, buffer) = (Outgoing::default(), IoBuffer::zeroed(4096));
        buffer.zero(0..4096);
        for _ in 0..3000 {
            outgoing.head(|out| out.push(1));
            outgoing.payload(buffer.clone(), 0..2);
        }
        outgoing.head(|out| out.push(2));
        outgoing.prepare();
        assert!(outgoing.vectors.len() <= MAX_PIECES);
        // One send at a time, each of all its pieces.
        let mut taken = Vec::new();
        while !outgoing.is_empty() {
            outgoing.prepare();
            let offered = outgoing.vectors.iter().map(|v| v.iov_len).sum();
            taken.push(offered);
            outgoing.advance(offered);
        }
        assert_eq!(taken.iter().sum::<usize>(), 3000 * 3 + 1);
    }
}
