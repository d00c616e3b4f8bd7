//! Promises of the engine that need no power cut: what a disk holds, what it costs, how it fails.

mod programs;
#[expect(
    unreachable_pub,
    dead_code,
    reason = "a test binary has no outside and uses a part"
)]
mod simulation;

use std::path::Path;
use std::sync::{Arc, Mutex};

use programs::{run, succeed, switched_off};
use simulation::model::{Model, SECTOR};
use simulation::random::Random;
use simulation::scenario::{MIB, Variant, new_image, open};
use simulation::world::World;
use vdisk::create::CreateOptions;
use vdisk::disk::{Disk, ImageFormat, OpenOptions, create_file, open_engine, random_bits};
use vdisk::engine::{Engine, FileOpKind, Mark, OpId, Outcome, Request, RequestId};
use vdisk::storage::{FileStorage, MemoryStorage, Storage};
use vdisk::units::GuestOffset;
use vdisk::{ErrorKind, Result};

const VARIANT: Variant = Variant {
    alignment: 1,
    cache: 1 << 20,
    block: 1 << 20,
    flush: 10,
    child: None,
    tracked: false,
};

fn write(offset: u64, len: u64) -> Request {
    Request::Write {
        offset: GuestOffset(offset),
        len,
        fua: false,
    }
}

/// A memory file that counts flushes and fails on demand.
#[derive(Clone, Default)]
struct Faulty(Arc<Mutex<Faults>>);

#[derive(Default)]
struct Faults {
    file: MemoryStorage,
    flushes: u64,
    fail_flush: bool,
    no_room: bool,
}

impl Storage for Faulty {
    fn len(&mut self) -> std::io::Result<u64> {
        self.0.lock().unwrap().file.len()
    }
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.lock().unwrap().file.read_at(offset, buffer)
    }
    fn write_at(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.lock().unwrap().file.write_at(offset, data)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        let mut faults = self.0.lock().unwrap();
        faults.flushes += 1;
        if faults.fail_flush {
            Err(std::io::Error::other("medium"))
        } else {
            Ok(())
        }
    }
    fn set_len(&mut self, len: u64) -> std::io::Result<()> {
        let mut faults = self.0.lock().unwrap();
        if faults.no_room && len > faults.file.length() {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        faults.file.set_len(len)
    }
    fn zero(&mut self, offset: u64, len: u64, keep: bool) -> std::io::Result<()> {
        self.0.lock().unwrap().file.zero(offset, len, keep)
    }
    fn reserve(&mut self, _offset: u64, _len: u64) -> std::io::Result<()> {
        if self.0.lock().unwrap().no_room {
            Err(std::io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }
    fn next_data(&mut self, offset: u64) -> std::io::Result<Option<u64>> {
        self.0.lock().unwrap().file.next_data(offset)
    }
}

fn faulty_disk() -> (Faulty, Disk) {
    let storage = Faulty::default();
    storage.0.lock().unwrap().file = new_image(&VARIANT, &mut Random::new(1));
    let mut opened = storage.clone();
    let engine = open_engine(
        &mut opened,
        ImageFormat::Vhdx,
        &OpenOptions::default(),
        &mut random_bits,
    );
    (storage, Disk::new(Box::new(opened), engine.unwrap()))
}

#[test]
fn a_guest_flush_costs_one_host_flush_however_much_is_pending_and_two_if_order_matters()
-> Result<()> {
    let (storage, mut disk) = faulty_disk();
    let spent = |storage: &Faulty| std::mem::take(&mut storage.0.lock().unwrap().flushes);
    disk.write_at(0, &[1; 4096])?;
    disk.flush()?;
    spent(&storage);
    for turn in 0..100 {
        for block in turn * 30 + 1..=turn * 30 + 30 {
            disk.write_at(block * MIB, &[1; 4096])?;
        }
        assert_eq!(spent(&storage), 0, "no flush without being asked");
        disk.flush()?;
        assert_eq!(spent(&storage), 1);
    }
    // Nothing pending.
    disk.write_at(0, &[2; 4096])?;
    disk.flush()?;
    assert_eq!(spent(&storage), 1);
    // The zeroing of space that is used again must be durable before an entry names it.
    disk.discard(0, 3000 * MIB)?;
    disk.flush()?;
    spent(&storage);
    for turn in 0..50 {
        for block in turn * 30..turn * 30 + 30 {
            disk.write_at(block * MIB, &[3; 4096])?;
        }
        assert_eq!(spent(&storage), 0, "no flush without being asked");
        disk.flush()?;
        assert_eq!(spent(&storage), 2);
    }
    Ok(())
}

/// Do all that the engine wants but host flushes; those that it has asked for.
fn run_to_host_flush(engine: &mut Engine, file: &mut MemoryStorage) -> Vec<OpId> {
    let mut flushes = Vec::new();
    while let Some(op) = engine.next_op() {
        let outcome = match op.kind {
            FileOpKind::Flush => {
                flushes.push(op.id);
                continue;
            }
            FileOpKind::Read { at, len } => {
                let mut data = vec![0; len as usize];
                file.read_at(at.0, &mut data).unwrap();
                Outcome::Data(data.into())
            }
            FileOpKind::Write { at, data } => {
                file.write_at(at.0, &data).unwrap();
                Outcome::Done
            }
            FileOpKind::SetLen { len } => {
                file.set_len(len).unwrap();
                Outcome::Done
            }
            // What the guest writes is of no interest here.
            _ => Outcome::Done,
        };
        engine.complete(op.id, outcome);
    }
    flushes
}

#[test]
fn flushes_in_a_row_cost_one_host_flush_each_and_end_with_it() {
    const TURNS: u64 = 200;
    let mut random = Random::new(1);
    let mut file = new_image(&VARIANT, &mut random);
    let mut engine = open(&mut file, &VARIANT, &mut random).unwrap();
    // The first write opens the session.
    engine.submit(RequestId(0), write(0, 4096));
    let mut running = run_to_host_flush(&mut engine, &mut file);
    while let Some(flush) = running.pop() {
        engine.complete(flush, Outcome::Done);
        running = run_to_host_flush(&mut engine, &mut file);
    }
    let (mut host_flushes, mut ended) = (0, Vec::new());
    for turn in 1.. {
        if turn <= TURNS {
            // A block that is absent, so that each flush has something to publish.
            engine.submit(RequestId(2 * turn), write(turn * MIB, 4096));
            engine.submit(RequestId(2 * turn + 1), Request::Flush);
        }
        running.extend(run_to_host_flush(&mut engine, &mut file));
        assert!(running.len() <= 1, "one host flush at a time");
        while let Some(completion) = engine.next_completion() {
            if completion.request.0 % 2 == 1 {
                assert!(
                    turn - completion.request.0 / 2 <= 1,
                    "a flush waited too long"
                );
                ended.push(completion.request.0 / 2);
            }
        }
        let Some(flush) = running.pop() else { break };
        host_flushes += 1;
        engine.complete(flush, Outcome::Done);
    }
    assert_eq!(ended, (1..=TURNS).collect::<Vec<_>>());
    assert!(host_flushes <= TURNS, "{host_flushes} host flushes");
}

#[test]
fn a_mark_is_not_logged_before_what_was_written_is_durable() {
    for park in [false, true] {
        let mut random = Random::new(1);
        let mut file = new_image(&VARIANT, &mut random);
        let mut engine = open(&mut file, &VARIANT, &mut random).unwrap();
        engine.submit(RequestId(0), write(0, 4096));
        engine.submit(RequestId(1), Request::Flush);
        let mut running = run_to_host_flush(&mut engine, &mut file);
        while let Some(flush) = running.pop() {
            engine.complete(flush, Outcome::Done);
            running.extend(run_to_host_flush(&mut engine, &mut file));
        }
        // A new block, whose entry alone could be logged before its data is durable.
        engine.submit(RequestId(2), write(MIB, 4096));
        assert_eq!(run_to_host_flush(&mut engine, &mut file), []);
        while engine.next_completion().is_some() {}
        engine.submit(
            RequestId(3),
            if park {
                Request::Park {
                    mark: Some(Mark::HandedOver),
                }
            } else {
                Request::Flush
            },
        );
        let first = engine.next_op().expect("there is something to do").kind;
        assert_eq!(matches!(first, FileOpKind::Flush), park, "{first:?}");
    }
}

#[test]
fn a_full_host_disk_fails_that_write_and_nothing_else() -> Result<()> {
    let (storage, mut disk) = faulty_disk();
    disk.write_at(0, &[1; 4096])?;
    storage.0.lock().unwrap().no_room = true;
    let mut failed = 0;
    for block in 1..4000 {
        if let Err(error) = disk.write_at(block * MIB, &[3; 4096]) {
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
            failed += 1;
            disk.write_at(512, &[2; 512])?;
            disk.flush()?;
            break;
        }
    }
    assert_eq!(failed, 1, "the file was to be full");
    storage.0.lock().unwrap().no_room = false;
    disk.write_at(4000 * MIB, &[4; 4096])?;
    disk.flush()?;
    let mut back = [0; 1024];
    disk.read_at(0, &mut back)?;
    assert_eq!((back[0], back[512]), (1, 2));
    disk.close()
}

#[test]
fn a_full_host_disk_at_the_first_write_leaves_a_disk_that_works_once_there_is_room() -> Result<()> {
    let (storage, mut disk) = faulty_disk();
    storage.0.lock().unwrap().no_room = true;
    let error = disk.write_at(0, &[1; 4096]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    storage.0.lock().unwrap().no_room = false;
    disk.write_at(0, &[1; 4096])?;
    disk.close()
}

#[test]
fn a_failed_flush_fails_the_disk_for_good_and_reads_go_on() -> Result<()> {
    let (storage, mut disk) = faulty_disk();
    disk.write_at(0, &[1; 4096])?;
    disk.flush()?;
    storage.0.lock().unwrap().fail_flush = true;
    disk.write_at(4096, &[1; 4096])?;
    assert_eq!(disk.flush().unwrap_err().kind(), ErrorKind::Failed);
    storage.0.lock().unwrap().fail_flush = false;
    assert_eq!(
        disk.flush().unwrap_err().kind(),
        ErrorKind::Failed,
        "a retry proves nothing"
    );
    assert_eq!(
        disk.write_at(0, &[2; 512]).unwrap_err().kind(),
        ErrorKind::Failed
    );
    let mut back = [0; 512];
    disk.read_at(0, &mut back)?;
    assert_eq!(back[0], 1);
    Ok(())
}

#[test]
fn concurrent_first_writes_to_one_recycled_block_all_survive() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let mut image = new_image(&VARIANT, &mut random);
        let engine = open(&mut image, &VARIANT, &mut random).unwrap();
        let mut world = World::new(image, engine, Model::default(), Random::new(seed));
        for round in 0..4 {
            // Fill a block, trim it, flush: its space is used again for block 7.
            world.submit(write((20 + round) * MIB, MIB));
            world.run_dry();
            world.submit(Request::Discard {
                offset: GuestOffset((20 + round) * MIB),
                len: MIB,
            });
            world.submit(Request::Flush);
            world.run_dry();
            for page in 0..64 {
                world.submit(write((7 + 3 * round) * MIB + page * 4096, 4096));
                if random.one_in(2) {
                    world.step();
                }
            }
            world.run_dry();
            world.submit(Request::Read {
                offset: GuestOffset((7 + 3 * round) * MIB),
                len: MIB,
            });
            world.run_dry();
        }
    }
}

#[test]
fn stale_bytes_beyond_the_last_block_never_show_in_a_new_one() -> Result<()> {
    let mut random = Random::new(3);
    let mut image = new_image(&VARIANT, &mut random);
    // What a crash leaves: the file is longer than anything names, and not zero there.
    let end = image.length();
    image.put(end, &vec![0xAB; 8 << 20]);
    let engine = open_engine(
        &mut image,
        ImageFormat::Vhdx,
        &OpenOptions::default(),
        &mut random_bits,
    )?;
    let mut disk = Disk::new(Box::new(image), engine);
    for block in 0..6 {
        disk.write_at(block * MIB + 4096, &[1; 512])?;
    }
    let mut back = vec![0xEE; MIB as usize];
    for block in 0..6 {
        disk.read_at(block * MIB, &mut back)?;
        assert_eq!(
            back.iter().filter(|byte| **byte != 0).count(),
            512,
            "block {block}"
        );
    }
    Ok(())
}

#[test]
fn a_disk_holds_what_a_byte_vector_would() -> Result<()> {
    for seed in 0..30 {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let variant = Variant::of_seed(seed);
        let mut image = new_image(&variant, &mut random);
        let engine = open(&mut image, &variant, &mut random).unwrap();
        let mut disk = Disk::new(Box::new(image), engine);
        let mut plain = vec![0_u8; 9 << 20];
        if variant.child.is_some() {
            // Shorter than the part that is looked at: what lies beyond it is zero.
            let parent = &mut plain[..(6 << 20) + 512];
            parent.fill_with(|| random.next() as u8);
            let engine = Engine::raw(parent.len() as u64, 1, true);
            let storage = MemoryStorage::from_bytes(parent);
            disk = disk.over(Disk::new(Box::new(storage), engine));
        }
        for step in 0..400_u64 {
            let offset = random.below(plain.len() as u64 - 1);
            let len = 1 + random.below((plain.len() as u64 - offset).min(3 << 20));
            let range = offset as usize..(offset + len) as usize;
            match random.below(6) {
                0..=2 => {
                    let short = range.start..range.start + range.len().min(70_000);
                    plain[short.clone()].fill(step as u8);
                    disk.write_at(offset, &plain[short])?;
                }
                3 => {
                    plain[range].fill(0);
                    disk.zero(offset, len)?;
                }
                4 => disk.flush()?,
                _ => {
                    let mut back = vec![0xEE; range.len()];
                    disk.read_at(offset, &mut back)?;
                    assert!(back == plain[range], "step {step}: {len} bytes at {offset}");
                }
            }
        }
        disk.close()?;
    }
    Ok(())
}

/// Let another program do its part, if there are to be any.
fn other(program: &str, arguments: &[&str]) {
    if !switched_off() {
        succeed(program, arguments);
    }
}

fn create_at(path: &Path, size: u64) -> Result<()> {
    create_file(path, CreateOptions::new(size, &mut random_bits))
}

#[test]
fn qemu_reads_what_we_wrote_and_we_read_what_qemu_wrote() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (ours, raw) = (
        folder.path().join("disk.vhdx"),
        folder.path().join("disk.raw"),
    );
    let (ours_name, raw_name) = (ours.to_str().unwrap(), raw.to_str().unwrap());
    create_at(&ours, 5 << 30)?;
    std::fs::File::create(&raw)
        .unwrap()
        .set_len(5 << 30)
        .unwrap();
    let mut disk = Disk::open(&ours, &OpenOptions::default())?;
    let mut plain = Disk::open(&raw, &OpenOptions::default())?;
    let mut random = Random::new(5);
    for step in 0..200_u64 {
        let offset = random.below((5 << 30) - (1 << 20)) / SECTOR * SECTOR;
        let data = vec![step as u8 + 1; (1 + random.below(200)) as usize * SECTOR as usize];
        disk.write_at(offset, &data)?;
        plain.write_at(offset, &data)?;
    }
    disk.close()?;
    plain.close()?;
    other("qemu-img", &["check", "-f", "vhdx", ours_name]);
    other(
        "qemu-img",
        &["compare", "-f", "vhdx", "-F", "raw", ours_name, raw_name],
    );
    let writes = [
        "write -P 77 3G 1M",
        "write -P 78 512 512",
        "write -P 79 4500M 64k",
    ];
    for name in [ours_name, raw_name] {
        let format = if name == ours_name { "vhdx" } else { "raw" };
        for write in writes {
            other("qemu-io", &["-f", format, "-c", write, name]);
        }
    }
    let mut disk = Disk::open(&ours, &OpenOptions::default())?;
    let mut plain = Disk::open(&raw, &OpenOptions::default())?;
    let (mut one, mut two) = (vec![0; 4 << 20], vec![0; 4 << 20]);
    for offset in (0..5 << 30).step_by(4 << 20) {
        disk.read_at(offset, &mut one)?;
        plain.read_at(offset, &mut two)?;
        assert!(one == two, "at {offset:#x}");
    }
    Ok(())
}

#[test]
fn an_image_left_dirty_is_replayed_alike_by_qemu_and_by_us() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (dirty, copy) = (
        folder.path().join("dirty.vhdx"),
        folder.path().join("copy.vhdx"),
    );
    create_at(&dirty, 3 << 30)?;
    let mut disk = Disk::open(&dirty, &OpenOptions::default())?;
    for block in 0..700_u64 {
        disk.write_at(block * 4 * MIB, &[block as u8; 4096])?;
        if block % 50 == 0 {
            disk.flush()?;
        }
    }
    disk.flush()?;
    // As after a SIGKILL: neither parked nor closed.
    drop(disk);
    std::fs::copy(&dirty, &copy).unwrap();
    let (dirty_name, copy_name) = (dirty.to_str().unwrap(), copy.to_str().unwrap());
    // Opening it for writing is what makes qemu replay the log.
    other("qemu-io", &["-f", "vhdx", "-c", "read 0 512", copy_name]);
    let mut read_only = Disk::open(
        &dirty,
        &OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        },
    )?;
    let mut ours = vec![0; 4096];
    read_only.read_at(699 * 4 * MIB, &mut ours)?;
    assert_eq!(ours[0], 699_u64 as u8, "a read-only open replays in memory");
    drop(read_only);
    Disk::open(&dirty, &OpenOptions::default())?.close()?;
    other("qemu-img", &["check", "-f", "vhdx", dirty_name]);
    other("qemu-img", &["check", "-f", "vhdx", copy_name]);
    other(
        "qemu-img",
        &["compare", "-f", "vhdx", "-F", "vhdx", dirty_name, copy_name],
    );
    Ok(())
}

#[test]
fn a_second_writer_is_refused_and_told_why() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vhdx");
    create_at(&path, 1 << 30)?;
    let first = Disk::open(&path, &OpenOptions::default())?;
    let error = Disk::open(&path, &OpenOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.to_string().contains("disk.vhdx"), "{error}");
    let read_only = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    assert_eq!(
        Disk::open(&path, &read_only).unwrap_err().kind(),
        ErrorKind::Locked
    );
    drop(first);
    let _one = Disk::open(&path, &read_only)?;
    let _two = Disk::open(&path, &read_only)?;
    Ok(())
}

#[test]
fn a_disk_that_was_closed_is_free_although_a_starting_process_still_shares_its_file() -> Result<()>
{
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vhdx");
    create_at(&path, 1 << 30)?;
    let storage = FileStorage::open(&path, true)?;
    // What a child has between being made and running its program.
    let _shared = storage.file().try_clone().unwrap();
    assert_eq!(
        FileStorage::open(&path, true).unwrap_err().kind(),
        ErrorKind::Locked
    );
    drop(storage);
    FileStorage::open(&path, true).map(drop)
}

#[test]
fn a_disk_with_a_mark_is_refused_by_us_and_by_qemu_until_the_mark_is_gone() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vhdx");
    create_at(&path, 1 << 30)?;
    let name = path.to_str().unwrap();
    for mark in [Mark::HandedOver, Mark::Incomplete] {
        let mut disk = Disk::open(&path, &OpenOptions::default())?;
        disk.write_at(0, &[9; 4096])?;
        disk.park(Some(mark))?;
        drop(disk);
        let error = Disk::open(&path, &OpenOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotOwned, "{error}");
        for (program, arguments) in [("qemu-img", &["info", name][..]), ("vhdiinfo", &[name])] {
            assert!(
                switched_off() || !run(program, arguments).status.success(),
                "{program} opened a disk that is {mark:?}"
            );
        }
        let allow = OpenOptions {
            allow_marked: true,
            ..OpenOptions::default()
        };
        let mut disk = Disk::open(&path, &allow)?;
        disk.park(None)?;
        drop(disk);
        other("qemu-img", &["check", name]);
        other("vhdiinfo", &[name]);
    }
    Ok(())
}
