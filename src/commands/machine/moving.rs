//! `diskferry machine move`: a machine goes to another host, and this tells of it.

use std::fmt::Write as _;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::client;
use crate::args::MachineMoveArgs;
use crate::commands::run::moved_in_words;
use crate::control::client::Client;
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::moving::source::{MoveState, MoveTo, Moved};
use crate::report::Report;
use crate::size;

/// How often the move is looked at.
const LOOK: Duration = Duration::from_millis(250);

pub(super) fn run(args: &MachineMoveArgs, report: Report) -> Result<()> {
    let client = client(&args.machine)?;
    interrupt::listen();
    let (sender, answer) = channel();
    let (asked, to) = (client.clone(), args.to.clone());
    let plain = args.plain;
    let asking = thread::Builder::new().name("move".into()).spawn(move || {
        let moved = asked.post::<Moved>("/v1/machine/move", &MoveTo { to, plain });
        // Whoever waits has the other end.
        let _ = sender.send(moved);
    });
    asking.map_err(|e| Failure::io("no thread that asks", &e))?;
    let mut cancelled = false;
    loop {
        match answer.recv_timeout(LOOK) {
            Ok(Ok(moved)) => return report.result("moved", &moved, moved_in_words),
            Ok(Err(failure)) => return Err(failed(failure, cancelled)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::new(Exit::Failed, "the move was not answered"));
            }
        }
        if interrupt::requested() && !cancelled {
            cancelled = true;
            cancel(&client, report)?;
        }
        if let Ok(state) = client.get::<MoveState>("/v1/machine/move") {
            report.event("progress", &state, &people(&state))?;
        }
    }
}

fn cancel(client: &Client, report: Report) -> Result<()> {
    let state: MoveState = client.post("/v1/machine/move/cancel", &())?;
    if state.committed {
        report.warn("it is decided already: the machine moves");
    }
    Ok(())
}

fn failed(failure: Failure, cancelled: bool) -> Failure {
    if cancelled && failure.exit == Exit::Cancelled {
        return Failure::interrupted("the machine stays here, with its disks");
    }
    failure
}

fn people(state: &MoveState) -> String {
    let mut text = format!(
        "{}: copied {} of {}, remaining {}",
        state.step,
        size::show(state.copied),
        size::show(state.found),
        size::show(state.remaining)
    );
    if let Some(trouble) = &state.trouble {
        let _ = write!(text, " ({trouble})");
    }
    text
}
