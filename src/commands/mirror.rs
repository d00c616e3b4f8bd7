//! `diskferry mirror`: moving a disk that another process serves, through its control socket.

mod drawing;
mod map;
mod summary;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use mirror::net::SiteAddress;
use serde_json::Value;

use super::remote::Remote;
use super::verify;
use crate::args::{MirrorArgs, MirrorStartArgs, MirrorVerb};
use crate::control::{Cutover, CutoverNow, MirrorDeadline, MirrorRate, StartMirror};
use crate::failure::{Exit, Failure, Result};
use crate::report::Report;
use crate::site::foreign;
use crate::{interrupt, plan, size};

/// How often a move that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) fn run(verb: &MirrorVerb, report: Report) -> Result<()> {
    match verb {
        MirrorVerb::Start(args) => start(args, report),
        MirrorVerb::Status(args) => {
            let get = |disk: &Remote| disk.client.get(&disk.resource("mirror"));
            each(args, report, get)
        }
        MirrorVerb::Map(args) => map::run(args, report),
        MirrorVerb::Cutover(args) => {
            let now = CutoverNow {
                switchover: args.switchover.map(Into::into),
            };
            let post = |disk: &Remote| disk.client.post(&disk.resource("mirror/cutover"), &now);
            each(&args.disk, report, post)
        }
        MirrorVerb::Rollback(args) => {
            let post = |disk: &Remote| disk.client.post(&disk.resource("mirror/rollback"), &());
            each(&args.disk, report, post)
        }
        MirrorVerb::Rate(args) => {
            let rate = plan::rates(&args.rate)?;
            let rate = MirrorRate { rate };
            let post = |disk: &Remote| disk.client.post(&disk.resource("mirror/rate"), &rate);
            each(&args.disk, report, post)
        }
        MirrorVerb::Deadline(args) => {
            let time = Some(args.deadline.as_str()).filter(|time| *time != "none");
            let wish = MirrorDeadline {
                deadline_s: seconds(time)?,
                max_slowdown: args.max_slowdown,
            };
            let post = |disk: &Remote| disk.client.post(&disk.resource("mirror/deadline"), &wish);
            each(&args.disk, report, post)
        }
        MirrorVerb::Verify(args) => verify::run(args, report),
        MirrorVerb::Cancel(args) => {
            let post = |disk: &Remote| disk.client.post(&disk.resource("mirror/cancel"), &());
            each(args, report, post)
        }
    }
}

/// Ask for something of each disk, and say how their moves stand then.
fn each(args: &MirrorArgs, report: Report, ask: impl Fn(&Remote) -> Result<Value>) -> Result<()> {
    let disks = find(args)?;
    let states = disks.iter().map(ask).collect::<Result<_>>()?;
    tell(&disks, report, states, args.wait)
}

fn start(args: &MirrorStartArgs, report: Report) -> Result<()> {
    let disks = find(&args.disk)?;
    let (disk, others) = disks
        .split_first()
        .ok_or_else(|| Failure::usage("no disk is named"))?;
    let to = if SiteAddress::is_written(&args.to) {
        args.to.clone()
    } else if foreign::is_written(&args.to) {
        // A socket is named as it is found from here.
        foreign::address(&args.to, args.plain)?.to_string()
    } else {
        absolute(Path::new(&args.to))?.display().to_string()
    };
    let cutover = if args.manual {
        Cutover::Manual
    } else {
        Cutover::Automatic
    };
    let others = others.iter().map(|other| other.state.name.clone());
    let state = disk.client.post(
        &disk.resource("mirror"),
        &StartMirror {
            to,
            cutover,
            max_pause_ms: args.max_pause,
            fresh: args.fresh,
            plain: args.plain,
            without_flush: args.without_flush,
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
            together_with: others.collect(),
        },
    )?;
    let mut states = vec![state];
    for disk in disks.iter().skip(1) {
        states.push(disk.client.get(&disk.resource("mirror"))?);
    }
    tell(&disks, report, states, args.disk.wait)
}

/// In seconds, at least one.
fn seconds(text: Option<&str>) -> Result<Option<u64>> {
    let span = text.map(plan::duration).transpose()?;
    Ok(span.map(|span| span.as_secs().max(1)))
}

/// The disks, of which each may be at a server of its own.
fn find(args: &MirrorArgs) -> Result<Vec<Remote>> {
    let control = args.control.as_deref();
    let disks = args.disks.iter();
    disks.map(|disk| Remote::find(disk, control)).collect()
}

fn absolute(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path);
    absolute.map_err(|e| Failure::io(format!("{}: is no path", path.display()), &e))
}

/// Say how the moves stand, once, or until all have ended: each, with its name if it is one of several, and then all
/// of them together.
fn tell(disks: &[Remote], report: Report, mut states: Vec<Value>, wait: bool) -> Result<()> {
    if !wait {
        return say(disks, report, &states, "mirror");
    }
    interrupt::listen();
    while states.iter().any(|state| state["ended"] != true) {
        interrupt::check("the move goes on; see `diskferry mirror status`")?;
        say(disks, report, &states, "progress")?;
        thread::sleep(LOOK);
        let look = |disk: &Remote| disk.client.get(&disk.resource("mirror"));
        states = disks.iter().map(look).collect::<Result<_>>()?;
    }
    say(disks, report, &states, "summary")?;
    states.iter().try_for_each(ended_badly)
}

/// One line for each, and for several one for all.
fn say(disks: &[Remote], report: Report, states: &[Value], kind: &str) -> Result<()> {
    let several = disks.len() > 1;
    let line = |kind: &str, body: &Value, text: String| match kind {
        "progress" | "total" => report.event(kind, body, &text),
        _ => report.result(kind, body, |_| text),
    };
    for (disk, state) in disks.iter().zip(states) {
        let mut text = people(state);
        if several {
            text = format!("{}: {text}", disk.state.name);
        }
        // What it came to is of interest once it has come to it.
        if state["ended"] == true {
            text += &summary::report(&state["report"]);
        }
        line(kind, state, text)?;
    }
    if several {
        let total = summary::total(states);
        let body = serde_json::to_value(&total)
            .map_err(|e| Failure::new(Exit::Failed, format!("the sum has no form: {e}")))?;
        line("total", &body, total.people())?;
    }
    Ok(())
}

fn ended_badly(state: &Value) -> Result<()> {
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
    text += &summary::how_long(&state["estimate"]);
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
    if state["not_promised"].is_string() {
        text.push_str(", to an NBD server: `mirror start --help` says what that cannot promise");
    }
    if let Some(awaited) = state["awaits"].as_array() {
        let paths: Vec<&str> = awaited.iter().filter_map(Value::as_str).collect();
        let paths = paths.join(" and ");
        let _ = write!(
            text,
            ", waiting for {paths}, which it goes on with: serve it with this one"
        );
    }
    if let Some(trouble) = state["trouble"].as_str() {
        let _ = write!(text, " ({trouble})");
    }
    text
}
