//! Drive the engine by hand, over a storage of one's own, with several requests in flight.
//!
//! This is what a server does with `io_uring`. The engine decides and does no I/O: it hands out
//! operations on the file, and is told when each has ended, in whatever order that is. The storage here
//! is a vector of bytes; operations are carried out last come, first served.

use std::collections::HashMap;
use std::io;

use vdisk::create::{CreateOptions, create};
use vdisk::disk::{ImageFormat, OpenOptions, open_engine, random_bits};
use vdisk::engine::{Engine, FileOp, FileOpKind, Outcome, Request, RequestId};
use vdisk::storage::Storage;
use vdisk::units::GuestOffset;

/// A file that is a vector.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Storage for Bytes {
    fn len(&mut self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = self.0.len().min(offset as usize);
        let there = buffer.len().min(self.0.len() - start);
        buffer[..there].copy_from_slice(&self.0[start..start + there]);
        buffer[there..].fill(0);
        Ok(())
    }
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset as usize + data.len();
        self.0.resize(self.0.len().max(end), 0);
        self.0[offset as usize..end].copy_from_slice(data);
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.resize(len as usize, 0);
        Ok(())
    }
    fn zero(&mut self, offset: u64, len: u64, _keep: bool) -> io::Result<()> {
        self.write_at(offset, &vec![0; len as usize])
    }
    fn reserve(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>> {
        // It knows of no holes.
        Ok((offset < self.0.len() as u64).then_some(offset))
    }
}

/// Carries out one operation; the buffers are those of the requests in flight.
fn execute(
    file: &mut Bytes,
    op: &FileOp,
    buffers: &mut HashMap<u64, Vec<u8>>,
) -> io::Result<Outcome> {
    let part = |start: u64, len: u64| start as usize..(start + len) as usize;
    match &op.kind {
        FileOpKind::Read { at, len } => {
            let mut page = vec![0; *len as usize];
            file.read_at(at.0, &mut page)?;
            return Ok(Outcome::Data(page.into()));
        }
        FileOpKind::Write { at, data } => file.write_at(at.0, data)?,
        FileOpKind::ReadRequest {
            request,
            start,
            at,
            len,
        } => {
            let buffer = buffers.get_mut(&request.0).expect("it is in flight");
            file.read_at(at.0, &mut buffer[part(*start, *len)])?;
        }
        FileOpKind::WriteRequest {
            request,
            start,
            at,
            len,
        } => file.write_at(at.0, &buffers[&request.0][part(*start, *len)])?,
        FileOpKind::ZeroRequest {
            request,
            start,
            len,
        } => {
            let buffer = buffers.get_mut(&request.0).expect("it is in flight");
            buffer[part(*start, *len)].fill(0);
        }
        FileOpKind::Flush => file.flush()?,
        FileOpKind::SetLen { len } => file.set_len(*len)?,
        FileOpKind::Zero { at, len, keep } => file.zero(at.0, *len, *keep)?,
        FileOpKind::Reserve { at, len } => file.reserve(at.0, *len)?,
        // Writes that are not aligned, parents, and questions about holes: not in this example.
        kind => return Err(io::Error::other(format!("{kind:?}"))),
    }
    Ok(Outcome::Done)
}

/// Runs until nothing is left to do; the requests that ended, in that order.
fn run(engine: &mut Engine, file: &mut Bytes, buffers: &mut HashMap<u64, Vec<u8>>) -> Vec<u64> {
    let (mut pending, mut ended) = (Vec::new(), Vec::new());
    loop {
        pending.extend(std::iter::from_fn(|| engine.next_op()));
        while let Some(completion) = engine.next_completion() {
            completion.result.expect("nothing fails here");
            ended.push(completion.request.0);
        }
        let Some(op) = pending.pop() else {
            return ended;
        };
        let outcome = execute(file, &op, buffers).unwrap_or_else(Outcome::Failed);
        engine.complete(op.id, outcome);
    }
}

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut file = Bytes::default();
    create(&mut file, CreateOptions::new(64 << 20, &mut random_bits))?;
    let options = OpenOptions::default();
    let mut engine = open_engine(&mut file, ImageFormat::Vhdx, &options, &mut random_bits)?;

    let mut buffers = HashMap::new();
    for (id, fill) in [(1, 0x11), (2, 0x22), (3, 0x33)] {
        let request = Request::Write {
            offset: GuestOffset(id * (7 << 20)),
            len: 4096,
            fua: false,
        };
        buffers.insert(id, vec![fill; 4096]);
        engine.submit(RequestId(id), request);
    }
    let ended = run(&mut engine, &mut file, &mut buffers);
    println!("writes ended in the order {ended:?}");
    engine.submit(RequestId(4), Request::Flush);
    assert_eq!(run(&mut engine, &mut file, &mut buffers), [4]);

    let read = Request::Read {
        offset: GuestOffset(2 * (7 << 20)),
        len: 8192,
    };
    buffers.insert(5, vec![0xEE; 8192]);
    engine.submit(RequestId(5), read);
    run(&mut engine, &mut file, &mut buffers);
    assert!(buffers[&5].starts_with(&[0x22; 4096]) && buffers[&5].ends_with(&[0; 4096]));
    Ok(())
}
