//! A file that becomes an object, in parts that are sent as they fill. It appears under its name, as a whole, when it is
//! finished. Memory is bounded by one part that fills and [`FLYING`] on their way; nothing is written to a disk here.

use std::io::{self, Write};
use std::rc::Rc;
use std::sync::Arc;

use object_store::ObjectStoreExt as _;
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use package::Hash;
use tokio::task::JoinSet;

use super::super::{Growing, sealed_hash};
use super::download::Download;
use super::line::{Line, broken};
use super::trouble::Trouble;

/// Least bytes of a part.
const PART: u64 = 8 << 20;
/// Parts that an object of the expected length has at most; a store takes ten thousand.
const PARTS: u64 = 9000;
/// Most parts on their way.
const FLYING: usize = 4;

type Sent = (usize, object_store::Result<PartId>);

/// An object that is written.
pub(super) struct Upload {
    line: Rc<Line>,
    path: Path,
    id: String,
    /// Bytes of each part but the last.
    part: usize,
    filling: Vec<u8>,
    /// What each part is called, once it was sent.
    sent: Vec<Option<PartId>>,
    flying: JoinSet<Sent>,
    whole: bool,
}

impl Upload {
    /// Begins an object of at most `most` bytes, or a few more.
    pub(super) fn begin(line: Rc<Line>, path: Path, most: u64) -> Result<Self, Trouble> {
        let part = most.div_ceil(PARTS).next_multiple_of(1 << 20).max(PART) as usize;
        let id = line.wait(line.s3.create_multipart(&path))?;
        Ok(Self {
            line,
            path,
            id,
            part,
            filling: Vec::with_capacity(part),
            sent: Vec::new(),
            flying: JoinSet::new(),
            whole: false,
        })
    }

    /// Sends the part that has filled, when one of those on their way has arrived.
    fn send(&mut self) -> Result<(), Trouble> {
        while self.flying.len() >= FLYING {
            self.reap()?;
        }
        let bytes = std::mem::replace(&mut self.filling, Vec::with_capacity(self.part));
        let number = self.sent.len();
        self.sent.push(None);
        let (s3, path, id) = (
            Arc::clone(&self.line.s3),
            self.path.clone(),
            self.id.clone(),
        );
        let sending = async move {
            let sent = s3.put_part(&path, &id, number, bytes.into()).await;
            (number, sent)
        };
        self.flying.spawn_on(sending, self.line.runtime.handle());
        Ok(())
    }

    /// Waits for one part to arrive.
    fn reap(&mut self) -> Result<(), Trouble> {
        let flying = &mut self.flying;
        let arrived = self.line.wait(async {
            match flying.join_next().await {
                Some(arrived) => Ok(Some(arrived?)),
                None => Ok(None),
            }
        })?;
        if let Some((number, sent)) = arrived {
            let sent = sent.map_err(Trouble::Store)?;
            if let Some(place) = self.sent.get_mut(number) {
                *place = Some(sent);
            }
        }
        Ok(())
    }

    fn complete(&mut self, (length, hash): (u64, Hash)) -> Result<(), Trouble> {
        self.send()?;
        while !self.flying.is_empty() {
            self.reap()?;
        }
        let parts: Option<Vec<PartId>> = self.sent.iter().cloned().collect();
        let parts = parts.ok_or_else(|| Trouble::Store(broken("a part did not arrive")))?;
        let line = Rc::clone(&self.line);
        // Another export may have come first. The library cannot make this a condition of what follows.
        match line.wait(line.s3.head(&self.path)) {
            Ok(_) => return Err(Trouble::Store(broken("there is another object by now"))),
            Err(trouble) if trouble.is_absence() => {}
            Err(trouble) => return Err(trouble),
        }
        let completed = line.wait(line.s3.complete_multipart(&self.path, &self.id, parts));
        match completed {
            Ok(_) => {}
            // The answer to an earlier try may have been lost: then the upload is gone, and the object there.
            Err(trouble)
                if !matches!(trouble, Trouble::Interrupted) && self.is_there(length, hash) => {}
            Err(trouble) => return Err(trouble),
        }
        self.whole = true;
        Ok(())
    }

    /// Whether the object is there, and what was written.
    fn is_there(&self, length: u64, hash: Hash) -> bool {
        let found = self.line.wait(self.line.s3.head(&self.path));
        if !found.is_ok_and(|found| found.size == length) {
            return false;
        }
        let read = Download::new(Rc::clone(&self.line), self.path.clone(), length);
        sealed_hash(read).is_ok_and(|found| found == (length, hash))
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.part - self.filling.len());
        self.filling.extend_from_slice(&bytes[..len]);
        if self.filling.len() == self.part {
            self.send()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Growing for Upload {
    fn upload(&self) -> Option<&str> {
        Some(&self.id)
    }

    fn finish(mut self: Box<Self>, whole: (u64, Hash)) -> io::Result<()> {
        Ok(self.complete(whole)?)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.whole {
            return;
        }
        // A part that arrives after the end would be paid for.
        self.line.runtime.block_on(self.flying.shutdown());
        self.line.drop_upload(self.path.clone(), self.id.clone());
    }
}
