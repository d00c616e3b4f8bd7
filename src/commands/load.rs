//! `diskferry load`: the client of the demo and of the tests. It writes at a steady rate and notes
//! every write; afterwards it tells whether a disk holds what was acknowledged.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::args::{LoadRunArgs, LoadVerifyArgs};
use crate::device::{Device, Done, Op};
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::latency;
use crate::load::ledger::{Area, Entry, Ledger};
use crate::load::pattern::{self, Found};
use crate::load::phases::{PhaseSummary, Phases};
use crate::plan::{DiskName, Load};
use crate::report::Report;

/// The longest time without a look at signals and phases.
const LOOK: Duration = Duration::from_millis(20);
/// Reads outstanding while a disk is checked.
const VERIFY_DEPTH: usize = 32;
/// So many wrong blocks are named, the rest counted.
const NAMED: usize = 20;

#[derive(Serialize)]
struct LoadBody {
    disk: String,
    seconds: f64,
    writes: u64,
    flushes: u64,
    phases: Vec<PhaseSummary>,
}

/// Writes until its time is over or a signal comes, then waits for everything and flushes.
pub(crate) fn run(args: &LoadRunArgs, report: Report) -> Result<()> {
    let plan = Load::new(args)?;
    interrupt::listen();
    // A flush is outstanding beside the writes.
    let device = Device::open(&plan.disk, plan.depth + 1, true)?;
    if plan.area.offset.saturating_add(plan.area.length) > device.size() {
        return Err(Failure::usage("the area goes beyond the disk").hint("see --offset, --length"));
    }
    let mut loader = Loader::new(&plan, device)?;
    let started = Instant::now();
    let ended = loader.go(started);
    // Whatever happened, the ledger says what was acknowledged before it.
    let noted = loader
        .ledger
        .flush()
        .map_err(|e| cannot_note(&plan.ledger, &e));
    ended.and(noted)?;
    let body = LoadBody {
        disk: plan.disk.to_string(),
        seconds: started.elapsed().as_secs_f64(),
        writes: loader.writes,
        flushes: loader.flushes,
        phases: loader.phases.summaries(),
    };
    loader.device.close()?;
    report.result("summary", &body, people)
}

/// A load under way.
struct Loader<'a> {
    plan: &'a Load,
    device: Device,
    ledger: BufWriter<File>,
    phases: Phases,
    state: u64,
    sequence: u64,
    writes: u64,
    flushes: u64,
    in_flight: HashMap<u64, InFlight>,
    /// Blocks that a write in flight goes to.
    busy: HashSet<u64>,
    flushing: bool,
}

struct InFlight {
    sequence: u64,
    at: Instant,
    /// The block of a write; `None` for a flush.
    index: Option<u64>,
}

impl<'a> Loader<'a> {
    fn new(plan: &'a Load, device: Device) -> Result<Self> {
        let (ledger, last) = open_ledger(&plan.ledger, plan.area)?;
        Ok(Self {
            plan,
            device,
            ledger,
            phases: Phases::new(plan.phases.clone()),
            state: plan.area.seed ^ last.rotate_left(17),
            sequence: last,
            writes: 0,
            flushes: 0,
            in_flight: HashMap::new(),
            busy: HashSet::new(),
            flushing: false,
        })
    }

    fn go(&mut self, started: Instant) -> Result<()> {
        let every = Duration::from_secs(1) / u32::try_from(self.plan.rate).unwrap_or(u32::MAX);
        let mut due = started;
        loop {
            let now = Instant::now();
            self.phases.look(now);
            let over = self
                .plan
                .duration
                .is_some_and(|limit| now - started >= limit);
            if over || interrupt::requested() {
                break;
            }
            // What could not be sent in time is not made up for: the rate is steady, not an average.
            due = due.max(now.checked_sub(every).unwrap_or(now));
            while due <= now && self.busy.len() < self.plan.depth {
                self.write()?;
                due += every;
            }
            let limit = due
                .saturating_duration_since(Instant::now())
                .clamp(Duration::from_micros(50), LOOK);
            self.wait(limit)?;
        }
        while !self.in_flight.is_empty() {
            self.wait(LOOK)?;
        }
        self.flush()?;
        while !self.in_flight.is_empty() {
            self.wait(LOOK)?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let blocks = self.plan.area.blocks();
        let mut index = pattern::next(&mut self.state) % blocks;
        while self.busy.contains(&index) {
            index = (index + 1) % blocks;
        }
        let sequence = self.next();
        let offset = self.plan.area.place(index);
        let mut data = vec![0; self.plan.area.block as usize];
        pattern::fill(&mut data, self.plan.area.seed, offset, sequence);
        self.note(Entry::Issued { sequence, index })?;
        let at = Instant::now();
        let id = self.device.submit(Op::Write {
            offset,
            data: &data,
        })?;
        self.busy.insert(index);
        let index = Some(index);
        self.in_flight.insert(
            id,
            InFlight {
                sequence,
                at,
                index,
            },
        );
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let sequence = self.next();
        self.note(Entry::FlushSent { sequence })?;
        let at = Instant::now();
        let id = self.device.submit(Op::Flush)?;
        self.in_flight.insert(
            id,
            InFlight {
                sequence,
                at,
                index: None,
            },
        );
        self.flushing = true;
        Ok(())
    }

    /// Takes up what is done within `limit`.
    fn wait(&mut self, limit: Duration) -> Result<()> {
        if self.in_flight.is_empty() {
            std::thread::sleep(limit);
            return Ok(());
        }
        let mut limit = limit;
        while let Some(done) = self.device.wait(Some(limit))? {
            self.done(&done)?;
            limit = Duration::ZERO;
        }
        Ok(())
    }

    fn done(&mut self, done: &Done) -> Result<()> {
        let now = Instant::now();
        let Some(InFlight {
            sequence,
            at,
            index,
        }) = self.in_flight.remove(&done.id)
        else {
            return Ok(());
        };
        let Some(index) = index else {
            self.note(Entry::Flushed { sequence })?;
            self.phases.flushed(now - at);
            self.flushes += 1;
            self.flushing = false;
            return Ok(());
        };
        self.note(Entry::Acknowledged { sequence })?;
        self.phases.wrote(now - at, now);
        self.busy.remove(&index);
        self.writes += 1;
        if self.writes.is_multiple_of(self.plan.flush_every) && !self.flushing {
            self.flush()?;
        }
        Ok(())
    }

    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn note(&mut self, entry: Entry) -> Result<()> {
        writeln!(self.ledger, "{entry}").map_err(|e| cannot_note(&self.plan.ledger, &e))
    }
}

/// Opens a ledger for more entries; the last sequence number in it, 0 for a new one.
fn open_ledger(path: &Path, area: Area) -> Result<(BufWriter<File>, u64)> {
    let failed = |e| cannot_note(path, &e);
    let Ok(text) = fs::read_to_string(path) else {
        let mut ledger = BufWriter::new(File::create(path).map_err(failed)?);
        writeln!(ledger, "{area}").map_err(failed)?;
        return Ok((ledger, 0));
    };
    let known = parse(path, &text)?;
    if known.area != area {
        let what = format!("{}: is the ledger of another area", path.display());
        return Err(Failure::usage(what).hint("give a new file, or the same area, block and seed"));
    }
    let file = OpenOptions::new().append(true).open(path).map_err(failed)?;
    // A line that a killed client left without its end is no entry.
    let whole = text.rfind('\n').map_or(0, |end| end as u64 + 1);
    file.set_len(whole).map_err(failed)?;
    let mut ledger = BufWriter::new(file);
    let sequence = known.last;
    writeln!(ledger, "{}", Entry::Restarted { sequence }).map_err(failed)?;
    Ok((ledger, sequence))
}

fn parse(path: &Path, text: &str) -> Result<Ledger> {
    Ledger::parse(text)
        .map_err(|why| Failure::new(Exit::Failed, format!("{}: {why}", path.display())))
}

fn cannot_note(path: &Path, error: &std::io::Error) -> Failure {
    Failure::io(
        format!("{}: the ledger cannot be written", path.display()),
        error,
    )
}

fn people(body: &LoadBody) -> String {
    let mut text = format!(
        "{}: {} writes and {} flushes in {:.1} s\n",
        body.disk, body.writes, body.flushes, body.seconds
    );
    for PhaseSummary {
        phase,
        writes,
        longest_gap_us,
        ..
    } in &body.phases
    {
        let gap = Duration::from_micros(*longest_gap_us).as_secs_f64() * 1e6;
        let _ = writeln!(
            text,
            "{phase:<10} {:>8} writes  p50 {:>8}  p99 {:>8}  max {:>8}  longest gap {}",
            writes.count,
            latency::show(writes.p50_us),
            latency::show(writes.p99_us),
            latency::show(writes.max_us),
            latency::show(gap),
        );
    }
    text
}

#[derive(Serialize)]
struct Verified {
    disk: String,
    writes_acknowledged: u64,
    blocks: u64,
    wrong: u64,
    /// The first of the wrong ones, by their offset on the disk.
    wrong_offsets: Vec<u64>,
}

/// Reads every block that was ever written and compares it with what was acknowledged.
pub(crate) fn verify(args: &LoadVerifyArgs, report: Report) -> Result<()> {
    let disk = DiskName::new(&args.disk, None)?;
    let text = fs::read_to_string(&args.ledger)
        .map_err(|e| Failure::io(format!("{}: cannot be read", args.ledger.display()), &e))?;
    let ledger = parse(&args.ledger, &text)?;
    let mut device = Device::open(&disk, VERIFY_DEPTH, false)?;
    let mut body = Verified {
        disk: disk.to_string(),
        writes_acknowledged: ledger.acknowledged,
        blocks: ledger.blocks.len() as u64,
        wrong: 0,
        wrong_offsets: Vec::new(),
    };
    compare(&ledger, &mut device, args.flushed_only, &mut |offset| {
        body.wrong += 1;
        if body.wrong_offsets.len() < NAMED {
            body.wrong_offsets.push(offset);
        }
    })?;
    device.close()?;
    report.result("verify", &body, |body| {
        format!(
            "{}: {} blocks of {} acknowledged writes read, {} wrong",
            body.disk, body.blocks, body.writes_acknowledged, body.wrong
        )
    })?;
    if body.wrong == 0 {
        return Ok(());
    }
    let what = format!(
        "{}: {} blocks do not hold what was acknowledged",
        body.disk, body.wrong
    );
    Err(Failure::new(Exit::Mismatch, what)
        .hint(format!("the first ones are at {:?}", body.wrong_offsets)))
}

/// Names to `wrong` the offset of every block that breaks its promise.
fn compare(
    ledger: &Ledger,
    device: &mut Device,
    flushed_only: bool,
    wrong: &mut dyn FnMut(u64),
) -> Result<()> {
    let area = ledger.area;
    let len = u32::try_from(area.block).map_err(|_| Failure::usage("the blocks are too large"))?;
    let mut rest = ledger.blocks.iter();
    let mut pending = HashMap::new();
    loop {
        while pending.len() < VERIFY_DEPTH {
            let Some((index, block)) = rest.next() else {
                break;
            };
            let offset = area.place(*index);
            let id = device.submit(Op::Read { offset, len })?;
            pending.insert(id, (offset, *block));
        }
        let Some(done) = device.wait(None)? else {
            return Ok(());
        };
        if let Some((offset, block)) = pending.remove(&done.id) {
            let found: Found = pattern::read(&done.data, area.seed, offset);
            if !block.keeps(found, flushed_only) {
                wrong(offset);
            }
        }
        device.recycle(done.data);
    }
}
