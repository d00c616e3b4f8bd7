//! A `serve` that runs beside the test and is ended by it.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use super::run::command;

/// A running server.
pub(crate) struct Serving {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// What it said of its first disk.
    pub(crate) line: serde_json::Value,
}

impl Serving {
    /// Starts `diskferry serve --json` with these words in `folder`, and waits until it serves.
    #[track_caller]
    pub(crate) fn start<S: AsRef<OsStr>>(folder: &Path, words: &[S]) -> Self {
        let mut child = command(folder, "diskferry", &["serve", "--json"])
            .args(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be run");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("UTF-8");
        let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else {
            let mut stderr = String::new();
            let _ = child
                .stderr
                .take()
                .expect("a pipe")
                .read_to_string(&mut stderr);
            panic!("it does not serve: {stderr}");
        };
        assert_eq!(line["type"], "serving", "{line}");
        Self {
            child,
            stdout,
            line,
        }
    }

    /// The address of its first disk at its first listening place.
    pub(crate) fn uri(&self) -> String {
        self.line["uris"][0]
            .as_str()
            .expect("an address")
            .to_owned()
    }

    /// The number of its process.
    #[allow(dead_code, reason = "only some of the test programs ask")]
    pub(crate) fn pid(&self) -> u64 {
        self.child.id().into()
    }

    /// Kills it at once, as the host's memory killer would.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Ends it in order; what it said last.
    #[track_caller]
    pub(crate) fn end(mut self) -> serde_json::Value {
        let pid = self.child.id().to_string();
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .expect("kill can be run");
        let status = self.child.wait().expect("it ends");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("UTF-8");
        assert!(status.success(), "{status}: {rest}");
        let last = rest.lines().last().expect("a summary");
        let last: serde_json::Value = serde_json::from_str(last).expect("JSON");
        assert_eq!(last["type"], "summary", "{rest}");
        last
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It has ended already, or the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
