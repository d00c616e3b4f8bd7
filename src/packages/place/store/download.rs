//! An object that is read from its beginning to its end: by ranges, some of them on their way, each asked for again if
//! it does not come. Memory is bounded by [`FLYING`] ranges of [`RANGE`] bytes, whatever the store sends.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore as _};
use tokio::task::JoinHandle;

use super::line::{Line, exactly};

/// Bytes of a range.
const RANGE: u64 = 4 << 20;
/// Most ranges on their way.
const FLYING: usize = 4;
/// How often a range is asked for, on top of what the library does for each request.
const TRIES: u32 = 5;

/// An object that is read.
pub(super) struct Download {
    line: Rc<Line>,
    path: Path,
    /// How long it is.
    length: u64,
    /// What was not asked for yet begins here.
    next: u64,
    flying: VecDeque<JoinHandle<object_store::Result<Vec<u8>>>>,
    /// The range that is read, and up to where it was.
    current: Vec<u8>,
    at: usize,
}

impl Download {
    /// Reads the first `length` bytes; that it has so many was asked before.
    pub(super) fn new(line: Rc<Line>, path: Path, length: u64) -> Self {
        Self {
            line,
            path,
            length,
            next: 0,
            flying: VecDeque::new(),
            current: Vec::new(),
            at: 0,
        }
    }

    fn ask(&mut self) {
        while self.flying.len() < FLYING && self.next < self.length {
            let end = self.length.min(self.next.saturating_add(RANGE));
            let fetch = fetch(
                Arc::clone(&self.line.s3),
                self.path.clone(),
                (self.next, end),
            );
            self.flying.push_back(self.line.runtime.spawn(fetch));
            self.next = end;
        }
    }
}

impl Read for Download {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() {
            self.ask();
            let Some(mut first) = self.flying.pop_front() else {
                return Ok(0);
            };
            self.current = self.line.wait(async { (&mut first).await? })?;
            self.at = 0;
        }
        let rest = self.current.get(self.at..).unwrap_or_default();
        let len = rest.len().min(bytes.len());
        bytes[..len].copy_from_slice(&rest[..len]);
        self.at += len;
        Ok(len)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        for flying in &self.flying {
            flying.abort();
        }
    }
}

/// The bytes of a range.
async fn fetch(
    s3: Arc<AmazonS3>,
    path: Path,
    (at, end): (u64, u64),
) -> object_store::Result<Vec<u8>> {
    let mut tried = 0;
    loop {
        let options = GetOptions {
            range: Some(GetRange::Bounded(at..end)),
            ..GetOptions::default()
        };
        let got = match s3.get_opts(&path, options).await {
            Ok(found) => exactly(found, end - at).await,
            Err(error) => Err(error),
        };
        tried += 1;
        match got {
            Err(Error::Generic { .. }) if tried < TRIES => {
                tokio::time::sleep(Duration::from_millis(100 << tried)).await;
            }
            got => return got,
        }
    }
}
