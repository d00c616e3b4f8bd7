//! `diskferry mirror`: moving a disk that another process serves, through its control socket.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::args::{MirrorArgs, MirrorStartArgs, MirrorVerb};
use crate::control::client::Client;
use crate::control::{Cutover, DiskState, StartMirror, place};
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::plan;
use crate::report::Report;
use crate::size;

/// How often a move that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) fn run(verb: &MirrorVerb, report: Report) -> Result<()> {
    match verb {
        MirrorVerb::Start(args) => start(args, report),
        MirrorVerb::Status(args) => {
            let disk = Remote::find(args)?;
            disk.report(report, disk.client.get(&disk.resource(""))?, args.wait)
        }
        MirrorVerb::Cutover(args) => {
            let disk = Remote::find(args)?;
            let state = disk.client.post(&disk.resource("/cutover"), &())?;
            disk.report(report, state, args.wait)
        }
        MirrorVerb::Cancel(args) => {
            let disk = Remote::find(args)?;
            let state = disk.client.post(&disk.resource("/cancel"), &())?;
            disk.report(report, state, args.wait)
        }
    }
}

fn start(args: &MirrorStartArgs, report: Report) -> Result<()> {
    let disk = Remote::find(&args.disk)?;
    let to = if args.to.starts_with("tcp:") {
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
        &disk.resource(""),
        &StartMirror {
            to,
            cutover,
            max_pause_ms: args.max_pause,
        },
    )?;
    disk.report(report, state, args.disk.wait)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path);
    absolute.map_err(|e| Failure::io(format!("{}: is no path", path.display()), &e))
}

/// A disk at the server that has it.
struct Remote {
    client: Client,
    name: String,
}

impl Remote {
    fn find(args: &MirrorArgs) -> Result<Self> {
        let socket = match &args.control {
            Some(text) => plan::control_path(text)?,
            None => place::socket_of(&args.disk)?,
        };
        let client = Client::new(&socket);
        let disks: Vec<DiskState> = client.get("/v1/disks")?;
        let wanted = std::fs::canonicalize(&args.disk).ok();
        let same = |disk: &&DiskState| {
            Path::new(&disk.path) == args.disk
                || (wanted.is_some() && std::fs::canonicalize(&disk.path).ok() == wanted)
        };
        let found = disks.iter().find(same).ok_or_else(|| {
            Failure::usage(format!("{}: is not served there", args.disk.display()))
        })?;
        Ok(Self {
            client,
            name: found.name.clone(),
        })
    }

    fn resource(&self, verb: &str) -> String {
        format!("/v1/disks/{}/mirror{verb}", escape(&self.name))
    }

    /// Say how the move stands, once, or until it has ended.
    fn report(&self, report: Report, mut state: Value, wait: bool) -> Result<()> {
        if !wait {
            return report.result("mirror", &state, people);
        }
        interrupt::listen();
        while state["ended"] != Value::Bool(true) {
            interrupt::check("the move goes on; see `diskferry mirror status`")?;
            report.event("progress", &state, &people(&state))?;
            thread::sleep(LOOK);
            state = self.client.get(&self.resource(""))?;
        }
        report.result("summary", &state, people)?;
        match state["error"].as_str() {
            Some(error) => Err(Failure::new(Exit::Cancelled, error)
                .hint("the source is intact and still owns the disk")),
            None => Ok(()),
        }
    }
}

/// The name as part of a URL path.
fn escape(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
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
    if let Some(seconds) = state["seconds_remaining"].as_u64() {
        let _ = write!(text, ", {seconds} s to go");
    }
    if let Some(pause) = state["pause"].as_u64() {
        let _ = write!(text, ", pause {}.{} ms", pause / 1000, pause % 1000 / 100);
    }
    if let Some(trouble) = state["trouble"].as_str() {
        let _ = write!(text, " ({trouble})");
    }
    text
}
