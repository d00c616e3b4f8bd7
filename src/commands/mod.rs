//! The verbs, one file each. Here two crates may meet, and nowhere else.

mod check;
mod completions;
mod create;
mod image;
mod info;
mod man;

use crate::args::{CommandLine, Verb};
use crate::failure::Result;
use crate::report::Report;

/// Does what was typed.
pub(crate) fn run(typed: &CommandLine, report: Report) -> Result<()> {
    match &typed.verb {
        Verb::Create(args) => create::run(args, report),
        Verb::Info(args) => info::run(args, report),
        Verb::Check(args) => check::run(args, report),
        Verb::Completions(args) => completions::run(args),
        Verb::Man(args) => man::run(args),
    }
}
