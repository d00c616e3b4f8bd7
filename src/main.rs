//! The command `diskferry`: what was typed becomes a plan, a plan becomes a call into one crate.
//!
//! The only place that knows two crates at once. It decides nothing about disks: a verb checks what
//! was typed, calls the library, and reports.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod console;
mod control;
mod copy;
mod device;
mod failure;
mod identity;
mod interrupt;
mod latency;
mod limits;
mod load;
mod log;
mod metrics;
mod moving;
mod packages;
mod plan;
mod progress;
mod report;
mod saved;
mod sealing;
mod site;
mod source;
mod target;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::CommandLine;
use crate::report::Report;
pub(crate) use vdisk::size;

fn main() -> ExitCode {
    let typed = CommandLine::parse();
    let report = Report::new(&typed.global);
    log::to_stderr(&typed.global);
    limits::survive();
    sealing::introduce();
    match commands::run(&typed, report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report.failure(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}
