//! `diskferry mirror`: moving a disk that another process serves, through its control socket.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use mirror::net::SiteAddress;
use serde_json::Value;

use super::remote::Remote;
use super::verify;
use crate::args::{MirrorArgs, MirrorStartArgs, MirrorVerb};
use crate::control::{Cutover, CutoverNow, MirrorRate, StartMirror};
use crate::failure::{Exit, Failure, Result};
use crate::report::Report;
use crate::{interrupt, plan, size};

/// How often a move that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) fn run(verb: &MirrorVerb, report: Report) -> Result<()> {
    match verb {
        MirrorVerb::Start(args) => start(args, report),
        MirrorVerb::Status(args) => {
            let disk = find(args)?;
            let state = disk.client.get(&disk.resource("mirror"))?;
            tell(&disk, report, state, args.wait)
        }
        MirrorVerb::Cutover(args) => {
            let disk = find(&args.disk)?;
            let now = CutoverNow {
                switchover: args.switchover.map(Into::into),
            };
            let state = disk.client.post(&disk.resource("mirror/cutover"), &now)?;
            tell(&disk, report, state, args.disk.wait)
        }
        MirrorVerb::Rollback(args) => {
            let disk = find(&args.disk)?;
            let state = disk.client.post(&disk.resource("mirror/rollback"), &())?;
            tell(&disk, report, state, args.disk.wait)
        }
        MirrorVerb::Rate(args) => {
            let rate = plan::rates(&args.rate)?;
            let disk = find(&args.disk)?;
            let rate = MirrorRate { rate };
            let state = disk.client.post(&disk.resource("mirror/rate"), &rate)?;
            tell(&disk, report, state, args.disk.wait)
        }
        MirrorVerb::Verify(args) => verify::run(args, report),
        MirrorVerb::Cancel(args) => {
            let disk = find(args)?;
            let state = disk.client.post(&disk.resource("mirror/cancel"), &())?;
            tell(&disk, report, state, args.wait)
        }
    }
}

fn start(args: &MirrorStartArgs, report: Report) -> Result<()> {
    let disk = find(&args.disk)?;
    let to = if SiteAddress::is_written(&args.to) {
        args.to.clone()
    } else {
        absolute(Path::new(&args.to))?.display().to_string()
    };
    let cutover = if args.manual {
        Cutover::Manual
    } else {
        Cutover::Automatic
    };
    let state = disk.client.post(
        &disk.resource("mirror"),
        &StartMirror {
            to,
            cutover,
            max_pause_ms: args.max_pause,
            fresh: args.fresh,
            plain: args.plain,
            rate: args
                .rate
                .as_deref()
                .map(plan::rates)
                .transpose()?
                .unwrap_or_default(),
            deadline_s: seconds(args.deadline.as_deref())?,
            max_slowdown: args.max_slowdown,
            switchover: args.switchover.map(Into::into).unwrap_or_default(),
            arbiter: args.arbiter.clone(),
            way_back: args.way_back.clone(),
            way_back_for_s: seconds(args.way_back_for.as_deref())?,
        },
    )?;
    tell(&disk, report, state, args.disk.wait)
}

/// In seconds, at least one.
fn seconds(text: Option<&str>) -> Result<Option<u64>> {
    let span = text.map(plan::duration).transpose()?;
    Ok(span.map(|span| span.as_secs().max(1)))
}

fn find(args: &MirrorArgs) -> Result<Remote> {
    Remote::find(&args.disk, args.control.as_deref())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path);
    absolute.map_err(|e| Failure::io(format!("{}: is no path", path.display()), &e))
}

/// Say how the move stands, once, or until it has ended.
fn tell(disk: &Remote, report: Report, mut state: Value, wait: bool) -> Result<()> {
    if !wait {
        return report.result("mirror", &state, people);
    }
    interrupt::listen();
    while state["ended"] != Value::Bool(true) {
        interrupt::check("the move goes on; see `diskferry mirror status`")?;
        report.event("progress", &state, &people(&state))?;
        thread::sleep(LOOK);
        state = disk.client.get(&disk.resource("mirror"))?;
    }
    report.result("summary", &state, people)?;
    match state["error"].as_str() {
        Some(error) => Err(Failure::new(Exit::Cancelled, error)
            .hint("the source is intact and still owns the disk")),
        None => Ok(()),
    }
}

fn people(state: &Value) -> String {
    let number = |field: &str| state[field].as_u64().unwrap_or(0);
    let mut text = format!(
        "{}: copied {} of {}, streamed {}, remaining {}, {}/s",
        state["stage"].as_str().unwrap_or("unknown"),
        size::show(number("copied")),
        size::show(number("found")),
        size::show(number("streamed")),
        size::show(number("remaining")),
        size::show(number("rate")),
    );
    if number("same") > 0 {
        let _ = write!(text, ", there already {}", size::show(number("same")));
    }
    if let Some(seconds) = state["seconds_remaining"].as_u64() {
        let _ = write!(text, ", {seconds} s to go");
        let least = state["estimate"]["least"].as_u64().unwrap_or(seconds);
        let _ = match state["estimate"]["most"].as_u64() {
            Some(most) if most > least => write!(text, " ({least} to {most})"),
            Some(_) => Ok(()),
            None => write!(text, " ({least}, or never)"),
        };
    }
    if let Some(brake) = state["brake"].as_u64() {
        let _ = write!(text, ", writers held to {}/s", size::show(brake));
    }
    if let Some(unmet) = state["unmet"].as_str() {
        let _ = write!(text, " ({unmet})");
    }
    if let Some(found) = verify::people(state) {
        let _ = write!(text, ", {found}");
    }
    if let Some(pause) = state["pause"].as_u64() {
        let _ = write!(text, ", pause {}.{} ms", pause / 1000, pause % 1000 / 100);
    }
    let way = &state["way_back"];
    if way["under_way"] == Value::Bool(true)
        && let Some(to) = way["to"].as_str()
    {
        let _ = write!(text, ", so that it can go back to {to}");
    }
    if way["waits"] == Value::Bool(true)
        && let Some(at) = way["waits_at"].as_str()
    {
        let _ = write!(text, ", it may come back to {at}");
    }
    if let Some(trouble) = state["trouble"].as_str() {
        let _ = write!(text, " ({trouble})");
    }
    text
}
