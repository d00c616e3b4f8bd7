//! `diskferry machine shutdown`: the power button, and waiting for the guest.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::client;
use crate::args::ShutdownArgs;
use crate::control::machine::{Life, MachineState};
use crate::failure::{Exit, Failure, Result};
use crate::report::Report;

/// How often it is looked whether the machine has ended.
const LOOK: Duration = Duration::from_millis(50);

/// What came of it.
#[derive(Serialize)]
struct Asked {
    machine: String,
    /// Whether the machine has ended; without `--wait` nobody looked.
    ended: bool,
}

pub(super) fn run(args: &ShutdownArgs, report: Report) -> Result<()> {
    let client = client(&args.machine)?;
    let asked: MachineState = client.post("/v1/machine/shutdown", &())?;
    let machine = asked.machine;
    let since = Instant::now();
    let patience = Duration::from_secs(args.timeout);
    let mut ended = false;
    while args.wait && !ended {
        // One that does not answer any more has ended, and its process with it.
        let state: Result<MachineState> = client.get("/v1/machine");
        ended = state.map_or_else(|_| !client.answers(), |state| state.state == Life::Ended);
        if !ended && since.elapsed() >= patience {
            let what = format!(
                "{machine}: the guest did not react within {} s, and runs on",
                args.timeout
            );
            let hint = "`diskferry machine power-off` pulls the plug";
            return Err(Failure::new(Exit::Failed, what).hint(hint));
        }
        if !ended {
            thread::sleep(LOOK);
        }
    }
    let asked = Asked { machine, ended };
    report.result("shutdown", &asked, |asked| {
        let what = if asked.ended {
            "has ended"
        } else {
            "was asked to shut down"
        };
        format!("{}: {what}", asked.machine)
    })
}
