//! `diskferry plan` and `diskferry evacuate`: moving many machines by a deadline.
//!
//! What is decided is decided in `mirror::evacuation`; here files are read, servers asked and people told.

mod carry;
mod disks;
mod said;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use mirror::evacuation::answer::Answer;
use mirror::evacuation::odds::odds;
use mirror::evacuation::state::State;
use mirror::evacuation::{Evacuation, Problem, check, moment};

pub(super) use self::carry::evacuate;
use crate::args::PlanArgs;
use crate::failure::{Exit, Failure, Result};
use crate::report::{self, Report};

/// An example of what is read.
const EXAMPLE: &str = include_str!("../../docs/evacuation-example.json");
/// No file is longer.
const MAX_FILE: u64 = 64 << 20;

/// Says what can be moved in time.
pub(super) fn plan(args: &PlanArgs, report: Report) -> Result<()> {
    let Some(file) = args.file.as_deref().filter(|_| !args.example) else {
        return report::print(EXAMPLE);
    };
    let input = read(file)?;
    let problem = problem(&input, file, at(args.at.as_deref())?)?;
    let answer = Answer::of(&problem, &State::told(&problem), &[]);
    report.result("plan", &answer, said::plan)?;
    if let Some(runs) = args.simulate {
        let odds = odds(&problem, runs, args.seed);
        report.result("odds", &odds, said::odds)?;
    }
    match answer.not_in_time {
        0 => Ok(()),
        late => {
            let all = answer.machines.len();
            let what = format!("{late} of {all} machines cannot move by the deadline");
            Err(Failure::new(Exit::NotInTime, what).hint("what each of them needs is in the plan"))
        }
    }
}

fn read(file: &Path) -> Result<Evacuation> {
    let name = file.display();
    let failed = |e| Failure::io(format!("{name}: cannot be read"), &e);
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        io::stdin().take(MAX_FILE).read_to_end(&mut bytes)
    } else {
        let opened = File::open(file).map_err(failed)?;
        opened.take(MAX_FILE).read_to_end(&mut bytes)
    };
    read.map_err(failed)?;
    Evacuation::parse(&bytes).map_err(|error| {
        Failure::usage(format!("{name}: {error}"))
            .hint("`diskferry plan --example` prints one with every field")
    })
}

fn problem(input: &Evacuation, file: &Path, now: u64) -> Result<Problem> {
    check(input, now).map_err(|wrong| Failure::usage(format!("{}: {wrong}", file.display())))
}

fn at(moment: Option<&str>) -> Result<u64> {
    let Some(text) = moment else {
        return Ok(now());
    };
    moment::parse(text).ok_or_else(|| {
        Failure::usage(format!("`{text}` is no moment"))
            .hint("moments look like 2026-11-27T18:00:00Z, in UTC")
    })
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
