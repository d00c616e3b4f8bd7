//! `diskferry man`: manual pages from the same types as the help.

use clap::CommandFactory as _;

use crate::args::{CommandLine, ManArgs};
use crate::failure::{Failure, Result};
use crate::report;

pub(crate) fn run(args: &ManArgs) -> Result<()> {
    let command = CommandLine::command();
    if let Some(folder) = &args.into {
        return clap_mangen::generate_to(command, folder)
            .map_err(|e| Failure::io(format!("cannot write pages into {}", folder.display()), &e));
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(|e| Failure::io("cannot make the manual page", &e))?;
    report::print(&String::from_utf8_lossy(&page))
}
