//! `diskferry bench`: how fast a disk or a server is.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::args::{BenchArgs, Pattern};
use crate::device::{Device, Op};
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::latency::{self, Latency, Summary};
use crate::load::pattern;
use crate::plan::{Bench, Until};
use crate::progress::per_second;
use crate::report::Report;
use crate::size;

#[derive(Serialize)]
struct Body {
    disk: String,
    pattern: Pattern,
    block_bytes: u32,
    depth: usize,
    flush_every: Option<u64>,
    prepared: bool,
    seconds: f64,
    ops: u64,
    ops_per_second: u64,
    bytes: u64,
    bytes_per_second: u64,
    latency: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    flush_latency: Option<Summary>,
}

pub(crate) fn run(args: &BenchArgs, report: Report) -> Result<()> {
    let plan = Bench::new(args)?;
    interrupt::listen();
    let mut device = Device::open(&plan.disk, plan.depth + 1, plan.pattern.writes())?;
    let blocks = blocks(&plan, device.size())?;
    if plan.prepare {
        prepare(&plan, &mut device, blocks)?;
    }
    let mut run = Run::new(&plan, blocks);
    run.go(&mut device)?;
    let body = run.body();
    device.close()?;
    report.result("bench", &body, people)
}

/// How many blocks the area has.
fn blocks(plan: &Bench, size: u64) -> Result<u64> {
    let rest = size.saturating_sub(plan.offset);
    let blocks = plan.length.unwrap_or(rest).min(rest) / u64::from(plan.block);
    if blocks == 0 {
        let what = format!(
            "the area from {} has no whole block",
            size::exact(plan.offset)
        );
        return Err(Failure::usage(what).hint(format!(
            "the disk has {}; see --offset, --length",
            size::show(size)
        )));
    }
    Ok(blocks)
}

/// Writes the whole area once, so that the measured writes find their blocks allocated.
fn prepare(plan: &Bench, device: &mut Device, blocks: u64) -> Result<()> {
    const PIECE: u64 = 1 << 20;
    let mut piece = vec![0; PIECE as usize];
    let mut state = plan.seed;
    piece.fill_with(|| pattern::next(&mut state) as u8);
    let end = plan.offset + blocks * u64::from(plan.block);
    for offset in (plan.offset..end).step_by(PIECE as usize) {
        interrupt::check("the disk was partly overwritten")?;
        let data = &piece[..PIECE.min(end - offset) as usize];
        device.call(Op::Write { offset, data })?;
    }
    device.call(Op::Flush)
}

/// A measurement under way.
struct Run<'a> {
    plan: &'a Bench,
    blocks: u64,
    block: Vec<u8>,
    state: u64,
    sent: u64,
    pending: HashMap<u64, Sent>,
    latency: Latency,
    flushes: Latency,
    took: Duration,
}

struct Sent {
    at: Instant,
    flush: bool,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Bench, blocks: u64) -> Self {
        let mut state = plan.seed;
        let mut block = vec![0; plan.block as usize];
        block.fill_with(|| pattern::next(&mut state) as u8);
        Self {
            plan,
            blocks,
            block,
            state,
            sent: 0,
            pending: HashMap::new(),
            latency: Latency::new(),
            flushes: Latency::new(),
            took: Duration::ZERO,
        }
    }

    /// Keeps `depth` requests outstanding until the end, then waits for them.
    fn go(&mut self, device: &mut Device) -> Result<()> {
        let started = Instant::now();
        loop {
            let over = match self.plan.until {
                Until::Ops(ops) => self.sent >= ops,
                Until::Elapsed(limit) => started.elapsed() >= limit,
            };
            if !over {
                interrupt::check("nothing was reported")?;
                while self.pending.len() < self.plan.depth && !self.enough() {
                    self.send(device)?;
                }
            }
            let Some(done) = device.wait(None)? else {
                break;
            };
            let now = Instant::now();
            device.recycle(done.data);
            if let Some(sent) = self.pending.remove(&done.id) {
                let times = if sent.flush {
                    &mut self.flushes
                } else {
                    &mut self.latency
                };
                times.note(now - sent.at);
            }
        }
        self.took = started.elapsed();
        Ok(())
    }

    fn enough(&self) -> bool {
        matches!(self.plan.until, Until::Ops(ops) if self.sent >= ops)
    }

    /// One request, and the flush that is due after it.
    fn send(&mut self, device: &mut Device) -> Result<()> {
        let index = if self.plan.pattern.random() {
            pattern::next(&mut self.state) % self.blocks
        } else {
            self.sent % self.blocks
        };
        let offset = self.plan.offset + index * u64::from(self.plan.block);
        self.sent += 1;
        let op = if self.plan.pattern.writes() {
            // Something that differs, so that nothing below can find two blocks equal.
            self.block[..8].copy_from_slice(&self.sent.to_le_bytes());
            Op::Write {
                offset,
                data: &self.block,
            }
        } else {
            Op::Read {
                offset,
                len: self.plan.block,
            }
        };
        let at = Instant::now();
        let id = device.submit(op)?;
        self.pending.insert(id, Sent { at, flush: false });
        if self
            .plan
            .flush_every
            .is_some_and(|every| self.sent.is_multiple_of(every))
        {
            let at = Instant::now();
            let id = device.submit(Op::Flush)?;
            self.pending.insert(id, Sent { at, flush: true });
        }
        Ok(())
    }

    fn body(&self) -> Body {
        let latency = self.latency.summary();
        let bytes = latency.count * u64::from(self.plan.block);
        Body {
            disk: self.plan.disk.to_string(),
            pattern: self.plan.pattern,
            block_bytes: self.plan.block,
            depth: self.plan.depth,
            flush_every: self.plan.flush_every,
            prepared: self.plan.prepare,
            seconds: self.took.as_secs_f64(),
            ops: latency.count,
            ops_per_second: per_second(latency.count, self.took),
            bytes,
            bytes_per_second: per_second(bytes, self.took),
            latency,
            flush_latency: self.plan.flush_every.map(|_| self.flushes.summary()),
        }
    }
}

fn people(body: &Body) -> String {
    let times = |what: &str, summary: &Summary| {
        format!(
            "{what:<8} p50 {}, p99 {}, p99.9 {}, max {}\n",
            latency::show(summary.p50_us),
            latency::show(summary.p99_us),
            latency::show(summary.p999_us),
            latency::show(summary.max_us),
        )
    };
    let mut text = format!(
        "{}: {} ops/s, {}/s ({} ops of {} in {:.1} s, {} outstanding)\n",
        body.disk,
        body.ops_per_second,
        size::show(body.bytes_per_second),
        body.ops,
        size::show(u64::from(body.block_bytes)),
        body.seconds,
        body.depth,
    );
    text.push_str(&times("latency", &body.latency));
    if let Some(flushes) = &body.flush_latency {
        text.push_str(&times("flush", flushes));
    }
    text
}
