//! `diskferry completions`: a completion script from the same types as the help.

use clap::CommandFactory as _;

use crate::args::{CommandLine, CompletionsArgs};
use crate::failure::Result;
use crate::report;

pub(crate) fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut CommandLine::command(),
        "diskferry",
        &mut script,
    );
    report::print(&String::from_utf8_lossy(&script))
}
