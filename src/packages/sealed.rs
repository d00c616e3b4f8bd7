//! A file of a package under way: counted and hashed as it lies on the medium, encrypted if it is to be.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::rc::Rc;

use age::stream::{StreamReader, StreamWriter};
use package::Hash;

use super::cipher::{HEAD_LIMIT, Keys, Lock, Unopened};
use crate::failure::Result;

/// What came by.
#[derive(Default)]
struct Count {
    hasher: blake3::Hasher,
    len: u64,
}

impl Count {
    fn add(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
    }
}

/// A file whose bytes are counted as they are read or written.
struct Counted<F> {
    file: F,
    count: Rc<RefCell<Count>>,
}

impl<F: Write> Write for Counted<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.count.borrow_mut().add(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl<F: Read> Read for Counted<F> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(bytes)?;
        self.count.borrow_mut().add(&bytes[..read]);
        Ok(read)
    }
}

type Output = Counted<BufWriter<File>>;
type Input = BufReader<Counted<File>>;

enum Way {
    Plain(Output),
    Sealed(Box<StreamWriter<Output>>),
}

/// A file that is written.
pub(crate) struct SealedWriter {
    way: Way,
    count: Rc<RefCell<Count>>,
    before: Option<u64>,
}

impl SealedWriter {
    /// Begins an empty file.
    pub(crate) fn new(file: File, lock: &Lock) -> Result<Self> {
        let count = Rc::new(RefCell::new(Count::default()));
        let output = Counted {
            file: BufWriter::with_capacity(1 << 20, file),
            count: Rc::clone(&count),
        };
        let way = match lock.wrap(output)? {
            Ok(stream) => Way::Sealed(Box::new(stream)),
            Err(output) => Way::Plain(output),
        };
        let before = lock.is_on().then(|| count.borrow().len);
        Ok(Self { way, count, before })
    }

    /// How many bytes stand before what is encrypted; `None` if nothing is.
    pub(crate) fn before(&self) -> Option<u64> {
        self.before
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.way {
            Way::Plain(output) => output.write_all(bytes),
            Way::Sealed(stream) => stream.write_all(bytes),
        }
    }

    /// Ends the file, durably; answers its length and hash.
    pub(crate) fn finish(self) -> io::Result<(u64, Hash)> {
        let mut output = match self.way {
            Way::Plain(output) => output,
            Way::Sealed(stream) => stream.finish()?,
        };
        output.flush()?;
        output.file.get_ref().sync_all()?;
        let count = self.count.borrow();
        Ok((count.len, Hash(*count.hasher.finalize().as_bytes())))
    }
}

enum From {
    Plain(Input),
    Sealed(Box<StreamReader<Input>>),
}

/// A file that is read.
pub(crate) struct SealedReader {
    from: From,
    count: Rc<RefCell<Count>>,
}

impl SealedReader {
    /// Begins to read a file, or says what is wrong with it.
    pub(crate) fn new(file: File, keys: &Keys, encrypted: bool) -> Result<Self, Unopened> {
        let count = Rc::new(RefCell::new(Count::default()));
        let counted = Counted {
            file,
            count: Rc::clone(&count),
        };
        let input = BufReader::with_capacity(HEAD_LIMIT, counted);
        let from = if encrypted {
            From::Sealed(Box::new(keys.open(input)?))
        } else {
            From::Plain(input)
        };
        Ok(Self { from, count })
    }

    /// Fills `bytes` as far as there are so many; answers how many there were.
    pub(crate) fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            let read = match &mut self.from {
                From::Plain(input) => input.read(&mut bytes[done..]),
                From::Sealed(stream) => stream.read(&mut bytes[done..]),
            };
            match read {
                Ok(0) => break,
                Ok(more) => done += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Everything was read: the length and hash of the file.
    pub(crate) fn finish(self) -> (u64, Hash) {
        let count = self.count.borrow();
        (count.len, Hash(*count.hasher.finalize().as_bytes()))
    }
}

/// The length and hash of a file, as the medium has it.
pub(crate) fn hash_of(path: &Path) -> io::Result<(u64, Hash)> {
    let file = File::open(path)?;
    // A host that keeps it has it read from memory, which is no failure.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let mut count = Count::default();
    let mut input = BufReader::with_capacity(1 << 20, file);
    loop {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            return Ok((count.len, Hash(*count.hasher.finalize().as_bytes())));
        }
        count.add(bytes);
        let len = bytes.len();
        input.consume(len);
        if crate::interrupt::requested() {
            return Err(io::Error::other("interrupted"));
        }
    }
}
