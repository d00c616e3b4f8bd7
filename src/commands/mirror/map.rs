//! `diskferry mirror map`: a disk that moves, drawn in the terminal.

use std::io::IsTerminal as _;
use std::thread;

use mirror::picture::Picture;
use serde_json::Value;

use super::drawing::Canvas;
use super::{LOOK, ended_badly, people};
use crate::args::MirrorMapArgs;
use crate::commands::remote::Remote;
use crate::failure::Result;
use crate::interrupt;
use crate::report::{self, Report};

/// Where no terminal says how wide it is, and how high.
const USUAL: (usize, usize) = (64, 24);
/// Lines below the picture.
const BELOW: usize = 6;
/// A picture has no more lines, however high the terminal is.
const MOST_LINES: usize = 24;

pub(super) fn run(args: &MirrorMapArgs, report: Report) -> Result<()> {
    let disk = Remote::find(&args.disk, args.control.as_deref())?;
    let screen = Screen::new(report);
    let cells = args.cells.map_or(screen.cells, usize::from);
    let resource = disk.resource(&format!("mirror/picture?cells={cells}"));
    interrupt::listen();
    let mut drawn = 0;
    loop {
        // In this order: the last picture is one of after the end.
        let state: Value = disk.client.get(&disk.resource("mirror"))?;
        let picture: Picture = disk.client.get(&resource)?;
        let last = !args.wait || state["ended"] == Value::Bool(true);
        if report.is_json() {
            Report::line("picture", &picture)?;
        } else if last || screen.terminal {
            let (above, below) = (screen.canvas.draw(&picture), people(&state));
            report::print(&screen.over(drawn, &format!("{above}{below}")))?;
            // The last line may be longer than the terminal is wide.
            let wrapped = below.chars().count().div_ceil(screen.canvas.width);
            drawn = above.lines().count() + wrapped;
        }
        if last {
            return if args.wait {
                ended_badly(&state)
            } else {
                Ok(())
            };
        }
        interrupt::check("the move goes on; see `diskferry mirror status`")?;
        thread::sleep(LOOK);
    }
}

/// What is drawn on.
struct Screen {
    canvas: Canvas,
    terminal: bool,
    cells: usize,
}

impl Screen {
    fn new(report: Report) -> Self {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        let found = rustix::termios::tcgetwinsize(&stdout).ok();
        let found = found.filter(|found| terminal && found.ws_col > 0 && found.ws_row > 0);
        let (width, height) = found.map_or(USUAL, |found| {
            (usize::from(found.ws_col), usize::from(found.ws_row))
        });
        let lines = height.saturating_sub(BELOW).clamp(1, MOST_LINES);
        Self {
            canvas: Canvas {
                width,
                unicode: is_utf8(|name| std::env::var(name).ok()),
                color: report.is_colored(terminal),
            },
            terminal,
            cells: width * lines,
        }
    }

    /// The text in place of the `lines` that were drawn before.
    fn over(&self, lines: usize, text: &str) -> String {
        if lines == 0 || !self.terminal {
            return text.to_owned();
        }
        format!("\x1b[{lines}A\x1b[J{text}")
    }
}

/// Whether the locale that holds for characters is one of UTF-8.
fn is_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    let names = ["LC_ALL", "LC_CTYPE", "LANG"];
    let set = names
        .iter()
        .filter_map(|name| variable(name))
        .find(|value| !value.is_empty());
    let set = set.unwrap_or_default().to_ascii_lowercase();
    set.contains("utf-8") || set.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::is_utf8;

    #[test]
    fn the_first_variable_that_says_something_decides() {
        let with = |set: &'static [(&str, &str)]| {
            is_utf8(move |name| {
                let found = set.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(with(&[("LANG", "de_DE.UTF-8")]));
        assert!(with(&[
            ("LC_ALL", ""),
            ("LC_CTYPE", "C.utf8"),
            ("LANG", "C")
        ]));
        assert!(!with(&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")]));
        assert!(!with(&[]));
    }
}
