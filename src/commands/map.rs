//! `diskferry map`: which parts of a disk are allocated.

use serde::Serialize;
use vdisk::disk::Disk;
use vdisk::engine::Extent;

use super::image;
use crate::args::MapArgs;
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::plan::Map;
use crate::report::{self, Report};
use crate::size;

/// How much of the disk is asked about at once.
const WINDOW: u64 = 1 << 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Run {
    offset: u64,
    length: u64,
    allocated: bool,
    zero: bool,
}

#[derive(Default, Serialize)]
struct Totals {
    extents: u64,
    allocated_bytes: u64,
    zero_bytes: u64,
    bytes: u64,
}

pub(crate) fn run(args: &MapArgs, report: Report) -> Result<()> {
    let plan = Map::new(args)?;
    interrupt::listen();
    let mut disk = image::open_chain(&plan.disk, &image::options(plan.format, true), &plan.search)?;
    let size = disk.size();
    if plan.offset >= size {
        let what = format!("the offset {} is beyond the disk", size::exact(plan.offset));
        return Err(Failure::usage(what).hint(format!("the disk ends at {}", size::exact(size))));
    }
    let end = plan
        .length
        .map_or(size, |length| plan.offset.saturating_add(length).min(size));
    if !report.is_json() {
        report::print("         offset         length  state")?;
    }
    let mut totals = Totals::default();
    each_run(&mut disk, plan.offset, end, &mut |run| {
        totals.add(run);
        report.result("extent", &run, people)
    })?;
    report.result("summary", &totals, |totals| {
        format!(
            "{} extents: {} allocated, {} zero, of {}",
            totals.extents,
            size::show(totals.allocated_bytes),
            size::show(totals.zero_bytes),
            size::show(totals.bytes)
        )
    })
}

impl Totals {
    fn add(&mut self, run: Run) {
        self.extents += 1;
        self.bytes += run.length;
        self.allocated_bytes += if run.allocated { run.length } else { 0 };
        self.zero_bytes += if run.zero { run.length } else { 0 };
    }
}

/// Gives the runs of like bytes from `offset` to `end`, neighbours that are alike as one.
fn each_run(
    disk: &mut Disk,
    offset: u64,
    end: u64,
    each: &mut dyn FnMut(Run) -> Result<()>,
) -> Result<()> {
    let mut at = offset;
    let mut last: Option<Run> = None;
    while at < end {
        interrupt::check("the list is not complete")?;
        for Extent {
            len,
            allocated,
            zero,
        } in disk.status(at, WINDOW.min(end - at))?
        {
            match &mut last {
                Some(run) if (run.allocated, run.zero) == (allocated, zero) => run.length += len,
                _ => {
                    let next = Run {
                        offset: at,
                        length: len,
                        allocated,
                        zero,
                    };
                    if let Some(run) = last.replace(next) {
                        each(run)?;
                    }
                }
            }
            at += len;
        }
    }
    last.map_or(Ok(()), each)
}

fn people(run: &Run) -> String {
    let state = match (run.allocated, run.zero) {
        (true, false) => "data",
        (true, true) => "zero, allocated",
        (false, true) => "hole",
        (false, false) => "not allocated",
    };
    format!(
        "{:>15} {:>14}  {state}",
        size::exact(run.offset),
        size::exact(run.length)
    )
}
