//! Images of this host in which blocks of disks that are received may be.
//!
//! Driver: a thread for each reads what is asked for, one after the other. What it reads is compared before it is used, so
//! a template may be in use, old or torn.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::{io, thread};

use bytes::Bytes;
use mirror::net::{ReadDone, Template};

use crate::failure::{Failure, Result};
use crate::plan::Input;
use crate::source::{self, Source};

/// Opens them.
///
/// Fails where one is missing, damaged, or of a format that is not read.
pub(crate) fn open(inputs: &[Input]) -> Result<Vec<Arc<dyn Template>>> {
    inputs.iter().map(open_one).collect()
}

fn open_one(input: &Input) -> Result<Arc<dyn Template>> {
    let mut opened = source::open(input, 1)?;
    let no_handle = || Failure::usage(format!("{}: cannot be opened", input.name));
    let mut disk = opened.handles.pop().ok_or_else(no_handle)?;
    let (asks, asked) = channel();
    let thread = thread::Builder::new().name("template".into());
    thread
        .spawn(move || serve(disk.as_mut(), &asked))
        .map_err(|e| Failure::io("a thread cannot be started", &e))?;
    Ok(Arc::new(Asks(asks)))
}

struct Ask {
    offset: u64,
    len: u32,
    done: ReadDone,
}

struct Asks(Sender<Ask>);

impl Template for Asks {
    fn read(&self, offset: u64, len: u32, done: ReadDone) {
        if let Err(unsent) = self.0.send(Ask { offset, len, done }) {
            let e = io::Error::other("the thread of a template has ended");
            (unsent.0.done)(Err(e));
        }
    }
}

fn serve(disk: &mut dyn Source, asked: &Receiver<Ask>) {
    while let Ok(Ask { offset, len, done }) = asked.recv() {
        done(read(disk, (offset, len)));
    }
}

/// As much as there is.
fn read(disk: &mut dyn Source, (offset, len): (u64, u32)) -> io::Result<Bytes> {
    let there = disk.size().saturating_sub(offset).min(len.into());
    if there == 0 {
        return Ok(Bytes::new());
    }
    let mut data = vec![0; there as usize];
    let read = disk.read_at(offset, &mut data);
    read.map_err(|failure| io::Error::other(failure.what))?;
    Ok(data.into())
}
