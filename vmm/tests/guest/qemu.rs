//! QEMU with its software processor, running the guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// After so many seconds a machine is taken for stuck.
const STUCK: &str = "240";
/// The program.
const EMULATOR: &str = "qemu-system-x86_64";

/// What a machine said and how it ended.
pub(crate) struct Ran {
    /// The byte the guest ended it with.
    pub(crate) code: i32,
    pub(crate) events: Vec<Value>,
}

impl Ran {
    /// The only event of that name.
    #[track_caller]
    pub(crate) fn event(&self, name: &str) -> &Value {
        let mut found = self.events.iter().filter(|event| event["event"] == name);
        let event = found.next();
        let event = event.unwrap_or_else(|| panic!("no {name} in {:?}", self.events));
        assert!(found.next().is_none(), "two of {name} in {:?}", self.events);
        event
    }

    /// All events of that name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.events
            .iter()
            .filter(move |event| event["event"] == name)
    }

    /// The same machine, if it ended well.
    #[track_caller]
    pub(crate) fn good(self) -> Self {
        assert_eq!(self.code, 0, "{:?}", self.events);
        self
    }
}

/// A machine: its type, its disks and devices, and what the guest is told.
pub(crate) struct Qemu(Command);

impl Qemu {
    /// A machine of that type, with one processor and 256 MiB.
    pub(crate) fn new(kind: &str) -> Self {
        let mut command = Command::new("timeout");
        command
            .arg(STUCK)
            .arg(emulator())
            .args([
                "-machine", kind, "-accel", "tcg", "-cpu", "max", "-m", "256M",
            ])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-serial", "stdio", "-kernel", vmm::guest::PATH])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        Self(command)
    }

    /// Adds arguments.
    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.0.args(arguments);
        self
    }

    /// Runs the guest to its end with these words.
    #[track_caller]
    pub(crate) fn run(self, words: &str) -> Ran {
        let (code, events) = self.run_to(words);
        // The device turns a byte into twice itself and one more.
        assert_eq!(code % 2, 1, "QEMU ended with {code}: {events:?}");
        Ran {
            code: code >> 1,
            events,
        }
    }

    /// Runs the guest until nobody handles what it did: what it said before.
    #[track_caller]
    pub(crate) fn run_until_shutdown(self, words: &str) -> Vec<Value> {
        let (code, events) = self.run_to(words);
        assert_eq!(code, 0, "{events:?}");
        events
    }

    fn run_to(mut self, words: &str) -> (i32, Vec<Value>) {
        let output = self.0.args(["-append", words]).output();
        let output = output.expect("timeout can be run");
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains('{'), "the guest said nothing: {said}{errors}");
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}\n{errors}"))
        };
        let lines = said.lines().filter(|line| !line.is_empty());
        let code = output.status.code().expect("timeout ends by itself");
        (code, lines.map(parse).collect())
    }
}

/// What `scripts/setup.sh` installed, or unpacked where it could not install.
fn emulator() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/qemu");
    std::env::split_paths(&path)
        .chain([unpacked])
        .map(|folder| folder.join(EMULATOR))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{EMULATOR} is not here: run scripts/setup.sh"))
}
