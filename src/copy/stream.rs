//! A raw disk that comes in on stdin, its length known when it ends.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::in_order::in_order;
use super::pieces::PIECE;
use super::read::{Data, Part};
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;

/// How long a sender is waited for before a look at signals.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Takes all of stdin, in pieces; with `size` it must have so many bytes, neither more nor fewer.
pub(crate) fn each_part(
    jobs: usize,
    size: Option<u64>,
    hashes: bool,
    take: impl FnMut(Part) -> Result<()>,
) -> Result<()> {
    let unreadable = |e: io::Error| Failure::io("stdin cannot be read", &e);
    let stdin = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(unreadable)?;
    let mut stdin = File::from(stdin);
    let plan = |give: &mut dyn FnMut((u64, Vec<u8>)) -> bool| {
        let mut offset = 0;
        loop {
            let bytes = next_piece(&mut stdin).map_err(unreadable)?;
            let len = bytes.len() as u64;
            let over = len < PIECE;
            check(size, offset + len, over)?;
            if (len > 0 && !give((offset, bytes))) || over {
                return Ok(());
            }
            offset += len;
        }
    };
    let worker = move |(offset, bytes)| Ok(Part::Data(Data::new(offset, bytes, hashes)));
    in_order(plan, vec![worker; jobs], take)
}

/// Whether a stream may have come to `at`, and may be over there.
fn check(size: Option<u64>, at: u64, over: bool) -> Result<()> {
    interrupt::check("the stream was not taken to its end")?;
    let Some(size) = size else {
        return Ok(());
    };
    if at > size {
        let what = format!("the stream goes on after the {size} bytes of --size");
        return Err(Failure::new(Exit::Failed, what));
    }
    if over && at < size {
        let what = format!("the stream ended after {at} of {size} bytes");
        return Err(Failure::new(Exit::Failed, what).hint("its sender may have failed"));
    }
    Ok(())
}

/// The next whole piece; a shorter one, or none, is the last.
fn next_piece(stdin: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; PIECE as usize];
    let mut done = 0;
    while done < bytes.len() && !interrupt::requested() {
        let mut fds = [PollFd::new(&*stdin, PollFlags::IN)];
        match poll(&mut fds, Some(&LOOK)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        match stdin.read(&mut bytes[done..]) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}
