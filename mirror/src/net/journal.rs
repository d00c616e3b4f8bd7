//! The journal's two files: filled by one thread, carried over into the disk by another.
//!
//! What is appended is answered once it is with the kernel, a marker once it is durable. A sequence of plain writes and a
//! flush now and then: a ring would save nothing here. Must never carry anything over that is not durable in the journal,
//! and never fill a file again before what it held is durable in the disk.

mod carry;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use self::carry::{Entries, Part, carry_over};
use super::port::{DiskPort, Done};
use crate::group::MOST_CUTS;
use crate::journal::{Entry, HEAD_LEN, Head};
use crate::session::Upto;

/// What has collected is written at this many bytes at the latest.
const BATCH: usize = 1 << 20;
/// Places that are remembered as sealed: more than anybody asks for.
const MOST_SEALS: usize = 2 * MOST_CUTS;
/// How long a journal may be in use by others before that is an error.
const LET_GO_WITHIN: Duration = Duration::from_secs(2);

/// What is asked of the journal; the answers come on its threads.
pub(super) enum Ask {
    Start(Head, Done),
    /// Open what is there, so that nobody else does.
    Open(Uuid, Done),
    Append(Entry, Done),
    Mark {
        seq: u64,
        sealed: bool,
        done: Done,
    },
    Apply(Uuid, Upto, Arc<dyn DiskPort>, Done),
}

impl Ask {
    fn refuse(self, e: io::Error) {
        match self {
            Self::Start(_, done)
            | Self::Open(_, done)
            | Self::Append(_, done)
            | Self::Apply(_, _, _, done)
            | Self::Mark { done, .. } => done(Err(e)),
        }
    }
}

/// The thread that fills a journal. It ends when this is dropped and everything asked for is done.
#[derive(Debug)]
pub(super) struct Journal {
    asks: Sender<Ask>,
}

impl Journal {
    /// That of the files at `paths`, which need not exist.
    pub(super) fn new(paths: [PathBuf; 2]) -> Self {
        let (asks, asked) = channel();
        let filler = Filler {
            paths,
            open: None,
            batch: Vec::new(),
            appended: Vec::new(),
        };
        let thread = thread::Builder::new().name("mirror-journal".into());
        if let Err(e) = thread.spawn(move || filler.run(&asked)) {
            tracing::error!("cannot start the thread of a journal: {e}");
        }
        Self { asks }
    }

    pub(super) fn ask(&self, ask: Ask) {
        if let Err(unsent) = self.asks.send(ask) {
            unsent
                .0
                .refuse(io::Error::other("the thread of the journal has ended"));
        }
    }
}

/// The file that is not filled, as long as it holds something: it ends with a place that is sealed.
#[derive(Clone, Copy, Debug)]
struct Older {
    file: usize,
    filling: u64,
    /// Where what is to be carried over begins and ends.
    from: u64,
    end: u64,
}

/// How far a journal was carried over.
#[derive(Debug)]
struct Carried {
    older: Option<Older>,
    /// Where what is to be carried over of the file that is filled begins.
    from: u64,
    /// It failed: what is in the files has to be looked at again.
    failed: bool,
}

/// A place that is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seal {
    filling: u64,
    end: u64,
    /// The last number given out before it.
    seq: u64,
}

/// A journal that is open.
#[derive(Debug)]
struct Open {
    files: Arc<[File; 2]>,
    session: Uuid,
    /// Which of them is filled, the how many-eth filling that is, and whether its head was written.
    current: usize,
    filling: u64,
    headed: bool,
    /// Of the file that is filled so much is durable.
    synced: u64,
    /// Where it may be carried over to, the oldest first.
    seals: VecDeque<Seal>,
    /// Changed by who carries it over.
    carried: Arc<Mutex<Carried>>,
}

impl Open {
    /// What is to be carried over to get that far, in order; those that are passed are forgotten.
    fn take_parts(&mut self, upto: Upto) -> Vec<Part> {
        let at = match upto {
            Upto::Nothing => None,
            Upto::Sealed => self.seals.len().checked_sub(1),
            Upto::Cut(seq) => self.seals.iter().rposition(|seal| seal.seq == seq),
        };
        let Some(seal) = at.and_then(|at| self.seals.drain(..=at).next_back()) else {
            return Vec::new();
        };
        let carried = lock(&self.carried);
        let mut parts = Vec::new();
        if let Some(older) = carried.older {
            let within = seal.filling == older.filling;
            let end = if within { seal.end } else { older.end };
            parts.push(Part {
                file: older.file,
                filling: older.filling,
                from: older.from,
                end,
                empties: end == older.end,
            });
            if within {
                return parts;
            }
        }
        parts.push(Part {
            file: self.current,
            filling: self.filling,
            from: carried.from,
            end: seal.end,
            empties: false,
        });
        parts
    }

    /// The file that is filled ends here with a place that is sealed. The other one is filled next, if it is empty.
    fn seal(&mut self, seq: u64) -> io::Result<()> {
        let (file, filling, end) = (self.current, self.filling, self.synced);
        if self.seals.len() >= MOST_SEALS {
            self.seals.pop_front();
        }
        self.seals.push_back(Seal { filling, end, seq });
        let mut carried = lock(&self.carried);
        if carried.older.is_some() {
            return Ok(());
        }
        if let Some(mut next) = self.files.get(1 - file) {
            next.rewind()?;
        }
        let from = carried.from;
        #[rustfmt::skip]
        let older = Older { file, filling, from, end };
        carried.older = Some(older);
        carried.from = HEAD_LEN as u64;
        self.current = 1 - file;
        self.filling = filling.saturating_add(1);
        self.synced = 0;
        self.headed = false;
        Ok(())
    }
}

struct Filler {
    paths: [PathBuf; 2],
    open: Option<Open>,
    batch: Vec<u8>,
    appended: Vec<Done>,
}

impl Filler {
    fn run(mut self, asked: &Receiver<Ask>) {
        loop {
            let ask = match asked.try_recv() {
                Ok(ask) => ask,
                Err(TryRecvError::Empty) => {
                    self.write_out();
                    let Ok(ask) = asked.recv() else { return };
                    ask
                }
                Err(TryRecvError::Disconnected) => return self.write_out(),
            };
            self.serve(ask);
        }
    }

    fn serve(&mut self, ask: Ask) {
        match ask {
            Ask::Start(head, done) => {
                self.write_out();
                self.open = None;
                let started = start(&self.paths, head);
                done(started.map(|open| self.open = Some(open)));
            }
            Ask::Append(entry, done) => {
                self.append(&entry);
                self.appended.push(done);
                if self.batch.len() >= BATCH {
                    self.write_out();
                }
            }
            Ask::Mark { seq, sealed, done } => {
                self.append(&Entry::Mark { seq, sealed });
                // Its answer stands for what came before it as well.
                let sealed = sealed.then_some(seq);
                let marked = self.try_write_out().and_then(|()| self.sync(sealed));
                done(marked);
            }
            Ask::Open(session, done) => {
                let opened = reopen(&self.paths, session);
                done(opened.map(|open| self.open = Some(open)));
            }
            Ask::Apply(session, upto, port, done) => {
                self.write_out();
                self.apply((session, upto), port, done);
            }
        }
    }

    fn append(&mut self, entry: &Entry) {
        // Without an open journal writing out fails, and says so.
        let Some(open) = &mut self.open else { return };
        if !open.headed {
            open.headed = true;
            let (session, filling) = (open.session, open.filling);
            let head = Head {
                session,
                filling,
                seq: 0,
            };
            self.batch.extend_from_slice(&head.to_bytes());
        }
        entry.encode(open.filling, &mut self.batch);
    }

    /// Hand what has collected to the kernel, and tell who waits for it.
    fn write_out(&mut self) {
        // Who waits hears of a failure.
        let _ = self.try_write_out();
    }

    fn try_write_out(&mut self) -> io::Result<()> {
        let written = match &self.open {
            _ if self.batch.is_empty() && self.appended.is_empty() => Ok(()),
            None => Err(io::Error::other("no journal is open")),
            Some(open) => open
                .files
                .get(open.current)
                .map_or(Ok(()), |mut file| file.write_all(&self.batch)),
        };
        self.batch.clear();
        for done in self.appended.drain(..) {
            done(written.as_ref().map_or_else(|e| Err(again(e)), |()| Ok(())));
        }
        if written.is_err() {
            self.give_up();
        }
        written
    }

    /// Make the file durable, which is a place that is sealed if a number is given.
    fn sync(&mut self, sealed: Option<u64>) -> io::Result<()> {
        let Some(open) = &mut self.open else {
            return Err(io::Error::other("no journal is open"));
        };
        let synced = open.files.get(open.current).map_or(Ok(0), |mut file| {
            file.sync_data()?;
            file.stream_position()
        });
        let sealed = synced.and_then(|synced| {
            open.synced = synced;
            sealed.map_or(Ok(()), |seq| open.seal(seq))
        });
        if sealed.is_err() {
            self.give_up();
        }
        sealed
    }

    /// Writing failed. What was not made durable may be seen all the same, and be lost later: it goes. The rest is looked
    /// at when the journal is opened again.
    fn give_up(&mut self) {
        if let Some(open) = self.open.take()
            && let Some(file) = open.files.get(open.current)
            && let Err(e) = file.set_len(open.synced)
        {
            tracing::error!("the end of a journal cannot be cut off: {e}");
        }
    }

    fn apply(&mut self, (session, upto): (Uuid, Upto), port: Arc<dyn DiskPort>, done: Done) {
        let fits = |open: &Open| open.session == session && !lock(&open.carried).failed;
        if !self.open.as_ref().is_some_and(fits) {
            // Its lock would keep this process out as well.
            self.open = None;
            match reopen(&self.paths, session) {
                Ok(open) => self.open = Some(open),
                Err(e) => return done(Err(e)),
            }
        }
        let Some(open) = &mut self.open else { return };
        let parts = open.take_parts(upto);
        let (files, carried) = (Arc::clone(&open.files), Arc::clone(&open.carried));
        let done = Arc::new(Mutex::new(Some(done)));
        let answer = Arc::clone(&done);
        let carry = move || {
            let result = carry_over(&files, &parts, &carried, port.as_ref());
            lock(&carried).failed |= result.is_err();
            // The journal is closed here before anybody may want it for himself.
            drop((files, carried));
            if let Some(done) = lock(&answer).take() {
                done(result);
            }
        };
        let thread = thread::Builder::new().name("mirror-apply".into());
        if let Err(e) = thread.spawn(carry)
            && let Some(done) = lock(&done).take()
        {
            done(Err(e));
        }
    }
}

fn again(e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), e.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two that fill one journal, or one that fills it while another promotes the disk, would ruin it.
fn keep_out_others(file: &File, path: &Path) -> io::Result<()> {
    let begun = Instant::now();
    // Who ends may have a file to close yet.
    while let Err(e) = flock(file, FlockOperation::NonBlockingLockExclusive) {
        if begun.elapsed() > LET_GO_WITHIN {
            let what = format!("{} is in use by another process", path.display());
            return Err(io::Error::new(io::Error::from(e).kind(), what));
        }
        thread::sleep(Duration::from_millis(10));
    }
    // Whoever had it may have taken it away.
    if fs::metadata(path)?.ino() != file.metadata()?.ino() {
        let what = format!("{} was taken away by another process", path.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    }
    Ok(())
}

fn options() -> OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    options
}

/// Make an empty journal in place of what is there.
fn start(paths: &[PathBuf; 2], head: Head) -> io::Result<Open> {
    let make = |path: &Path| options().create(true).truncate(false).open(path);
    let files = [make(&paths[0])?, make(&paths[1])?];
    keep_out_others(&files[0], &paths[0])?;
    for file in &files {
        file.set_len(0)?;
    }
    (&files[0]).write_all(&head.to_bytes())?;
    for file in &files {
        file.sync_all()?;
    }
    sync_folder(&paths[0])?;
    Ok(Open {
        files: Arc::new(files),
        session: head.session,
        current: 0,
        filling: head.filling,
        headed: true,
        synced: HEAD_LEN as u64,
        seals: VecDeque::new(),
        carried: Arc::new(Mutex::new(Carried {
            older: None,
            from: HEAD_LEN as u64,
            failed: false,
        })),
    })
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

/// Take the journal away, if there is one.
pub(super) fn remove(paths: &[PathBuf; 2]) -> io::Result<()> {
    for path in paths {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// What one of the files holds.
#[derive(Debug)]
struct Found {
    file: usize,
    head: Head,
    /// Where the last marker ends.
    end: u64,
    /// The places that are sealed.
    seals: Vec<Seal>,
}

impl Found {
    fn ends_sealed(&self) -> bool {
        self.seals.last().is_some_and(|seal| seal.end == self.end)
    }
}

/// Open what is there, without what follows the last markers.
fn reopen(paths: &[PathBuf; 2], session: Uuid) -> io::Result<Open> {
    let open = |path: &Path| {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        options().open(path).map_err(named)
    };
    let bad = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    let files = [open(&paths[0])?, open(&paths[1])?];
    keep_out_others(&files[0], &paths[0])?;
    let mut found = Vec::new();
    for (at, mut file) in files.iter().enumerate() {
        let one = look_at(at, file)?.filter(|one| one.end > 0);
        if one.as_ref().is_some_and(|one| one.head.session != session) {
            let what = format!("{} is the journal of another session", paths[at].display());
            return bad(what);
        }
        file.set_len(one.as_ref().map_or(0, |one| one.end))?;
        // Markers that a process wrote before it died count from here on, so they have to stay.
        file.sync_all()?;
        file.seek(io::SeekFrom::End(0))?;
        found.extend(one);
    }
    found.sort_by_key(|one| one.head.filling);
    let seals = found.iter().flat_map(|one| one.seals.iter().copied());
    let seals: VecDeque<Seal> = seals.collect();
    let older = match found.as_slice() {
        [one, _] if !one.ends_sealed() => {
            let path = paths[one.file].display();
            return bad(format!(
                "{path} is not sealed, and its other half is in use"
            ));
        }
        [one, _] => Some(Older {
            file: one.file,
            filling: one.head.filling,
            from: HEAD_LEN as u64,
            end: one.end,
        }),
        _ => None,
    };
    let (current, filling, synced) = found
        .last()
        .map_or((0, 1, 0), |one| (one.file, one.head.filling, one.end));
    Ok(Open {
        files: Arc::new(files),
        session,
        current,
        filling,
        headed: synced > 0,
        synced,
        seals,
        carried: Arc::new(Mutex::new(Carried {
            older,
            from: HEAD_LEN as u64,
            failed: false,
        })),
    })
}

/// What a file holds; nothing when its head is not one, as after a power cut.
fn look_at(at: usize, file: &File) -> io::Result<Option<Found>> {
    let mut entries = Entries::new(file, 0);
    let Some(head) = entries.head()? else {
        return Ok(None);
    };
    let filling = head.filling;
    let (mut end, mut seals) = (0, Vec::new());
    while let Some(entry) = entries.next(filling)? {
        if let Entry::Mark { sealed, seq } = entry {
            end = entries.read;
            seals.extend(sealed.then_some(Seal { filling, end, seq }));
        }
    }
    Ok(Some(Found {
        file: at,
        head,
        end,
        seals,
    }))
}

/// Carry over what a journal holds for the disk behind `port`, up to there: the disk is then as the source's was at that
/// place. Blocks.
///
/// `agreed` is asked once the journal is this process's alone, and fails when what is known of the disk has changed
/// meanwhile. Nobody else has the journal until what is returned is dropped.
///
/// Fails when a file is missing, of another session, or cannot be read; the disk may then be changed in part, and the
/// same again goes on.
pub(super) fn recover(
    paths: &[PathBuf; 2],
    (session, upto): (Uuid, Upto),
    port: &dyn DiskPort,
    agreed: impl FnOnce() -> io::Result<()>,
) -> io::Result<Recovered> {
    let mut open = reopen(paths, session)?;
    agreed()?;
    let parts = open.take_parts(upto);
    carry_over(&open.files, &parts, &open.carried, port)?;
    Ok(Recovered { _open: open })
}

/// A journal of which nothing is left to be carried over.
#[derive(Debug)]
pub(super) struct Recovered {
    _open: Open,
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
