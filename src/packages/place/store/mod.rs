//! A store that speaks S3 as a place of a package: a file is an object, named `PREFIX/` and what it would be called in
//! a folder, so that a package may be carried from one to the other by any program.
//!
//! Driver, by the library `object_store`. Every byte that a store sends is hostile: what is read is bounded here, and
//! looked at by who asked for it. What keeps two exports apart is that a small file is put only in place of the one
//! that this process knows of (`If-Match`, `If-None-Match`).

mod connect;
mod download;
mod line;
mod trouble;
mod upload;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Read};
use std::rc::Rc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{Error, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion};
use package::Hash;

use self::download::Download;
use self::line::Line;
use self::trouble::{Told, Trouble};
use self::upload::Upload;
use super::{Growing, Place};
use crate::failure::{Exit, Failure, Result};
use crate::plan::StoreName;

/// How often a small file is put that may have arrived or not, and how long the first pause is.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(200);

/// A place in a store.
pub(super) struct Store {
    line: Rc<Line>,
    /// The small files that this process read or put there, by their names.
    known: RefCell<HashMap<String, Hash>>,
}

impl Store {
    /// Finds out how the store is reached, and whether there are credentials.
    pub(super) fn open(name: &StoreName) -> Result<Self> {
        Ok(Self {
            line: Rc::new(connect::connect(name)?),
            known: RefCell::default(),
        })
    }

    fn path(&self, name: &str) -> Result<Path> {
        self.line.path(name)
    }

    fn told(&self, name: &str, what: &str, trouble: &Trouble) -> Failure {
        trouble.told(&format!("{}: {what}", self.shown(name)))
    }

    /// The whole of a small object, and which version it is; `None` if it is not there.
    fn get(&self, name: &str, most: u64) -> Result<Option<(Vec<u8>, UpdateVersion)>> {
        let path = self.path(name)?;
        match self.line.wait(self.line.get_small(path, most)) {
            Ok(found) => Ok(Some(found)),
            Err(trouble) if trouble.is_absence() => Ok(None),
            Err(trouble) => Err(self.told(name, "cannot be read", &trouble)),
        }
    }

    /// Puts a small object in place of this version of it.
    fn put_onto(
        &self,
        name: &str,
        bytes: &[u8],
        there: Option<UpdateVersion>,
    ) -> Result<(), Trouble> {
        let path = self.path(name).map_err(Trouble::Told)?;
        let mode = match there {
            None => PutMode::Create,
            Some(version) if version.e_tag.is_some() => PutMode::Update(version),
            Some(_) => PutMode::Overwrite,
        };
        let put = |mode: PutMode| {
            let payload = bytes.to_vec().into();
            let options = PutOptions::from(mode);
            self.line.wait(async {
                object_store::ObjectStore::put_opts(&*self.line.s3, &path, payload, options).await
            })
        };
        let done = put(mode);
        if let Err(Trouble::Store(Error::NotImplemented { .. })) = done {
            // A store without conditions: that it was looked at before is all that there is.
            return put(PutMode::Overwrite).map(drop);
        }
        done.map(drop)
    }

    fn overtaken(&self, name: &str) -> Failure {
        let what = format!("{}: another export writes there", self.shown(name));
        Failure::new(Exit::InUse, what).hint("let it end, or give another prefix or --name")
    }
}

impl Place for Store {
    fn shown(&self, name: &str) -> String {
        format!("{}/{name}", self.line.name)
    }

    fn names(&self) -> Result<Vec<String>> {
        self.line
            .wait(self.line.names())
            .map_err(|trouble| trouble.told(&format!("{}: cannot be listed", self.line.name)))
    }

    fn length(&self, name: &str) -> Result<Option<u64>> {
        let path = self.path(name)?;
        match self.line.wait(self.line.s3.head(&path)) {
            Ok(found) => Ok(Some(found.size)),
            Err(trouble) if trouble.is_absence() => Ok(None),
            Err(trouble) => Err(self.told(name, "cannot be found", &trouble)),
        }
    }

    fn open(&self, name: &str, length: u64) -> Result<Box<dyn Read>> {
        let path = self.path(name)?;
        Ok(Box::new(Download::new(Rc::clone(&self.line), path, length)))
    }

    fn begin(&self, name: &str, most: u64) -> Result<Box<dyn Growing>> {
        if self.length(name)?.is_some() {
            let what = format!("{}: exists already", self.shown(name));
            return Err(Failure::new(Exit::Failed, what).hint("give another prefix or --name"));
        }
        let path = self.path(name)?;
        let begun = Upload::begin(Rc::clone(&self.line), path, most);
        let upload = begun.map_err(|trouble| self.told(name, "cannot be written", &trouble))?;
        Ok(Box::new(upload))
    }

    fn clear(&self, name: &str, upload: Option<&str>) -> Result<()> {
        if let Some(upload) = upload {
            let path = self.path(name)?;
            match self
                .line
                .wait(self.line.end_upload(path, upload.to_owned()))
            {
                Err(trouble) if !trouble.is_absence() => {
                    return Err(self.told(name, "its unfinished upload cannot be ended", &trouble));
                }
                _ => {}
            }
        }
        self.remove(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (ours, most) = (Hash::of(bytes), bytes.len() as u64 + (64 << 20));
        let mut trouble = None;
        for tried in 0..TRIES {
            if tried > 0 {
                self.line.pause(PAUSE * 2_u32.pow(tried))?;
            }
            let (now, version) = self.get(name, most)?.unzip();
            let now = now.map(|bytes| Hash::of(&bytes));
            // What was sent before may have arrived, though its answer was lost.
            if now == Some(ours) {
                self.known.borrow_mut().insert(name.to_owned(), ours);
                return Ok(());
            }
            if now != self.known.borrow().get(name).copied() {
                return Err(self.overtaken(name));
            }
            match self.put_onto(name, bytes, version) {
                Ok(()) => {
                    self.known.borrow_mut().insert(name.to_owned(), ours);
                    return Ok(());
                }
                Err(Trouble::Told(failure)) => return Err(failure),
                Err(other) if other.is_final() => {
                    return Err(self.told(name, "cannot be written", &other));
                }
                Err(other) => trouble = Some(other),
            }
        }
        match trouble {
            Some(trouble) => Err(self.told(name, "cannot be written", &trouble)),
            None => Err(self.overtaken(name)),
        }
    }

    fn load(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let Some((bytes, _)) = self.get(name, most)? else {
            return Ok(None);
        };
        let hash = Hash::of(&bytes);
        self.known.borrow_mut().insert(name.to_owned(), hash);
        Ok(Some(bytes))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name)?;
        match self.line.wait(self.line.s3.delete(&path)) {
            Err(trouble) if !trouble.is_absence() => {
                Err(self.told(name, "cannot be removed", &trouble))
            }
            _ => {
                self.known.borrow_mut().remove(name);
                Ok(())
            }
        }
    }

    fn free(&self) -> Option<u64> {
        None
    }

    fn failed(&self, name: &str, what: &str, error: &io::Error) -> Failure {
        match Told::of(error) {
            Some(trouble) => trouble.told(&format!("{}: {what}", self.shown(name))),
            None => Failure::io(format!("{}: {what}", self.shown(name)), error),
        }
    }
}
