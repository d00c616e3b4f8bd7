//! The mirror's own files: small, replaced whole, durable when that is said.
//!
//! One thread does all of them, one after the other, through a tokio-uring runtime; where io_uring
//! is forbidden the same thread uses blocking calls and says so once. Must never leave a file half
//! written: the new content is written beside it, made durable, and renamed over it.

mod group;

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};
use crate::record::{MAX_LEN, Ownership};
use crate::saved::{self, Saved};
use crate::way_back::WayBack;

pub use self::group::{GroupStore, groups_beside};

/// What the name of an ownership record ends with.
pub const RECORD_SUFFIX: &str = ".ownership";
/// What the name of a kept session ends with.
pub const SESSION_SUFFIX: &str = ".mirror";
/// What the name of a file ends with that keeps a way back.
pub const WAY_BACK_SUFFIX: &str = ".way-back";
/// What the names of a journal's files end with.
pub const JOURNAL_SUFFIXES: [&str; 2] = [".journal-a", ".journal-b"];
/// What the name of a group's record ends with; before that is the group's name.
pub const GROUP_SUFFIX: &str = ".group";
/// What the name of a file ends with that is being written in place of another.
const NEW_SUFFIX: &str = ".new";

/// Where the ownership record of the disk at `disk` lies: beside it.
#[must_use]
pub fn sidecar_path(disk: &Path) -> PathBuf {
    with_suffix(disk, RECORD_SUFFIX)
}

/// Where the session is kept that moves the disk at `disk`: beside it.
#[must_use]
pub fn session_path(disk: &Path) -> PathBuf {
    with_suffix(disk, SESSION_SUFFIX)
}

/// Where it is kept where the disk at `disk` may go back to, or come back from: beside it.
#[must_use]
pub fn way_back_path(disk: &Path) -> PathBuf {
    with_suffix(disk, WAY_BACK_SUFFIX)
}

/// The way back that is kept at `path`, `None` when there is none. Blocks, and starts no thread.
///
/// Fails with [`ErrorKind::Record`] when it cannot be read or is damaged.
pub fn load_way_back(path: &Path) -> Result<Option<WayBack>> {
    let failed =
        |what: String| Error::new(ErrorKind::Record, format!("{}: {what}", path.display()));
    let bytes = load_blocking(path, MAX_LEN);
    let bytes = bytes.map_err(|e| failed(format!("cannot be read: {e}")))?;
    let found = bytes.map(|bytes| WayBack::from_bytes(&bytes)).transpose();
    found.map_err(|e| failed(e.to_string()))
}

/// Keep `way_back` at `path`, durably, or nothing. Blocks, and starts no thread.
pub fn write_way_back(path: &Path, way_back: Option<&WayBack>) -> io::Result<()> {
    let Some(way_back) = way_back else {
        return remove_session(path);
    };
    let bytes = way_back
        .to_bytes()
        .map_err(|e| io::Error::other(e.to_string()))?;
    replace_blocking(path, &bytes)
}

/// The session that is kept at `path`, `None` when there is none. Blocks, and starts no thread.
///
/// Fails with [`ErrorKind::Record`] when it cannot be read or is damaged.
pub fn load_session(path: &Path) -> Result<Option<Saved>> {
    let failed =
        |what: String| Error::new(ErrorKind::Record, format!("{}: {what}", path.display()));
    let bytes = load_blocking(path, saved::MAX_LEN);
    let bytes = bytes.map_err(|e| failed(format!("cannot be read: {e}")))?;
    let saved = bytes.map(|bytes| Saved::from_bytes(&bytes)).transpose();
    saved.map_err(|e| failed(e.to_string()))
}

/// Keep `saved` at `path`, durably. Blocks, and starts no thread.
pub fn write_session(path: &Path, saved: &Saved) -> io::Result<()> {
    let bytes = saved
        .to_bytes()
        .map_err(|e| io::Error::other(e.to_string()))?;
    replace_blocking(path, &bytes)
}

/// Keep nothing at `path`, durably. Blocks, and starts no thread.
pub fn remove_session(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed?,
    }
    fs::File::open(directory_of(path))?.sync_all()
}

/// Where one session is kept.
#[derive(Clone, Debug)]
pub struct SessionStore {
    path: PathBuf,
    files: FileThread,
}

impl SessionStore {
    /// The session at `path`, which need not exist.
    #[must_use]
    pub fn open(path: impl Into<PathBuf>) -> Self {
        let files = FileThread::shared();
        let path = path.into();
        Self { path, files }
    }

    /// Keep `saved`, or nothing; `done` is told on another thread when that is durable.
    pub fn keep(&self, saved: Option<&Saved>, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        let (path, done) = (self.path.clone(), Box::new(done));
        let bytes = saved.map(Saved::to_bytes).transpose();
        match bytes {
            Ok(Some(bytes)) => {
                let over = Over::Anything;
                #[rustfmt::skip]
                self.files.ask(Request::Replace { path, bytes, over, done });
            }
            Ok(None) => self.files.ask(Request::Remove { path, done }),
            Err(e) => done(Err(io::Error::other(e.to_string()))),
        }
    }
}

/// Where the two files of the journal of the disk whose ownership record lies at `record` are: beside it.
#[must_use]
pub fn journal_paths(record: &Path) -> [PathBuf; 2] {
    let name = record.as_os_str().to_string_lossy();
    let disk = match name.strip_suffix(RECORD_SUFFIX) {
        Some(disk) if record.to_str().is_some() => PathBuf::from(disk),
        _ => record.to_owned(),
    };
    JOURNAL_SUFFIXES.map(|suffix| with_suffix(&disk, suffix))
}

/// The ownership record at `path`, `None` when there is none. Blocks, and starts no thread.
///
/// Fails with [`ErrorKind::Record`] when it cannot be read or is damaged; then the disk may not be
/// served without the user's explicit word.
pub fn load_record(path: &Path) -> Result<Option<Ownership>> {
    decoded(path, load_blocking(path, MAX_LEN))
}

/// Make `record` the durable one at `path`. Blocks, and starts no thread.
///
/// Fails with [`ErrorKind::Record`]; then it may or may not be durable.
pub fn write_record(path: &Path, record: &Ownership) -> Result<()> {
    let bytes = record.to_bytes();
    let bytes = bytes.map_err(|e| failure(path, "write", io::Error::other(e.to_string())))?;
    replace_blocking(path, &bytes).map_err(|e| failure(path, "write", e))
}

fn decoded(path: &Path, bytes: io::Result<Option<Vec<u8>>>) -> Result<Option<Ownership>> {
    let Some(bytes) = bytes.map_err(|e| failure(path, "read", e))? else {
        return Ok(None);
    };
    Ownership::from_bytes(&bytes)
        .map(Some)
        .map_err(|e| Error::new(ErrorKind::Record, format!("{}: {e}", path.display())))
}

fn failure(path: &Path, doing: &str, e: io::Error) -> Error {
    let what = format!("cannot {doing} the ownership record {}", path.display());
    Error::io(ErrorKind::Record, what, e)
}

/// The place of one ownership record.
#[derive(Clone, Debug)]
pub struct RecordStore {
    path: PathBuf,
    files: FileThread,
}

impl RecordStore {
    /// The record at `path`, which need not exist.
    #[must_use]
    pub fn open(path: impl Into<PathBuf>) -> Self {
        let files = FileThread::shared();
        let path = path.into();
        Self { path, files }
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Make `record` the durable one; `done` is told on another thread when it is. On failure it may
    /// or may not be.
    pub fn persist(&self, record: &Ownership, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        match record.to_bytes() {
            Ok(bytes) => self.files.ask(Request::Replace {
                path: self.path.clone(),
                bytes,
                over: Over::Anything,
                done: Box::new(done),
            }),
            Err(e) => done(Err(io::Error::other(e.to_string()))),
        }
    }

    /// The same, in place of `known`, or of `record` itself if it was written before.
    ///
    /// Fails with [`io::ErrorKind::AlreadyExists`], and leaves what is there, when that is something else: another process
    /// has written it.
    pub fn persist_over(
        &self,
        known: Option<&Ownership>,
        record: &Ownership,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) {
        let known = known.map(Ownership::to_bytes).transpose();
        match (record.to_bytes(), known) {
            (Ok(bytes), Ok(known)) => self.files.ask(Request::Replace {
                path: self.path.clone(),
                bytes,
                over: Over::This(known),
                done: Box::new(done),
            }),
            (Err(e), _) | (_, Err(e)) => done(Err(io::Error::other(e.to_string()))),
        }
    }

    /// [`RecordStore::persist`], waiting for it. Not for threads that serve others.
    pub fn persist_and_wait(&self, record: &Ownership) -> Result<()> {
        let (send, answer) = std::sync::mpsc::sync_channel(1);
        self.persist(record, move |result| {
            let _ = send.send(result);
        });
        answer
            .recv()
            .unwrap_or_else(|_| Err(gone()))
            .map_err(|e| failure(&self.path, "write", e))
    }

    /// The record, `None` when there is none. Waits; see [`load_record`].
    pub fn load(&self) -> Result<Option<Ownership>> {
        let (send, answer) = std::sync::mpsc::sync_channel(1);
        let done = Box::new(move |result| {
            let _ = send.send(result);
        });
        self.files.ask(Request::Load {
            path: self.path.clone(),
            done,
        });
        decoded(&self.path, answer.recv().unwrap_or_else(|_| Err(gone())))
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread for the mirror's files has ended")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The directory that names the file at `path`.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

type Loaded = Box<dyn FnOnce(io::Result<Option<Vec<u8>>>) + Send>;

/// What a file may take the place of.
enum Over {
    Anything,
    /// These bytes, or no file; or the same bytes, if they were written before.
    This(Option<Vec<u8>>),
}

enum Request {
    Load {
        path: PathBuf,
        done: Loaded,
    },
    Replace {
        path: PathBuf,
        bytes: Vec<u8>,
        over: Over,
        done: Box<dyn FnOnce(io::Result<()>) + Send>,
    },
    Remove {
        path: PathBuf,
        done: Box<dyn FnOnce(io::Result<()>) + Send>,
    },
}

impl Request {
    fn fail(self, e: io::Error) {
        match self {
            Self::Load { done, .. } => done(Err(e)),
            Self::Replace { done, .. } | Self::Remove { done, .. } => done(Err(e)),
        }
    }
}

/// The thread; it ends with the last of its clones.
#[derive(Clone, Debug)]
struct FileThread {
    requests: mpsc::UnboundedSender<Request>,
}

impl FileThread {
    /// The one of this process.
    fn shared() -> Self {
        static FILES: OnceLock<FileThread> = OnceLock::new();
        FILES.get_or_init(|| Self::start(true)).clone()
    }

    /// `ring`: whether to try io_uring.
    fn start(ring: bool) -> Self {
        let (requests, waiting) = mpsc::unbounded_channel();
        let thread = thread::Builder::new().name("mirror-files".into());
        if let Err(e) = thread.spawn(move || run(waiting, ring)) {
            tracing::error!("cannot start the thread for the mirror's files: {e}");
        }
        Self { requests }
    }

    fn ask(&self, request: Request) {
        if let Err(unsent) = self.requests.send(request) {
            unsent.0.fail(gone());
        }
    }
}

fn run(mut waiting: mpsc::UnboundedReceiver<Request>, ring: bool) {
    let runtime = if ring {
        tokio_uring::Runtime::new(tokio_uring::builder().entries(16))
    } else {
        Err(Errno::NOSYS.into())
    };
    match runtime {
        Ok(runtime) => runtime.block_on(async {
            while let Some(request) = waiting.recv().await {
                serve(request).await;
            }
        }),
        Err(e) => {
            tracing::warn!("io_uring cannot be used ({e}); the mirror's files go without it");
            while let Some(request) = waiting.blocking_recv() {
                serve_blocking(request);
            }
        }
    }
}

async fn serve(request: Request) {
    match request {
        Request::Load { path, done } => {
            let result = match load(&path).await {
                Err(e) if unsupported(&e) => load_blocking(&path, MAX_LEN),
                result => result,
            };
            done(result.and_then(|bytes| for_good(&path, bytes)));
        }
        Request::Replace {
            path,
            bytes,
            over,
            done,
        } => {
            if let Err(e) = is_over(&path, &bytes, over) {
                return done(Err(e));
            }
            let result = match replace(&path, bytes.clone()).await {
                Err(e) if unsupported(&e) => replace_blocking(&path, &bytes),
                result => result,
            };
            done(result);
        }
        // Rare, and short.
        remove @ Request::Remove { .. } => serve_blocking(remove),
    }
}

fn serve_blocking(request: Request) {
    match request {
        Request::Load { path, done } => {
            let result = load_blocking(&path, MAX_LEN);
            done(result.and_then(|bytes| for_good(&path, bytes)));
        }
        Request::Replace {
            path,
            bytes,
            over,
            done,
        } => {
            let replaced =
                is_over(&path, &bytes, over).and_then(|()| replace_blocking(&path, &bytes));
            done(replaced);
        }
        Request::Remove { path, done } => done(remove_session(&path)),
    }
}

/// What was read stays: whoever replaced the file may have died before its name was durable, and others are about to
/// act on it.
fn for_good(path: &Path, bytes: Option<Vec<u8>>) -> io::Result<Option<Vec<u8>>> {
    if bytes.is_some() {
        let synced = fs::File::open(directory_of(path)).and_then(|folder| folder.sync_all());
        match synced {
            // Nothing can be changed there, or nobody can tell: it is as good as it gets.
            Err(e) if !cannot_sync(&e) => return Err(e),
            _ => {}
        }
    }
    Ok(bytes)
}

fn cannot_sync(e: &io::Error) -> bool {
    let errno = Errno::from_io_error(e);
    errno.is_some_and(|e| [Errno::INVAL, Errno::ROFS, Errno::ACCESS, Errno::PERM].contains(&e))
}

/// Whether there is what `bytes` is to take the place of. The file is small, and read at once.
fn is_over(path: &Path, bytes: &[u8], over: Over) -> io::Result<()> {
    let Over::This(known) = over else {
        return Ok(());
    };
    let there = load_blocking(path, MAX_LEN)?;
    if there == known || there.as_deref() == Some(bytes) {
        return Ok(());
    }
    let what = format!("{} was written by another process", path.display());
    Err(io::Error::new(io::ErrorKind::AlreadyExists, what))
}

/// Whether an operation may have failed only because the ring of an old kernel lacks it.
fn unsupported(e: &io::Error) -> bool {
    let errno = Errno::from_io_error(e);
    errno.is_some_and(|e| [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP].contains(&e))
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

async fn load(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = absent_is_none(tokio_uring::fs::File::open(path).await)? else {
        return Ok(None);
    };
    // One byte more than a record has, so that a longer file is noticed.
    let mut bytes = Vec::new();
    while bytes.len() <= MAX_LEN {
        let room = Vec::with_capacity(MAX_LEN + 1 - bytes.len());
        let (count, room) = file.read_at(room, bytes.len() as u64).await;
        if count? == 0 {
            break;
        }
        bytes.extend_from_slice(&room);
    }
    file.close().await?;
    Ok(Some(bytes))
}

/// At most one byte more than `most`.
fn load_blocking(path: &Path, most: usize) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = absent_is_none(fs::File::open(path))? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

async fn replace(path: &Path, bytes: Vec<u8>) -> io::Result<()> {
    let new = with_suffix(path, NEW_SUFFIX);
    let file = tokio_uring::fs::File::create(&new).await?;
    file.write_all_at(bytes, 0).await.0?;
    file.sync_all().await?;
    file.close().await?;
    tokio_uring::fs::rename(&new, path).await?;
    let directory = tokio_uring::fs::File::open(directory_of(path)).await?;
    directory.sync_all().await?;
    directory.close().await
}

fn replace_blocking(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = with_suffix(path, NEW_SUFFIX);
    let mut file = fs::File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&new, path)?;
    fs::File::open(directory_of(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::State;
    use uuid::Uuid;

    fn record(epoch: u64) -> Ownership {
        Ownership {
            disk: Uuid::from_u128(7),
            state: State::Owner {
                epoch,
                session: None,
            },
        }
    }

    fn both_ways(test: impl Fn(FileThread)) {
        test(FileThread::start(true));
        test(FileThread::start(false));
    }

    #[test]
    fn a_record_is_absent_and_then_what_was_written_last() {
        both_ways(|files| {
            let dir = tempfile::tempdir().unwrap();
            let path = sidecar_path(&dir.path().join("disk.vhdx"));
            assert!(path.ends_with("disk.vhdx.ownership"));
            let store = RecordStore {
                path: path.clone(),
                files,
            };
            assert_eq!(store.load().unwrap(), None);
            for epoch in 1..20 {
                store.persist_and_wait(&record(epoch)).unwrap();
                assert_eq!(store.load().unwrap(), Some(record(epoch)));
            }
            assert_eq!(load_record(&path).unwrap(), Some(record(19)));
            write_record(&path, &record(20)).unwrap();
            assert_eq!(store.load().unwrap(), Some(record(20)));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        });
    }

    #[test]
    fn what_is_left_of_a_write_that_a_crash_cut_off_changes_nothing() {
        both_ways(|files| {
            let dir = tempfile::tempdir().unwrap();
            let store = RecordStore {
                path: dir.path().join("a.ownership"),
                files,
            };
            store.persist_and_wait(&record(1)).unwrap();
            fs::write(dir.path().join("a.ownership.new"), vec![b'x'; 9000]).unwrap();
            assert_eq!(store.load().unwrap(), Some(record(1)));
            store.persist_and_wait(&record(2)).unwrap();
            assert_eq!(store.load().unwrap(), Some(record(2)));
        });
    }

    #[test]
    fn a_damaged_or_endless_record_is_an_error_and_never_an_absent_one() {
        both_ways(|files| {
            let dir = tempfile::tempdir().unwrap();
            let store = RecordStore {
                path: dir.path().join("a.ownership"),
                files,
            };
            for content in [vec![], vec![b'x'; 100], vec![b' '; 10 * MAX_LEN]] {
                fs::write(store.path(), content).unwrap();
                let error = store.load().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Record);
                assert!(error.to_string().contains("a.ownership"), "{error}");
            }
        });
    }

    #[test]
    fn a_directory_that_is_missing_fails_the_write_and_says_where() {
        both_ways(|files| {
            let dir = tempfile::tempdir().unwrap();
            let store = RecordStore {
                path: dir.path().join("gone/a.ownership"),
                files,
            };
            let error = store.persist_and_wait(&record(1)).unwrap_err();
            assert!(error.to_string().contains("gone/a.ownership"), "{error}");
        });
    }
}
