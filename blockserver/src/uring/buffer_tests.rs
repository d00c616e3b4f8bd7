//! Buffers of our own and of a guest keep the same promises.

use std::sync::Arc;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::uring::call::Call;
use crate::uring::{Descriptor, Op};

#[test]
fn buffers_are_aligned_and_of_the_size_asked_for() {
    let mut pool = Pool::new(1 << 20);
    for len in [0, 1, 4096, 4097, 1 << 20, (32 << 20) + 8192] {
        let buffer = pool.take(len);
        assert!(buffer.capacity() >= len);
        assert_eq!(buffer.pointer(0..0) as usize % ALIGNMENT, 0);
    }
}

#[test]
fn a_buffer_in_use_elsewhere_is_not_handed_out_again() {
    let mut pool = Pool::new(1 << 20);
    let mut first = pool.take(4096);
    let held = first.clone();
    assert!(first.unique().is_none());
    let address = first.pointer(0..0);
    pool.give(first);
    assert_ne!(pool.take(4096).pointer(0..0), address);
    pool.give(held);
    assert_eq!(pool.take(4096).pointer(0..0), address);
}

#[test]
fn the_pool_keeps_no_more_than_its_bound() {
    let mut pool = Pool::new(8192);
    let buffers: Vec<_> = (0..4).map(|_| pool.take(4096)).collect();
    for buffer in buffers {
        pool.give(buffer);
    }
    assert_eq!((pool.kept, pool.classes[0].len()), (8192, 2));
}

#[test]
fn copies_go_where_they_are_told() {
    let (mut a, b) = (IoBuffer::zeroed(4096), IoBuffer::zeroed(4096));
    b.copy_in(10, b"diskferry");
    a.copy_from(0, &b, 10..19);
    a.zero(4..6);
    let mut out = vec![b'>'];
    a.copy_out(0..9, &mut out);
    assert_eq!(out, b">disk\0\0rry");
    assert_eq!(&a.unique().expect("nobody else holds it")[..4], b"disk");
}

#[test]
#[should_panic(expected = "outside a buffer")]
fn a_copy_beyond_the_end_is_refused() {
    IoBuffer::zeroed(4096).copy_in(4090, &[0; 10]);
}

/// Memory of a guest in three regions, the last two beside each other for it.
fn guest() -> Rc<GuestMemory> {
    let region = |at| (GuestAddress(at), 0x4000);
    let ranges = [region(0), region(0x10_000), region(0x14_000)];
    Rc::new(Arc::new(
        GuestMemoryMmap::from_ranges(&ranges).expect("48 KiB"),
    ))
}

#[test]
fn pieces_of_a_guest_are_one_buffer() {
    let memory = guest();
    let segments = [(0x100, 3), (0x3ff0, 16), (0x13_ffe, 5), (0x200, 1000)];
    let buffer = IoBuffer::of_guest(&memory, segments.into_iter()).expect("all of it is there");
    assert_eq!(buffer.capacity(), 1024);
    let data: Vec<u8> = (0..1024u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
    buffer.copy_in(0, &data);
    for (address, at) in [
        (0x100, 0),
        (0x3fff, 18),
        (0x13_ffe, 19),
        (0x14_000, 21),
        (0x200, 24),
    ] {
        let found: u8 = memory.read_obj(GuestAddress(address)).expect("inside");
        assert_eq!(found, data[at], "byte {at}");
    }
    let mut out = vec![1];
    buffer.copy_out(2..1020, &mut out);
    assert_eq!(out[1..], data[2..1020]);
    let own = IoBuffer::zeroed(4096);
    own.copy_from(100, &buffer, 0..1024);
    buffer.zero(17..23);
    let mut out = Vec::new();
    buffer.copy_out(16..25, &mut out);
    assert_eq!(out, [&data[16..17], &[0; 6], &data[23..25]].concat());
    buffer.copy_from(10, &own, 110..140);
    let mut out = Vec::new();
    let part = buffer.part(3..1000).expect("some of it");
    assert_eq!(part.capacity(), 997);
    part.copy_out(0..997, &mut out);
    assert_eq!(out, data[3..1000], "what was put back, seen through a part");
}

#[test]
fn a_guest_s_memory_is_never_held_alone_nor_kept() {
    let memory = guest();
    let segments = [(0x1000, 4096)].into_iter();
    let mut buffer = IoBuffer::of_guest(&memory, segments).expect("there");
    assert!(buffer.unique().is_none() && buffer.is_foreign());
    assert!(Rc::strong_count(&memory) == 2, "it keeps the memory mapped");
    let mut pool = Pool::new(1 << 20);
    let buffer = buffer.into_aligned().expect_err("not ours to give away");
    pool.give(buffer);
    assert_eq!((pool.kept, Rc::strong_count(&memory)), (0, 1));
}

#[test]
fn what_is_not_the_guest_s_is_no_buffer() {
    let memory = guest();
    let of = |segments: &[(u64, usize)]| IoBuffer::of_guest(&memory, segments.iter().copied());
    for bad in [
        (0x3fff, 2),
        (0x4000, 1),
        (0xffff, 2),
        (0x17_fff, 2),
        (u64::MAX, 1),
        (u64::MAX - 4, 512),
        (0, usize::MAX),
    ] {
        assert!(of(&[(0, 16), bad]).is_none(), "{bad:x?}");
    }
    assert!(of(&[]).is_none() && of(&[(0, 0)]).is_none());
    let scattered: Vec<_> = (0..1025).map(|n| (n * 8, 4)).collect();
    assert!(of(&scattered[..1024]).is_some() && of(&scattered).is_none());
    let beside: Vec<_> = (0..2000).map(|n| (n * 4, 4)).collect();
    let joined = of(&beside).expect("neighbours become one");
    assert!(joined.vectors(0..8000).is_none());
}

#[test]
fn alignment_is_that_of_every_piece() {
    let memory = guest();
    let segments = [(0x200, 512), (0x600, 1024), (0x1004, 512)];
    let buffer = IoBuffer::of_guest(&memory, segments.into_iter()).expect("there");
    assert!(buffer.is_aligned(0..1536, 511));
    assert!(!buffer.is_aligned(0..1536, 1023) && !buffer.is_aligned(0..1537, 511));
    assert!(!buffer.is_aligned(512..2048, 511) && buffer.is_aligned(0..2048, 3));
    let own = IoBuffer::zeroed(8192);
    assert!(own.is_aligned(4096..8192, 4095) && !own.is_aligned(512..1024, 1023));
}

#[test]
#[should_panic(expected = "outside a buffer")]
fn a_copy_beyond_the_end_of_a_guest_s_pieces_is_refused() {
    let segments = [(0, 100), (200, 100)].into_iter();
    let buffer = IoBuffer::of_guest(&guest(), segments).expect("there");
    buffer.copy_in(150, &[0; 51]);
}

#[test]
fn what_another_thread_lets_go_of_comes_back_to_its_pool() {
    let mut pool = Pool::new(64 << 20);
    let lent = pool.take(512 << 10);
    lent.copy_in(0, b"of the one before");
    let lent = lent.into_aligned().expect("nobody else has it");
    let reader = std::thread::spawn(move || lent.as_ref().starts_with(b"of the one before"));
    assert!(reader.join().expect("it is read"));
    let mut again = Vec::new();
    pool.take(512 << 10).copy_out(0..17, &mut again);
    assert_eq!(again, b"of the one before", "it is fresh memory");
}

#[test]
fn a_pool_that_is_full_takes_no_more_back_than_a_few_of_a_size() {
    let mut pool = Pool::new(8192);
    for _ in 0..3 {
        let buffers: Vec<_> = (0..64).map(|_| pool.take(4096)).collect();
        for buffer in buffers {
            pool.give(buffer);
        }
        let waiting = pool.returned.waiting.lock().expect("nobody panicked")[0].len();
        assert_eq!((pool.kept, waiting), (8192, MOST_RETURNED));
    }
    // Of what is large nothing waits.
    drop(
        pool.take(2 << 20)
            .into_aligned()
            .expect("nobody else has it"),
    );
    let waiting = pool.returned.waiting.lock().expect("nobody panicked");
    assert_eq!(waiting.iter().map(Vec::len).sum::<usize>(), MOST_RETURNED);
}

#[test]
fn bytes_that_were_lent_are_read_where_they_are() {
    let whole = Bytes::from((0..=255).cycle().take(8192).collect::<Vec<u8>>());
    let at = whole.as_ptr().align_offset(ALIGNMENT);
    let mut lent = IoBuffer::lent(whole.slice(at + 512..at + 1536));
    assert_eq!(lent.capacity(), 1024);
    assert_eq!(lent.pointer(8..16), whole[at + 520..].as_ptr().cast_mut());
    assert!(lent.is_aligned(0..1024, 511) && !lent.is_aligned(0..1024, 1023));
    assert!(lent.unique().is_none() && !lent.is_foreign() && lent.vectors(0..1024).is_none());
    let (own, mut out) = (IoBuffer::zeroed(4096), Vec::new());
    own.copy_from(3, &lent, 1..1024);
    own.copy_out(3..1026, &mut out);
    assert_eq!(out, whole[at + 513..at + 1536]);
    let lent = lent.into_aligned().expect_err("not ours to give away");
    let mut pool = Pool::new(1 << 20);
    pool.give(lent);
    assert_eq!(pool.kept, 0);
}

#[test]
fn bytes_that_were_lent_are_never_written_to() {
    let lent = IoBuffer::lent(Bytes::from_static(&[7; 4096]));
    let panics = |change: &dyn Fn()| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(change))
            .expect_err("it was written to");
    };
    panics(&|| lent.copy_in(0, &[1]));
    panics(&|| lent.zero(0..1));
    panics(&|| lent.copy_from(0, &IoBuffer::zeroed(4096), 0..1));
    panics(&|| {
        let (file, buffer) = (Descriptor(-1), lent.clone());
        #[rustfmt::skip]
        let _ = Call::new(Op::Read { file, buffer, range: 0..1, at: 0 });
    });
}
