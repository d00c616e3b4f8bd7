//! `diskferry machine console`: this terminal on the console of a machine that runs.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde::Serialize;

use super::client;
use crate::args::ConsoleArgs;
use crate::console::{Keys, raw};
use crate::control::client::Client;
use crate::control::machine::console::ConsoleState;
use crate::control::machine::{Life, MachineState};
use crate::failure::{Exit, Failure, Result};
use crate::report::Report;

/// How it ended.
#[derive(Serialize)]
struct Left {
    machine: String,
    /// `left` or `machine_ended`.
    end: &'static str,
}

pub(super) fn run(args: &ConsoleArgs, report: Report) -> Result<()> {
    let client = client(&args.machine)?;
    let state: ConsoleState = client.get("/v1/machine/console")?;
    let failed = |e| Failure::io(format!("{}: nobody to attach to", state.socket), &e);
    let stream = UnixStream::connect(&state.socket).map_err(failed)?;
    let left = Arc::new(AtomicBool::new(false));
    {
        let _raw = raw()?;
        let typing = stream.try_clone().map_err(failed)?;
        let leaving = Arc::clone(&left);
        let typing = thread::Builder::new()
            .name("typing".into())
            .spawn(move || type_in(&typing, &leaving));
        typing.map_err(|e| Failure::io("no thread that reads the terminal", &e))?;
        print(&stream, report.is_json())?;
    }
    let end = if left.load(Ordering::SeqCst) {
        "left"
    } else if runs_on(&client) {
        let what = format!("{}: turned away", state.socket);
        let hint = "too many are attached to this console; the machine runs on";
        return Err(Failure::new(Exit::Failed, what).hint(hint));
    } else {
        "machine_ended"
    };
    let machine = args.machine.machine.display().to_string();
    if report.is_json() {
        return Report::line("console", &Left { machine, end });
    }
    Ok(())
}

fn runs_on(client: &Client) -> bool {
    let state: Result<MachineState> = client.get("/v1/machine");
    state.is_ok_and(|state| state.state != Life::Ended)
}

/// What is typed, until it says to leave; at its end the output goes on.
fn type_in(stream: &UnixStream, left: &AtomicBool) {
    let mut keys = Keys::default();
    let mut typed = [0; 256];
    let mut to = stream;
    while let Ok(len @ 1..) = io::stdin().read(&mut typed) {
        let bytes = keys.take(typed.get(..len).unwrap_or_default());
        // A machine that has ended takes nothing; whoever prints notices.
        if to.write_all(&bytes).is_err() {
            return;
        }
        if keys.ended {
            left.store(true, Ordering::SeqCst);
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// What is printed, until the connection ends.
fn print(mut stream: &UnixStream, json: bool) -> Result<()> {
    let mut bytes = [0; 4096];
    loop {
        let len = match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The machine ended with something typed that nobody had read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(Failure::io("the console broke off", &error)),
        };
        let bytes = bytes.get(..len).unwrap_or_default();
        let printed = if json {
            io::stderr().write_all(bytes)
        } else {
            let mut stdout = io::stdout();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        };
        printed.map_err(|e| Failure::io("cannot write to stdout", &e))?;
    }
}
