//! What a person or a program is told: results on stdout, failures on stderr.
//!
//! With `--json` every line on stdout is one JSON object with `"schema": 1` and a `type`. Short
//! commands print one; long ones print `phase`, `progress`, `event` lines and a `summary` last. A
//! failure is a line of type `error` too. Sizes in JSON are integers of bytes.

use std::io::{self, IsTerminal as _, Write};

use serde::Serialize;

use crate::args::{ColorWhen, GlobalArgs};
use crate::failure::{Exit, Failure, Result};

/// Version of the JSON output; raised when a field changes its meaning or goes away.
const SCHEMA: u32 = 1;

/// Where and in what form results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    json: bool,
    quiet: bool,
    color: ColorWhen,
}

#[derive(Serialize)]
struct Line<'a, T> {
    schema: u32,
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    exit_code: u8,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

impl Report {
    pub(crate) fn new(global: &GlobalArgs) -> Self {
        Self {
            json: global.json,
            quiet: global.quiet,
            color: global.color,
        }
    }

    /// Whether what goes to a terminal, or to something else, is coloured.
    pub(crate) fn is_colored(self, terminal: bool) -> bool {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        match self.color {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => !no_color && terminal,
        }
    }

    /// Whether results go out as JSON.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Whether only results and failures are wanted.
    pub(crate) fn is_quiet(self) -> bool {
        self.quiet
    }

    /// A remark on stderr that changes nothing about the result.
    pub(crate) fn warn(self, what: &str) {
        if !self.quiet {
            let _ = writeln!(io::stderr().lock(), "warning: {what}");
        }
    }

    /// One result: `body` as a JSON line of type `kind`, or what `people` makes of it.
    pub(crate) fn result<T: Serialize>(
        self,
        kind: &str,
        body: &T,
        people: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        if self.json {
            Self::line(kind, body)
        } else {
            print(&people(body))
        }
    }

    /// A remark that a person may want and a program gets as an event.
    pub(crate) fn event<T: Serialize>(self, kind: &str, body: &T, people: &str) -> Result<()> {
        if self.json {
            Self::line(kind, body)
        } else if self.quiet {
            Ok(())
        } else {
            print(people)
        }
    }

    /// One line of JSON.
    pub(crate) fn line<T: Serialize>(kind: &str, body: &T) -> Result<()> {
        let schema = SCHEMA;
        let line = Line { schema, kind, body };
        let text = serde_json::to_string(&line)
            .map_err(|e| Failure::new(Exit::Failed, format!("cannot write JSON: {e}")))?;
        print(&text)
    }

    /// Says why the command ends badly.
    pub(crate) fn failure(self, failure: &Failure) {
        let (red, bold, plain) = if self.is_colored(io::stderr().is_terminal()) {
            ("\x1b[1;31m", "\x1b[1;36m", "\x1b[0m")
        } else {
            ("", "", "")
        };
        let mut stderr = io::stderr().lock();
        // Nowhere is left to complain if stderr is closed.
        let _ = writeln!(stderr, "{red}error:{plain} {}", failure.what);
        if let Some(hint) = &failure.hint {
            let _ = writeln!(stderr, "{bold}hint:{plain} {hint}");
        }
        if self.json {
            let body = ErrorBody {
                exit_code: failure.exit as u8,
                message: &failure.what,
                hint: failure.hint.as_deref(),
            };
            let _ = Self::line("error", &body);
        }
    }
}

/// Writes one line to stdout. A reader who has had enough (`| head`) ends the command quietly.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let line_end = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    let written = write!(stdout, "{text}{line_end}").and_then(|()| stdout.flush());
    match written {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Failure::io("cannot write to stdout", &e)),
        Ok(()) => Ok(()),
    }
}
