//! One frame between a tap and a guest's memory, in one system call and without a copy.
//!
//! Driver. The guest owns the bytes and may change them at any moment, so there is never a reference to
//! them: they are named to the kernel by address. The header before them is ours, since what was checked
//! has to be what the kernel sees.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use blockserver::virtio::GuestMemory;
use blockserver::virtio::block::Segment;
use libc::{c_int, iovec};
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// The most pieces of one system call (`UIO_MAXIOV`).
const MOST: usize = 1024;

fn own(bytes: &mut [u8]) -> iovec {
    iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

/// Add what these segments are in this process.
fn add(
    vectors: &mut Vec<iovec>,
    memory: &GuestMemory,
    segments: impl Iterator<Item = Segment>,
) -> io::Result<()> {
    for Segment { address, len } in segments {
        let slices = GuestMemoryBackend::get_slices(&**memory, GuestAddress(address), len as usize);
        for slice in slices {
            let slice = slice.map_err(io::Error::other)?;
            vectors.push(iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
    }
    if vectors.len() >= MOST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(())
}

/// How many there are, as the system calls want it.
fn counted(vectors: &[iovec]) -> c_int {
    c_int::try_from(vectors.len()).unwrap_or(0)
}

fn moved(bytes: isize) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::Error::last_os_error())
}

/// Read one frame: its header, then to the segments, then what has no room there to `spill`. Says how many
/// bytes it was with its header.
pub(super) fn read(
    from: impl AsFd,
    (header, spill): (&mut [u8], &mut [u8]),
    memory: &GuestMemory,
    segments: impl Iterator<Item = Segment>,
) -> io::Result<usize> {
    let mut vectors = vec![own(header)];
    add(&mut vectors, memory, segments)?;
    vectors.push(own(spill));
    let (fd, count) = (from.as_fd().as_raw_fd(), counted(&vectors));
    // SAFETY: the vectors are this process's own buffers, borrowed exclusively until the call returns, and parts
    // of the guest's memory, which `memory` keeps mapped and to which there are no references.
    moved(unsafe { libc::readv(fd, vectors.as_ptr(), count) })
}

/// Write one frame: this header, then what the segments hold.
pub(super) fn write(
    to: impl AsFd,
    header: &mut [u8],
    memory: &GuestMemory,
    segments: impl Iterator<Item = Segment>,
) -> io::Result<usize> {
    let mut vectors = vec![own(header)];
    add(&mut vectors, memory, segments)?;
    let (fd, count) = (to.as_fd().as_raw_fd(), counted(&vectors));
    // SAFETY: as above; the kernel only reads.
    moved(unsafe { libc::writev(fd, vectors.as_ptr(), count) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::Arc;

    use vm_memory::{Bytes, GuestMemoryMmap};

    use super::*;

    #[test]
    fn a_frame_goes_from_and_to_the_places_that_were_named() {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x4000), 0x1000)];
        let memory: GuestMemory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let (one, other) = UnixDatagram::pair().unwrap();
        memory.write_slice(b"abcdef", GuestAddress(0xFFA)).unwrap();
        memory.write_slice(b"ghi", GuestAddress(0x4000)).unwrap();
        let places = [(0xFFA, 6), (0x4000, 3)].map(|(address, len)| Segment { address, len });
        let mut header = *b"HH";
        assert_eq!(
            write(&one, &mut header, &memory, places.into_iter()).unwrap(),
            11
        );
        let (mut seen, mut spill) = ([0; 2], [0; 16]);
        let to = [Segment {
            address: 0x10,
            len: 4,
        }];
        let read = read(&other, (&mut seen, &mut spill), &memory, to.into_iter());
        assert_eq!(read.unwrap(), 11);
        assert_eq!((&seen, &spill[..6]), (b"HH", &b"efghi\0"[..]));
        let mut there = [0; 5];
        memory.read_slice(&mut there, GuestAddress(0x10)).unwrap();
        assert_eq!(&there, b"abcd\0");
    }

    #[test]
    fn what_is_not_in_memory_is_not_named() {
        let ranges = [(GuestAddress(0), 0x1000)];
        let memory: GuestMemory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let (one, _other) = UnixDatagram::pair().unwrap();
        for (address, len) in [(0xFFF, 2), (0x1000, 1), (u64::MAX, 2)] {
            let place = [Segment { address, len }];
            assert!(write(&one, &mut [0; 12], &memory, place.into_iter()).is_err());
        }
    }
}
