//! Where the files of a package are: folders, or a store that speaks S3. Who writes or reads a package knows no more of
//! it than [`Place`].

mod folders;
#[cfg(feature = "s3")]
mod store;

use std::io::{self, BufRead as _, BufReader, Read, Write};

use package::Hash;

use self::folders::Folders;
use super::sealed::Count;
use crate::failure::{Failure, Result};
use crate::plan::PlaceName;

/// A place for the files of a package. A file has its name only when it is whole and durable.
pub(crate) trait Place {
    /// What people call the file of this name, and where it is, or would be.
    fn shown(&self, name: &str) -> String;

    /// The names of all files; perhaps of others too.
    fn names(&self) -> Result<Vec<String>>;

    /// How many bytes the file of this name has; `None` if it is not there.
    fn length(&self, name: &str) -> Result<Option<u64>>;

    /// Begins to read the first `length` bytes of a file.
    fn open(&self, name: &str, length: u64) -> Result<Box<dyn Read>>;

    /// The same, from the medium and not from this host's memory.
    fn open_anew(&self, name: &str, length: u64) -> Result<Box<dyn Read>> {
        self.open(name, length)
    }

    /// Begins a file that is not there, of at most `most` bytes.
    fn begin(&self, name: &str, most: u64) -> Result<Box<dyn Growing>>;

    /// Removes what another run may have left of a file, whole or half; `upload` is what it noted of it.
    fn clear(&self, name: &str, upload: Option<&str>) -> Result<()>;

    /// Puts a small file as a whole, durably: a new one, or in place of what this process read or put there.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<()>;

    /// The whole of a small file, of at most `most` bytes; `None` if it is not there.
    fn load(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>>;

    /// Removes a file, durably; it may not be there.
    fn remove(&self, name: &str) -> Result<()>;

    /// How many bytes are free, where that is known.
    fn free(&self) -> Option<u64>;

    /// Something went wrong with a file that is read or written.
    fn failed(&self, name: &str, what: &str, error: &io::Error) -> Failure {
        Failure::io(format!("{}: {what}", self.shown(name)), error)
    }
}

/// A file that is written from its beginning to its end. What is dropped before it is finished goes away.
pub(crate) trait Growing: Write {
    /// What another run needs to know to remove it, should this one not come to it.
    fn upload(&self) -> Option<&str>;

    /// The file is whole, with this length and hash: it gets its name, durably.
    fn finish(self: Box<Self>, whole: (u64, Hash)) -> io::Result<()>;
}

/// Holds a place, to write there: nobody else does.
pub(crate) fn hold(name: &PlaceName) -> Result<Box<dyn Place>> {
    match name {
        PlaceName::Folders(folders) => Ok(Box::new(Folders::hold(folders)?)),
        PlaceName::Store(name) => store(name),
    }
}

/// A place that is only read.
pub(crate) fn read(name: &PlaceName) -> Result<Box<dyn Place>> {
    match name {
        PlaceName::Folders(folders) => Ok(Box::new(Folders::of(folders))),
        PlaceName::Store(name) => store(name),
    }
}

#[cfg(feature = "s3")]
fn store(name: &crate::plan::StoreName) -> Result<Box<dyn Place>> {
    Ok(Box::new(store::Store::open(name)?))
}

#[cfg(not(feature = "s3"))]
fn store(name: &crate::plan::StoreName) -> Result<Box<dyn Place>> {
    use crate::failure::Exit;
    let what = format!("{name}: this diskferry was built without stores");
    Err(Failure::new(Exit::Unsupported, what).hint("build it with the feature `s3`"))
}

/// The hash of a file of this length, as the medium has it; `None` if it is not there, or has another length.
pub(crate) fn hash_of(place: &dyn Place, name: &str, length: u64) -> Result<Option<Hash>> {
    if place.length(name)? != Some(length) {
        return Ok(None);
    }
    let read = sealed_hash(place.open_anew(name, length)?);
    crate::interrupt::check("the same command goes on")?;
    let (read, hash) = read.map_err(|e| place.failed(name, "cannot be read", &e))?;
    Ok((read == length).then_some(hash))
}

/// The length and hash of all that is read, as it is stored.
fn sealed_hash(file: impl Read) -> io::Result<(u64, Hash)> {
    let mut input = BufReader::with_capacity(1 << 20, file);
    let mut count = Count::default();
    loop {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            return Ok(count.finish());
        }
        count.add(bytes);
        let len = bytes.len();
        input.consume(len);
        if crate::interrupt::requested() {
            return Err(io::Error::other("interrupted"));
        }
    }
}
