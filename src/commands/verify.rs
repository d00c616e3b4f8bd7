//! `diskferry mirror verify`: whether both sides of a mirror have the same, while both are in use.

use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::remote::Remote;
use crate::args::MirrorVerifyArgs;
use crate::failure::{Exit, Failure, Result};
use crate::report::Report;
use crate::{interrupt, size};

/// How often it is looked at how far it is.
const LOOK: Duration = Duration::from_millis(250);

pub(super) fn run(args: &MirrorVerifyArgs, report: Report) -> Result<()> {
    let disk = Remote::find(&args.disk, args.control.as_deref())?;
    let begun = |state: &Value| state["verify"]["begun"].as_u64().unwrap_or(0);
    // What is known of an earlier one that is over may be all that is known at first. One that runs is waited for.
    let before: Value = disk.client.get(&disk.resource("mirror"))?;
    let runs = ["waiting", "comparing"].contains(&before["verify"]["stage"].as_str().unwrap_or(""));
    let is_old = |state: &Value| !runs && begun(state) == begun(&before);
    let mut state: Value = disk.client.post(&disk.resource("mirror/verify"), &())?;
    let in_words = |state: &Value| people(state).unwrap_or_default();
    if !args.wait {
        return report.result("verify", &state, in_words);
    }
    interrupt::listen();
    while is_old(&state) || state["verify"]["stage"] != "done" {
        if state["ended"] == true {
            let what = "the move ended before all was compared";
            return Err(Failure::new(Exit::Cancelled, what).hint("see `diskferry mirror status`"));
        }
        interrupt::check("it goes on; see `diskferry mirror status`")?;
        report.event("progress", &state, &in_words(&state))?;
        thread::sleep(LOOK);
        state = disk.client.get(&disk.resource("mirror"))?;
    }
    report.result("summary", &state, in_words)?;
    outcome(&state["verify"])
}

fn outcome(found: &Value) -> Result<()> {
    let number = |field: &str| found[field].as_u64().unwrap_or(0);
    if number("wrong") > 0 {
        let what = format!(
            "the target had {} bytes that were different, the first of them at {}",
            number("wrong"),
            number("first_wrong")
        );
        let hint =
            "they were copied again; find out what damaged them before you rely on that host";
        return Err(Failure::new(Exit::Mismatch, what).hint(hint));
    }
    Ok(())
}

/// What is known of it, if it was asked for.
pub(super) fn people(state: &Value) -> Option<String> {
    let found = state["verify"].as_object()?;
    let number = |field: &str| found.get(field).and_then(Value::as_u64).unwrap_or(0);
    let mut text = format!(
        "verified {} of {}",
        size::show(number("compared")),
        size::show(state["size"].as_u64().unwrap_or(0))
    );
    if number("wrong") > 0 {
        let _ = write!(
            text,
            ", {} were different and copied again",
            size::show(number("wrong"))
        );
    }
    if number("unsettled") > 0 {
        let _ = write!(
            text,
            ", {} are written all the time",
            size::show(number("unsettled"))
        );
    }
    if found.get("stage").is_some_and(|stage| stage == "waiting") {
        text += " (waiting for the target to be in step)";
    }
    Some(text)
}
