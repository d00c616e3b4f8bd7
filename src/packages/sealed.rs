//! A file of a package under way: counted and hashed as it lies on the medium, encrypted if it is to be.

use std::cell::RefCell;
use std::io::{self, BufReader, Read, Write};
use std::rc::Rc;

use age::stream::{StreamReader, StreamWriter};
use package::Hash;

use super::cipher::{HEAD_LIMIT, Keys, Lock, Unopened};
use crate::failure::Result;

/// What came by.
#[derive(Default)]
pub(crate) struct Count {
    hasher: blake3::Hasher,
    len: u64,
}

impl Count {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
    }

    /// The length and hash of all of it.
    pub(crate) fn finish(&self) -> (u64, Hash) {
        (self.len, Hash(*self.hasher.finalize().as_bytes()))
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

type Input = BufReader<Counted<Box<dyn Read>>>;

enum Way<W: Write> {
    Plain(Counted<W>),
    Sealed(Box<StreamWriter<Counted<W>>>),
}

/// A file that is written.
pub(crate) struct SealedWriter<W: Write> {
    way: Way<W>,
    count: Rc<RefCell<Count>>,
    before: Option<u64>,
}

impl<W: Write> SealedWriter<W> {
    /// Begins an empty file.
    pub(crate) fn new(file: W, lock: &Lock) -> Result<Self> {
        let count = Rc::new(RefCell::new(Count::default()));
        let output = Counted {
            file,
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

    /// All was written: what was written to, and its length and hash.
    pub(crate) fn finish(self) -> io::Result<(W, (u64, Hash))> {
        let output = match self.way {
            Way::Plain(output) => output,
            Way::Sealed(stream) => stream.finish()?,
        };
        let whole = self.count.borrow().finish();
        Ok((output.file, whole))
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
    pub(crate) fn new(file: Box<dyn Read>, keys: &Keys, encrypted: bool) -> Result<Self, Unopened> {
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
        self.count.borrow().finish()
    }
}
