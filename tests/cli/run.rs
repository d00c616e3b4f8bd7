//! Running the program and others, and looking at what they said.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// What a run brought.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code().expect("it ended by itself"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// The same, if it ended with `code`.
    #[track_caller]
    pub(crate) fn ends(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }

    /// The same, if it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.ends(0)
    }

    /// The same, if it failed with `code`, said an error and printed no result.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> Self {
        let ran = self.ends(code);
        assert!(ran.stderr.contains("error:"), "stderr: {}", ran.stderr);
        ran
    }

    /// The only line of JSON on stdout.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        let mut lines = self.json_lines();
        assert_eq!(lines.len(), 1, "{}", self.stdout);
        lines.remove(0)
    }

    /// Every line of stdout; each must be an object of the schema.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<serde_json::Value> {
        let parse = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(value["schema"], 1, "{line}");
            assert!(value["type"].is_string(), "{line}");
            value
        };
        self.stdout.lines().map(parse).collect()
    }
}

/// A program to be run in `folder`: `diskferry` is the one that was built, with its control sockets
/// in a folder there.
pub(crate) fn command<S: AsRef<OsStr>>(folder: &Path, name: &str, words: &[S]) -> Command {
    let program = match name {
        "diskferry" => env!("CARGO_BIN_EXE_diskferry"),
        other => other,
    };
    let mut command = Command::new(program);
    command
        .args(words)
        .current_dir(folder)
        .env("DISKFERRY_RUN_DIR", folder.join("run"))
        .env_remove("RUST_LOG");
    command
}

/// Runs it to its end; it must be there.
pub(crate) fn ran(command: &mut Command) -> Ran {
    let output = command.output();
    let named = command.get_program().display();
    let output = output.unwrap_or_else(|e| panic!("{named}: {e}; scripts/setup.sh installs it"));
    Ran::new(output)
}

/// Runs a program in `folder` to its end; it must be there.
pub(crate) fn program<S: AsRef<OsStr>>(folder: &Path, name: &str, words: &[S]) -> Ran {
    ran(&mut command(folder, name, words))
}

/// Runs the program in `folder` to its end.
pub(crate) fn diskferry<S: AsRef<OsStr>>(folder: &Path, words: &[S]) -> Ran {
    program(folder, "diskferry", words)
}

/// A folder that goes away with the value.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

/// Bytes that `path` takes on the host.
pub(crate) fn on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).expect("it exists").blocks() * 512
}
