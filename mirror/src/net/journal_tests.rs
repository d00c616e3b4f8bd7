//! The files of a journal, and what a crash leaves of them.

use std::sync::Mutex;

use bytes::Bytes;
use tempfile::TempDir;
use vdisk::engine::Mark;

use super::carry::answer;
use super::*;
use crate::net::port::{ReadDone, StatusDone};
use crate::wire::Content;

const SESSION: Uuid = Uuid::from_u128(5);

/// A disk in memory that may fail every write.
#[derive(Default)]
struct Disk {
    bytes: Mutex<Vec<u8>>,
    flushes: Mutex<usize>,
    fails: Mutex<bool>,
}

impl DiskPort for Disk {
    fn size(&self) -> u64 {
        lock(&self.bytes).len() as u64
    }

    fn read(&self, _: u64, _: u32, _: ReadDone) {
        unreachable!("a journal is written to the disk, not read from it");
    }

    fn write(&self, offset: u64, data: Bytes, done: Done) {
        if *lock(&self.fails) {
            return done(Err(io::Error::other("no room")));
        }
        let at = offset as usize;
        lock(&self.bytes)[at..at + data.len()].copy_from_slice(&data);
        done(Ok(()));
    }

    fn zero(&self, offset: u64, len: u64, done: Done) {
        self.write(offset, vec![0; len as usize].into(), done);
    }

    fn flush(&self, done: Done) {
        *lock(&self.flushes) += 1;
        done(Ok(()));
    }

    fn status(&self, _: u64, _: u64, _: StatusDone) {
        unreachable!("nobody asks a target's disk");
    }

    fn park(&self, _: Option<Mark>, done: Done) {
        done(Ok(()));
    }
}

struct Bench {
    folder: TempDir,
    journal: Journal,
    disk: Arc<Disk>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::default();
        lock(&disk.bytes).resize(1 << 16, 0xee);
        Self {
            journal: Journal::new(paths(&folder)),
            disk: Arc::new(disk),
            folder,
        }
    }

    fn wait(&self, ask: impl FnOnce(Done) -> Ask) -> io::Result<()> {
        let (done, told) = answer();
        self.journal.ask(ask(done));
        told.recv().expect("an answer")
    }

    fn started() -> Self {
        let bench = Self::new();
        #[rustfmt::skip]
        let head = Head { session: SESSION, filling: 1, seq: 0 };
        bench
            .wait(|done| Ask::Start(head, done))
            .expect("it starts");
        bench
    }

    fn write(&self, offset: u64, byte: u8) {
        let content = Content::Data(vec![byte; 512].into());
        let entry = Entry::Change { offset, content };
        self.wait(|done| Ask::Append(entry, done))
            .expect("appended");
    }

    fn mark(&self, sealed: bool) {
        self.mark_at(1, sealed);
    }

    fn mark_at(&self, seq: u64, sealed: bool) {
        self.wait(|done| Ask::Mark { seq, sealed, done })
            .expect("durable");
    }

    fn apply(&self) -> io::Result<()> {
        self.apply_upto(Upto::Sealed)
    }

    fn apply_upto(&self, upto: Upto) -> io::Result<()> {
        let disk: Arc<dyn DiskPort> = self.disk.clone();
        self.wait(|done| Ask::Apply(SESSION, upto, disk, done))
    }

    /// The first bytes of the first sectors of the disk.
    fn sectors<const N: usize>(&self) -> [u8; N] {
        let bytes = lock(&self.disk.bytes);
        std::array::from_fn(|sector| bytes[sector * 512])
    }

    /// As if the process had ended and begun again.
    fn restart(self) -> Self {
        let Self {
            folder,
            disk,
            journal,
        } = self;
        drop(journal);
        Self {
            journal: Journal::new(paths(&folder)),
            disk,
            folder,
        }
    }

    fn byte(&self, at: usize) -> u8 {
        lock(&self.disk.bytes)[at]
    }
}

fn paths(folder: &TempDir) -> [PathBuf; 2] {
    crate::files::journal_paths(&folder.path().join("disk.vhdx.ownership"))
}

#[test]
fn only_what_is_sealed_is_carried_over_and_in_its_order() {
    let bench = Bench::started();
    bench.write(0, 1);
    bench.write(256, 2);
    bench.mark(false);
    bench.apply().expect("nothing to do");
    assert_eq!(bench.byte(0), 0xee);
    bench.write(512, 3);
    bench.mark(true);
    bench.write(0, 9);
    bench.apply().expect("carried over");
    assert_eq!(
        [0, 256, 512, 1024].map(|at| bench.byte(at)),
        [1, 2, 3, 0xee]
    );
    assert_eq!(*lock(&bench.disk.flushes), 1);
    bench.mark(true);
    bench.apply().expect("carried over");
    assert_eq!(bench.byte(0), 9);
}

#[test]
fn a_new_process_goes_on_where_the_last_marker_was() {
    let bench = Bench::started();
    bench.write(0, 1);
    bench.mark(true);
    bench.write(512, 2);
    bench.mark(false);
    // Not covered by a marker: it comes again.
    bench.write(1024, 3);
    let bench = bench.restart();
    bench.apply().expect("carried over");
    assert_eq!([0, 512].map(|at| bench.byte(at)), [1, 0xee]);
    bench.write(1536, 4);
    bench.mark(true);
    bench.apply().expect("carried over");
    assert_eq!(
        [0, 512, 1024, 1536].map(|at| bench.byte(at)),
        [1, 2, 0xee, 4]
    );
}

#[test]
fn a_promotion_takes_what_is_sealed_and_leaves_the_rest() {
    let bench = Bench::started();
    bench.write(0, 1);
    bench.mark(true);
    bench.write(512, 2);
    bench.mark(false);
    let bench = bench.restart();
    let paths = paths(&bench.folder);
    recover(&paths, (SESSION, Upto::Sealed), bench.disk.as_ref(), || {
        Ok(())
    })
    .expect("recovered");
    assert_eq!([0, 512].map(|at| bench.byte(at)), [1, 0xee]);
    let other = Uuid::from_u128(6);
    let refused = recover(
        &paths,
        (other, Upto::Sealed),
        bench.disk.as_ref(),
        || Ok(()),
    )
    .expect_err("another session's");
    assert!(refused.to_string().contains("another session"), "{refused}");
    remove(&paths).expect("removed");
    let missing = recover(&paths, (SESSION, Upto::Sealed), bench.disk.as_ref(), || {
        Ok(())
    })
    .expect_err("it is missing");
    assert!(missing.to_string().contains("journal-a"), "{missing}");
}

#[test]
fn what_could_not_be_carried_over_stays_in_the_journal() {
    let bench = Bench::started();
    bench.write(0, 1);
    bench.mark(true);
    *lock(&bench.disk.fails) = true;
    assert!(bench.apply().is_err());
    *lock(&bench.disk.fails) = false;
    let bench = bench.restart();
    bench.apply().expect("carried over");
    assert_eq!(bench.byte(0), 1);
}

#[test]
fn a_file_that_was_torn_anywhere_yields_only_what_a_marker_covers() {
    let bench = Bench::started();
    bench.write(0, 1);
    bench.mark(false);
    bench.write(512, 2);
    bench.mark(true);
    let whole = fs::read(&paths(&bench.folder)[0]).expect("there");
    let bench = bench.restart();
    for cut in (0..=whole.len()).step_by(37).chain([whole.len()]) {
        let mut torn = whole.clone();
        torn.truncate(cut);
        torn.extend_from_slice(&[0; 700]);
        fs::write(&paths(&bench.folder)[0], torn).expect("written");
        let disk = Disk::default();
        lock(&disk.bytes).resize(4096, 0xee);
        recover(
            &paths(&bench.folder),
            (SESSION, Upto::Sealed),
            &disk,
            || Ok(()),
        )
        .expect("it is only shorter");
        let expected = if cut == whole.len() {
            [1, 2]
        } else {
            [0xee, 0xee]
        };
        let bytes = lock(&disk.bytes);
        assert_eq!([bytes[0], bytes[512]], expected, "cut at {cut}");
    }
}

#[test]
fn a_journal_that_was_taken_away_while_one_waited_for_it_is_none() {
    let bench = Bench::started();
    bench.write(0, 1);
    bench.mark(true);
    let (paths, disk) = (paths(&bench.folder), Arc::clone(&bench.disk));
    let files = paths.clone();
    let waits = thread::spawn(move || {
        recover(&files, (SESSION, Upto::Sealed), disk.as_ref(), || Ok(())).map(drop)
    });
    thread::sleep(Duration::from_millis(200));
    remove(&paths).expect("removed");
    let bench = bench.restart();
    let error = waits.join().expect("no panic").expect_err("it is gone");
    assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    assert_eq!(bench.byte(0), 0xee);
}

/// Cuts 1 to 4, of which 1 and 3 never complete, with a write to a sector of its own before each and one after the last.
fn four_cuts() -> Bench {
    let bench = Bench::started();
    for cut in 1..=4_u8 {
        bench.write(u64::from(cut) * 512, cut);
        bench.mark_at(u64::from(cut), true);
    }
    bench.write(0, 5);
    bench.mark_at(5, false);
    bench
}

#[test]
fn a_journal_is_carried_over_up_to_a_cut_within_it_and_no_further() {
    let bench = four_cuts();
    bench.apply_upto(Upto::Nothing).expect("it is open");
    bench
        .apply_upto(Upto::Cut(9))
        .expect("there is no such cut");
    assert_eq!(bench.sectors(), [0xee; 5]);
    // Cut 1 ended the first file; 2 to 4 lie in the other one.
    bench.apply_upto(Upto::Cut(2)).expect("carried over");
    assert_eq!(bench.sectors(), [0xee, 1, 2, 0xee, 0xee]);
    let first = fs::metadata(&paths(&bench.folder)[0]).expect("a file");
    assert_eq!(
        first.len(),
        0,
        "what was carried over to its end is emptied"
    );
    bench.write(3 * 512, 6);
    bench.mark_at(6, true);
    bench.apply_upto(Upto::Cut(4)).expect("carried over");
    assert_eq!(bench.sectors(), [0xee, 1, 2, 3, 4]);
    bench.apply_upto(Upto::Cut(6)).expect("carried over");
    assert_eq!(bench.sectors(), [5, 1, 2, 6, 4]);
}

#[test]
fn what_lies_behind_a_cut_stays_over_a_crash_and_can_be_carried_over_then() {
    let bench = four_cuts();
    bench.apply_upto(Upto::Cut(2)).expect("carried over");
    let bench = bench.restart();
    bench.apply_upto(Upto::Cut(2)).expect("again does no harm");
    assert_eq!(bench.sectors(), [0xee, 1, 2, 0xee, 0xee]);
    bench.write(5 * 512, 7);
    bench.mark_at(7, true);
    bench.apply_upto(Upto::Cut(7)).expect("carried over");
    assert_eq!(bench.sectors(), [5, 1, 2, 3, 4, 7]);
}

#[test]
fn a_promotion_up_to_a_cut_takes_that_and_nothing_behind_it() {
    for cut in 1..=4_u8 {
        let bench = four_cuts();
        let Bench {
            folder,
            disk,
            journal,
        } = bench;
        drop(journal);
        let upto = Upto::Cut(cut.into());
        let all = || Ok(());
        recover(&paths(&folder), (SESSION, upto), disk.as_ref(), all).expect("recovered");
        let bytes = lock(&disk.bytes);
        for sector in 1..=4_u8 {
            let expected = if sector <= cut { sector } else { 0xee };
            assert_eq!(bytes[usize::from(sector) * 512], expected, "cut {cut}");
        }
        assert_eq!(bytes[0], 0xee);
    }
}
